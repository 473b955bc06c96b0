// Dropout (Srivastava et al., JMLR 15, 2014): an element is multiplied by 0 with probability p and by 1/(1-p)
// otherwise. Fused with what stands around it in a network:
//   y = residual + m f(x + b),   dx = f'(x + b) m dy,   db = sum of dx,   m in {0, scale}.
//
// The decision compares a 32-bit draw (common/philox.h) with a threshold, p in steps of 2^-32, but neither
// none nor all of them unless p is exactly 0 or 1. The scale is torch's, 1/(1-p). Multiplying, not selecting,
// lets NaN and infinity through as torch does.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pyops::math {

constexpr uint64_t kDropoutSteps = uint64_t{1} << 32;

template <class T>
struct DropoutRate {
  uint32_t high;  // draws below high * 65536 + low drop; high is 65536 when all do
  uint32_t low;
  T scale;          // 1 / (1 - p); 0 when everything is dropped
  T inverse_scale;  // turns a kept output into the activation's; a dropped one is 0, and its gradient too

  static PYOPS_HD DropoutRate of(double p) {
    if (p >= 1) return {1u << 16, 0, T(0), T(0)};
    uint64_t threshold = static_cast<uint64_t>(p * double(kDropoutSteps) + 0.5);
    if (p > 0 && threshold == 0) threshold = 1;
    if (threshold >= kDropoutSteps) threshold = kDropoutSteps - 1;
    return {static_cast<uint32_t>(threshold >> 16), static_cast<uint32_t>(threshold & 0xffffu),
            T(1.0 / (1.0 - p)), T(1.0 - p)};
  }

  // What the high halves of draws are compared with where this is their low half.
  PYOPS_HD uint32_t limit(uint32_t low_half) const { return high + (low_half < low ? 1 : 0); }

  // What an element is multiplied by.
  PYOPS_HD T factor(uint32_t high_half, uint32_t limit) const { return high_half < limit ? T(0) : scale; }
};

}  // namespace pyops::math
