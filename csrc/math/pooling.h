// Geometry of pooling windows, and the comparison of max pooling.
//
// A tensor is pooled as [outer, height, width, inner]: inner is 1 in NCHW order, where outer counts images
// times channels, and the number of channels in channels_last order. Both axes are alike and independent of
// each other. Forward asks an axis which elements a window holds; backward, which gathers, asks it which
// windows hold an element.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace pyops::math {

// first, first + 1, ..., end - 1; empty when end <= first.
struct Range {
  int64_t first;
  int64_t end;
  PYOPS_HD bool operator==(const Range& other) const { return first == other.first && end == other.end; }
};

PYOPS_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYOPS_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// a / b rounded up or down, and a % b, for a >= 0 and b > 0. On a GPU, 64-bit division takes several times as
// long as 32-bit division, which nearly always does.
PYOPS_HD int64_t quotient(int64_t a, int64_t b) {
#if defined(__CUDA_ARCH__)
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
#endif
  return a / b;
}
PYOPS_HD int64_t quotient_up(int64_t a, int64_t b) { return quotient(a + b - 1, b); }

// Windows of `kernel` taps, `dilation` apart, beginning every `stride` elements. A tap may lie in the padding
// or, at the end of the last window in ceil mode, behind it.
struct SlidingAxis {
  int64_t in;
  int64_t out;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;

  // Number of windows; below 1 when not even one fits. In ceil mode a last window may hang over the end, but
  // must begin inside the image or the padding before it.
  PYOPS_HD static int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t padding,
                                      int64_t dilation, bool ceil_mode) {
    const int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
    if (room < 0 && (!ceil_mode || room + stride - 1 < 0)) return 0;
    const int64_t out = (ceil_mode ? room + stride - 1 : room) / stride + 1;
    return ceil_mode && (out - 1) * stride >= in + padding ? out - 1 : out;
  }

  PYOPS_HD int64_t start(int64_t window) const { return window * stride - padding; }

  // The taps of a window that lie inside the image.
  PYOPS_HD Range taps(int64_t window) const {
    const int64_t begin = start(window);
    return {first_tap(window), begin >= in ? 0 : smaller(kernel, quotient_up(in - begin, dilation))};
  }
  PYOPS_HD int64_t first_tap(int64_t window) const {
    const int64_t begin = start(window);
    return begin >= 0 ? 0 : quotient_up(-begin, dilation);
  }

  // The windows that span an element (with dilation, not all of them have a tap there).
  PYOPS_HD Range windows(int64_t element) const {
    const int64_t last_start = element + padding, first_start = last_start - (kernel - 1) * dilation;
    return {first_start <= 0 ? 0 : quotient_up(first_start, stride),
            smaller(out, quotient(last_start, stride) + 1)};
  }

  // Which tap of a window that spans an element lies there; -1 for none.
  PYOPS_HD int64_t tap(int64_t window, int64_t element) const {
    const int64_t distance = element - start(window);
    if (dilation == 1) return distance;
    const int64_t tap = quotient(distance, dilation);
    return tap * dilation == distance ? tap : -1;
  }
};

// What averages ask of an axis: the elements of a window, what it contributes to the divisor, and the windows
// that hold an element.
struct AverageSliding {
  SlidingAxis axis;  // of dilation 1
  bool count_padding;

  PYOPS_HD Range elements(int64_t window) const {
    const int64_t begin = axis.start(window);
    return {larger(begin, 0), smaller(begin + axis.kernel, axis.in)};
  }
  PYOPS_HD int64_t count(int64_t window) const {
    const int64_t begin = axis.start(window);
    if (count_padding) return smaller(begin + axis.kernel, axis.in + axis.padding) - begin;
    const Range held = elements(window);
    return held.end - held.first;
  }
  PYOPS_HD Range windows(int64_t element) const { return axis.windows(element); }
};

// `out` windows of nearly equal size that cover `in` elements; both below 2^31.
struct AverageAdaptive {
  int64_t in;
  int64_t out;

  PYOPS_HD Range elements(int64_t window) const {
    return {quotient(window * in, out), quotient_up((window + 1) * in, out)};
  }
  PYOPS_HD int64_t count(int64_t window) const {
    const Range held = elements(window);
    return held.end - held.first;
  }
  PYOPS_HD Range windows(int64_t element) const {
    return {quotient(element * out, in), quotient_up((element + 1) * out, in)};
  }
};

// Index in an image of `width.in` columns of the element at `position` of a window.
PYOPS_HD int64_t flat_index(const SlidingAxis& height, const SlidingAxis& width, int64_t row_window,
                            int64_t column_window, int64_t position) {
  const int64_t tap = quotient(position, width.kernel);
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
