// Geometry of pooling windows, and the comparison of max pooling.
//
// A tensor is pooled as [outer, height, width, inner]: inner is 1 in NCHW order, where outer counts images
// times channels, and the number of channels in channels_last order. Both axes are alike and independent of
// each other. Forward asks an axis which elements a window holds; backward, which gathers, asks it which
// windows hold an element.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pyops::math {

// first, first + 1, ..., end - 1; empty when end <= first. Int is int64_t, or int on a GPU, where wide
// numbers cost registers and division by them is slow.
template <class Int>
struct RangeOf {
  Int first;
  Int end;
  PYOPS_HD bool operator==(const RangeOf& other) const { return first == other.first && end == other.end; }
};
using Range = RangeOf<int64_t>;

template <class Int>
PYOPS_HD Int smaller(Int a, Int b) {
  return a < b ? a : b;
}
template <class Int>
PYOPS_HD Int larger(Int a, Int b) {
  return a > b ? a : b;
}

// a / b rounded down or up, for a >= 0 and b > 0. On a GPU, 64-bit division takes several times as long as
// 32-bit division, which nearly always does.
template <class Int>
PYOPS_HD Int quotient(Int a, Int b) {
#if defined(__CUDA_ARCH__)
  if (sizeof(Int) == 4 || ((static_cast<int64_t>(a) | static_cast<int64_t>(b)) >> 32) == 0)
    return static_cast<Int>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
#endif
  return a / b;
}
template <class Int>
PYOPS_HD Int quotient_up(Int a, Int b) {
  return quotient(static_cast<Int>(a + b - 1), b);
}

// Windows of `kernel` taps, `dilation` apart, beginning every `stride` elements. A tap may lie in the padding
// or, at the end of the last window in ceil mode, behind it. Number is Int, or what a GPU divides by faster.
template <class Int, class Number = Int>
struct SlidingAxisOf {
  Int in;
  Int out;
  Int kernel;
  Number stride;
  Int padding;
  Number dilation;

  // Number of windows; below 1 when not even one fits. In ceil mode a last window may hang over the end, but
  // must begin inside the image or the padding before it.
  PYOPS_HD static Int output_size(Int in, Int kernel, Int stride, Int padding, Int dilation, bool ceil_mode) {
    const Int room = in + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
    if (room < 0) return 0;
    const Int out = room / stride + 1;
    return ceil_mode && (out - 1) * stride >= in + padding ? out - 1 : out;
  }

  PYOPS_HD Int start(Int window) const { return window * stride - padding; }

  // The taps of a window that lie inside the image.
  PYOPS_HD RangeOf<Int> taps(Int window) const {
    const Int begin = start(window);
    return {first_tap(window), begin >= in ? Int(0) : smaller(kernel, quotient_up(in - begin, dilation))};
  }
  PYOPS_HD Int first_tap(Int window) const {
    const Int begin = start(window);
    return begin >= 0 ? Int(0) : quotient_up(-begin, dilation);
  }

  // The windows that span an element (with dilation, not all of them have a tap there).
  PYOPS_HD RangeOf<Int> windows(Int element) const {
    const Int last_start = element + padding, first_start = last_start - (kernel - 1) * dilation;
    return {first_start <= 0 ? Int(0) : quotient_up(first_start, stride),
            smaller(out, quotient(last_start, stride) + 1)};
  }

  // Which tap of a window that spans an element lies there; -1 for none.
  PYOPS_HD Int tap(Int window, Int element) const {
    const Int distance = element - start(window);
    if (dilation == 1) return distance;
    const Int tap = quotient(distance, dilation);
    return tap * dilation == distance ? tap : Int(-1);
  }
};
using SlidingAxis = SlidingAxisOf<int64_t>;

// What averages ask of an axis: the elements of a window, what it contributes to the divisor, and the windows
// that hold an element.
template <class Int, class Number = Int>
struct AverageSlidingOf {
  SlidingAxisOf<Int, Number> axis;  // of dilation 1
  bool count_padding;

  PYOPS_HD RangeOf<Int> elements(Int window) const {
    const Int begin = axis.start(window);
    return {larger(begin, Int(0)), smaller(begin + axis.kernel, axis.in)};
  }
  PYOPS_HD Int count(Int window) const {
    const Int begin = axis.start(window);
    if (count_padding) return smaller(begin + axis.kernel, axis.in + axis.padding) - begin;
    const RangeOf<Int> held = elements(window);
    return held.end - held.first;
  }
  PYOPS_HD RangeOf<Int> windows(Int element) const { return axis.windows(element); }
};

// `out` windows of nearly equal size that cover `in` elements; both below 2^31.
template <class Int>
struct AverageAdaptiveOf {
  Int in;
  Int out;

  PYOPS_HD RangeOf<Int> elements(Int window) const { return covering(window, out, in); }
  PYOPS_HD RangeOf<Int> windows(Int element) const { return covering(element, in, out); }
  PYOPS_HD Int count(Int window) const {
    const RangeOf<Int> held = elements(window);
    return held.end - held.first;
  }

 private:
  // What of n pieces of the unit interval touches piece k of m.
  PYOPS_HD static RangeOf<Int> covering(int64_t k, int64_t m, int64_t n) {
    return {static_cast<Int>(quotient(k * n, m)), static_cast<Int>(quotient_up((k + 1) * n, m))};
  }
};

// Index in an image of `width.in` columns of the element at `position` of a window.
template <class Int, class Number>
PYOPS_HD int64_t flat_index(const SlidingAxisOf<Int, Number>& height, const SlidingAxisOf<Int, Number>& width,
                            Int row_window, Int column_window, int64_t position) {
  const int64_t tap = quotient<int64_t>(position, width.kernel);
  const int64_t row = height.start(row_window) + tap * height.dilation;
  return row * width.in + width.start(column_window) + (position - tap * width.kernel) * width.dilation;
}

// Whether x replaces the maximum so far: ties keep the first, and a NaN replaces anything, so that it is the
// last NaN of a window that stays, as in torch.
template <class T>
PYOPS_HD bool replaces_maximum(T x, T maximum) {
  return x > maximum || x != x;
}

}  // namespace pyops::math
