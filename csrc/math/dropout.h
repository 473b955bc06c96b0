// Dropout (Srivastava et al., JMLR 15, 2014): an element is multiplied by 0 with probability p and by 1/(1-p)
// otherwise. Fused with what stands around it in a network:
//   y = residual + m f(x + b),   dx = f'(x + b) m dy,   db = sum of dx,   m in {0, scale}.
//
// The decision compares a 16-bit draw (common/philox.h) with a threshold, so p is rounded to a multiple of
// 2^-16 (but neither to 0 nor to 1 unless it is exactly that), and the scale is that of the rounded p: the
// expectation is exact. Multiplying, not selecting, lets NaN and infinity through as torch does.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pyops::math {

constexpr uint32_t kDropoutSteps = 1u << 16;

template <class T>
struct DropoutRate {
  uint32_t threshold;  // draws below it drop
  T scale;             // 65536 / (65536 - threshold); 0 when everything is dropped

  static PYOPS_HD DropoutRate of(double p) {
    const double steps = p * kDropoutSteps + 0.5;
    uint32_t threshold = static_cast<uint32_t>(steps);
    if (p > 0 && threshold == 0) threshold = 1;
    if (p < 1 && threshold == kDropoutSteps) threshold = kDropoutSteps - 1;
    if (threshold >= kDropoutSteps) return {kDropoutSteps, T(0)};
    return {threshold, T(double(kDropoutSteps) / double(kDropoutSteps - threshold))};
  }

  // What the element with this draw is multiplied by.
  PYOPS_HD T factor(uint32_t draw) const { return draw < threshold ? T(0) : scale; }

  // Turns a kept output into the activation's; a dropped one is 0, and its gradient too, whatever it was.
  PYOPS_HD T inverse_scale() const {
    return threshold >= kDropoutSteps ? T(0) : T(double(kDropoutSteps - threshold) / double(kDropoutSteps));
  }
};

}  // namespace pyops::math
