// The windows of average pooling, sliding and adaptive.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "math/pooling.h"

namespace pyops::cpu {

// An axis whose windows are worked out once for all rows.
struct AverageAxis {
  int64_t in;
  int64_t out;
  std::vector<math::Range> elements;  // by window
  std::vector<int64_t> count;         // by window
  std::vector<math::Range> windows;   // by element
  std::optional<math::SlidingAxis> sliding;

  template <class Axis>
  AverageAxis(int64_t in_size, int64_t out_size, const Axis& axis) : in(in_size), out(out_size) {
    for (int64_t window = 0; window < out; ++window) {
      elements.push_back(axis.elements(window));
      count.push_back(axis.count(window));
    }
    for (int64_t element = 0; element < in; ++element) windows.push_back(axis.windows(element));
  }

  static AverageAxis of(const math::SlidingAxis& axis, bool count_padding) {
    AverageAxis made(axis.in, axis.out, math::AverageSlidingOf<int64_t>{axis, count_padding});
    made.sliding = axis;
    return made;
  }
  static AverageAxis adaptive(int64_t in, int64_t out) {
    return {in, out, math::AverageAdaptiveOf<int64_t>{in, out}};
  }

  bool in_pairs() const {
    return sliding && sliding->kernel == 2 && sliding->stride == 2 && sliding->padding == 0 && in == 2 * out;
  }
  bool whole() const { return out == 1 && elements[0].first == 0 && elements[0].end == in; }
};

struct AveragePlan {
  AverageAxis height, width;
  int64_t divisor;  // 0: the elements are counted

  double divisor_of(int64_t row_window, int64_t column_window) const {
    if (divisor != 0) return static_cast<double>(divisor);
    return static_cast<double>(height.count[row_window]) * static_cast<double>(width.count[column_window]);
  }

  // One window over the whole of a contiguous plane.
  bool global(int64_t inner) const { return inner == 1 && height.whole() && width.whole(); }
};

}  // namespace pyops::cpu
