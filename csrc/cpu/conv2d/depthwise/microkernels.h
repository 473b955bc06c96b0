// The depthwise convolution's micro-kernels, on packed parts (channels.h): vectors along channels.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Runs of taps that read neighbours: where each begins in the input, and their weights, a vector each.
template <class Acc>
struct DepthwiseRuns {
  int64_t count;
  const int64_t* offsets;
  const Acc* weights;
};

// to[pixel] = sums of the runs' products for `pixels` neighbouring outputs, which read `step` pixels apart;
// kStep is that or 0. An element that several outputs read is read once.
template <int length, int kStep, int pixels, class Acc>
PYOPS_HD void depthwise_window(const DepthwiseRuns<Acc>& runs, int64_t step, const Acc* x, Acc* to,
                               int64_t to_step) {
  using Native = typename Vec<Acc>::Native;
  constexpr int n = Vec<Acc>::kLanes;
  Native sum[pixels] = {};
  const Acc* weights = runs.weights;
#pragma GCC unroll 1
  for (int64_t run = 0; run < runs.count; ++run, weights += length * n) {
    const Acc* const from = x + runs.offsets[run];
    Native weight[length];
#pragma GCC unroll 8
    for (int s = 0; s < length; ++s) weight[s] = load<Acc>(weights + s * n).v;
    if constexpr (kStep > 0) {
#pragma GCC unroll 32
      for (int i = 0; i < (pixels - 1) * kStep + length; ++i) {
        const Native v = load<Acc>(from + i * n).v;
#pragma GCC unroll 8
        for (int s = 0; s < length; ++s) {
          if (i >= s && (i - s) % kStep == 0 && (i - s) / kStep < pixels)
            sum[(i - s) / kStep] += weight[s] * v;
        }
      }
    } else {
#pragma GCC unroll 8
      for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 8
        for (int s = 0; s < length; ++s) sum[p] += weight[s] * load<Acc>(from + (p * step + s) * n).v;
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) store(to + p * to_step, Vec<Acc>(sum[p]));
}

// Outputs whose sums are in registers at a time.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kWindow = 8;
#else
inline constexpr int kWindow = 4;
#endif

// The last `columns`, fewer than kWindow, outputs of a row.
template <int length, int kStep, int pixels, class Acc>
PYOPS_HD void depthwise_rest(const DepthwiseRuns<Acc>& runs, int64_t step, int64_t columns, const Acc* x,
                             Acc* to, int64_t to_step) {
  if constexpr (pixels > 0) {
    if (columns == pixels) return depthwise_window<length, kStep, pixels>(runs, step, x, to, to_step);
    depthwise_rest<length, kStep, pixels - 1>(runs, step, columns, x, to, to_step);
  }
}

// A row of `columns` outputs.
template <int length, int kStep, class Acc>
void depthwise_row(const DepthwiseRuns<Acc>& runs, int64_t step, int64_t columns, const Acc* x, Acc* to,
                   int64_t to_step) {
  constexpr int n = Vec<Acc>::kLanes;
  int64_t i = 0;
  for (; i + kWindow <= columns; i += kWindow)
    depthwise_window<length, kStep, kWindow>(runs, step, x + i * step * n, to + i * to_step, to_step);
  depthwise_rest<length, kStep, kWindow - 1>(runs, step, columns - i, x + i * step * n, to + i * to_step,
                                             to_step);
}

template <class Acc>
using DepthwiseKernel = void (*)(const DepthwiseRuns<Acc>& runs, int64_t step, int64_t columns, const Acc* x,
                                 Acc* to, int64_t to_step);

// For runs of `wanted`, at most `length`, taps.
template <class Acc, int length = 7>
DepthwiseKernel<Acc> depthwise_kernel_of(int64_t wanted, int64_t step) {
  if constexpr (length > 1) {
    if (wanted < length) return depthwise_kernel_of<Acc, length - 1>(wanted, step);
  }
  return step == 1   ? depthwise_row<length, 1, Acc>
         : step == 2 ? depthwise_row<length, 2, Acc>
                     : depthwise_row<length, 0, Acc>;
}

// sums[tap] += the sum over `rows` x `columns` pixels of x[offsets[tap] + ...] * grad[...], whose rows and
// pixels in x are row_step and step apart.
template <int taps, class Acc>
void depthwise_gradient(int64_t rows, int64_t columns, const Acc* x, int64_t row_step, int64_t step,
                        const int64_t* offsets, const Acc* grad, Acc* const* sums) {
  using Native = typename Vec<Acc>::Native;
  constexpr int n = Vec<Acc>::kLanes;
  Native sum[taps] = {};
  for (int64_t row = 0; row < rows; ++row, x += row_step) {
    const Acc* left[taps];
#pragma GCC unroll 9
    for (int t = 0; t < taps; ++t) left[t] = x + offsets[t];
#pragma GCC unroll 1
    for (int64_t at = 0, end = columns * step; at < end; at += step, grad += n) {
      const Native g = load<Acc>(grad).v;
#pragma GCC unroll 9
      for (int t = 0; t < taps; ++t) sum[t] += load<Acc>(left[t] + at).v * g;
    }
  }
#pragma GCC unroll 9
  for (int t = 0; t < taps; ++t) store(sums[t], Vec<Acc>(load<Acc>(sums[t]).v + sum[t]));
}

}  // namespace pyops::cpu
