// Micro-kernels of the convolution. Each keeps a block of sums in registers and reads the image from a slab
// (conv2d_slab.h) through a table of offsets: nothing is unrolled into columns.
//
//   pixel_kernel    vectors along output channels, one broadcast per pixel: for many output channels
//   channel_kernel  vectors along the pixels of a row, one broadcast per output channel: for few of them
//   weight_kernel   sums over pixels, vectors along output channels, one broadcast per weight
//   dot_kernel      sums over pixels, vectors along pixels: for few output channels
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "gemm_pack.h"
#include "rows.h"

namespace pyops::cpu {

// Blocks of sums, chosen so that they, a row of vectors and a broadcast fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kPixels = 14, kWeights = 12, kChannels = 6, kFewChannels = 3, kDotWeights = 5,
                     kDotChannels = 4;
#else
inline constexpr int kPixels = 6, kWeights = 6, kChannels = 2, kFewChannels = 1, kDotWeights = 3,
                     kDotChannels = 3;
#endif
inline constexpr int kChannelVectors = 2, kPixelVectors = 4, kMostPixelVectors = 8, kMostRun = 5;

// c[vectors * kLanes] = sum, or += sum.
template <int vectors, class Native, class Acc>
PYOPS_HD void write_row(Native (&sum)[vectors], Acc* c, bool accumulate) {
#pragma GCC unroll 8
  for (int j = 0; j < vectors; ++j) {
    Acc* const to = c + j * Vec<Acc>::kLanes;
    if (accumulate) sum[j] += load<Acc>(to).v;
    store(to, Vec<Acc>(sum[j]));
  }
}

template <int rows, int vectors, class Acc>
struct SumBlock {
  using Native = typename Vec<Acc>::Native;
  Native sum[rows][vectors] = {};

  void write(Acc* c, int64_t ldc, bool accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) write_row<vectors>(sum[i], c + i * ldc, accumulate);
  }
};

// c[pixel, channel] (+)= sum_d x[offsets[d] + pixel] * weight[d, channel] for `rows` neighbouring pixels and
// `vectors` vectors of channels; the panel of weights is aligned.
template <int rows, int vectors, class Acc>
void pixel_kernel(int64_t depth, const Acc* x, const int64_t* offsets, const Acc* weight, Acc* c, int64_t ldc,
                  bool accumulate) {
  using Native = typename Vec<Acc>::Native;
  SumBlock<rows, vectors, Acc> block;
#pragma GCC unroll 1
  for (int64_t d = 0; d < depth; ++d) {
    const Acc* const left = x + offsets[d];
    const auto* const right = reinterpret_cast<const Native*>(weight) + d * vectors;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Native value = left[i] - Native{};
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) block.sum[i][j] += value * right[j];
    }
  }
  block.write(c, ldc, accumulate);
}

// c[channel, pixel] (+)= sum_d weight[d, channel] * x[starts[j] + offsets[d] + lane] for `rows` channels and
// `vectors` vectors of pixels.
template <int rows, int vectors, class Acc>
void channel_kernel(int64_t depth, const Acc* x, const int64_t* starts, const int64_t* offsets,
                    const Acc* weight, Acc* c, int64_t ldc, bool accumulate) {
  using Native = typename Vec<Acc>::Native;
  SumBlock<rows, vectors, Acc> block;
  const Acc* from[vectors];
  for (int j = 0; j < vectors; ++j) from[j] = x + starts[j];
#pragma GCC unroll 1
  for (int64_t d = 0; d < depth; ++d, weight += rows) {
    const int64_t offset = offsets[d];
    Native value[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) value[i] = weight[i] - Native{};
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      const Native right = load<Acc>(from[j] + offset).v;
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) block.sum[i][j] += value[i] * right;
    }
  }
  block.write(c, ldc, accumulate);
}

// c[rows[g] + k, channel] (+)= sum over pixels of x[offsets[rows[g]] + k + row * row_stride + column] *
// grad[pixel, channel] for `groups` runs of `run` weights that read neighbours, the pixels of the packed
// gradient lying one after the other. Runs share a pointer; there are not enough registers for one per
// weight.
template <int groups, int run, int vectors, class Acc>
void weight_kernel(int64_t pixel_rows, int64_t pixel_columns, const Acc* x, int64_t row_stride,
                   const int64_t* offsets, const int64_t* rows, const Acc* grad, Acc* c, int64_t ldc,
                   bool accumulate) {
  using Native = typename Vec<Acc>::Native;
  SumBlock<groups * run, vectors, Acc> block;
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
    for (int k = 0; k < run; ++k) {
      // c is needed when the loops are through and by then has come from the L2 cache.
      __builtin_prefetch(c + (rows[g] + k) * ldc, 1);
      __builtin_prefetch(c + (rows[g] + k) * ldc + vectors * Vec<Acc>::kLanes - 1, 1);
    }
  }
  const auto* right = reinterpret_cast<const Native*>(grad);
  for (int64_t row = 0; row < pixel_rows; ++row, x += row_stride) {
    const Acc* left[groups];
#pragma GCC unroll 16
    for (int g = 0; g < groups; ++g) left[g] = x + offsets[rows[g]];
#pragma GCC unroll 1
    for (int64_t column = 0; column < pixel_columns; ++column, right += vectors) {
      // A neighbour's broadcast is not worth a register until the next pixel: the compiler must not see that.
      asm("" : "+r"(column));
#pragma GCC unroll 16
      for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
        for (int k = 0; k < run; ++k) {
          const Native value = left[g][column + k] - Native{};
#pragma GCC unroll 4
          for (int j = 0; j < vectors; ++j) block.sum[g * run + k][j] += value * right[j];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
    for (int k = 0; k < run; ++k)
      write_row<vectors>(block.sum[g * run + k], c + (rows[g] + k) * ldc, accumulate);
  }
}

// c[weight, channel] (+)= sum over pixels of x[offsets[weight] + ...] * grad[channel * grad_stride + ...] for
// `rows` weights and `columns` channels, both planar.
template <int rows, int columns, class Acc>
void dot_kernel(int64_t pixel_rows, int64_t pixel_columns, const Acc* x, int64_t row_stride,
                const int64_t* offsets, const Acc* grad, int64_t grad_row_stride, int64_t grad_stride, Acc* c,
                int64_t ldc, bool accumulate) {
  SumBlock<rows, columns, Acc> block;
  for (int64_t row = 0; row < pixel_rows; ++row, x += row_stride, grad += grad_row_stride) {
    for_each_vector<Acc>(pixel_columns, [&](int64_t i, int lanes) {
      Vec<Acc> right[columns];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) right[j] = load_lanes(grad + j * grad_stride + i, lanes);
#pragma GCC unroll 16
      for (int k = 0; k < rows; ++k) {
        const Vec<Acc> left = load_lanes(x + offsets[k] + i, lanes);
#pragma GCC unroll 4
        for (int j = 0; j < columns; ++j) block.sum[k][j] += left.v * right[j].v;
      }
    });
  }
  for (int k = 0; k < rows; ++k) {
    for (int j = 0; j < columns; ++j) {
      const Acc total = horizontal_sum(Vec<Acc>(block.sum[k][j]));
      c[k * ldc + j] = accumulate ? c[k * ldc + j] + total : total;
    }
  }
}

// ---- kernels by the number of rows -----------------------------------------------------------------------

template <int vectors, class Acc, int... index>
auto pixel_kernels(int64_t rows, std::integer_sequence<int, index...>) {
  using Kernel = void (*)(int64_t, const Acc*, const int64_t*, const Acc*, Acc*, int64_t, bool);
  static constexpr Kernel kernels[] = {pixel_kernel<index + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

template <int vectors, class Acc, int... index>
auto channel_kernels(int64_t rows, std::integer_sequence<int, index...>) {
  using Kernel =
      void (*)(int64_t, const Acc*, const int64_t*, const int64_t*, const Acc*, Acc*, int64_t, bool);
  static constexpr Kernel kernels[] = {channel_kernel<index + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

template <int run, int vectors, class Acc, int... index>
auto weight_kernels(int64_t groups, std::integer_sequence<int, index...>) {
  using Kernel = void (*)(int64_t, int64_t, const Acc*, int64_t, const int64_t*, const int64_t*, const Acc*,
                          Acc*, int64_t, bool);
  static constexpr Kernel kernels[] = {weight_kernel<index + 1, run, vectors, Acc>...};
  return kernels[groups - 1];
}

template <int run, class Acc>
auto weight_kernel_for(int64_t length, int64_t groups, bool narrow) {
  if constexpr (run > 1) {
    if (length < run) return weight_kernel_for<run - 1, Acc>(length, groups, narrow);
  }
  constexpr auto all = std::make_integer_sequence<int, kWeights / run>{};
  return narrow ? weight_kernels<run, 1, Acc>(groups, all)
                : weight_kernels<run, kChannelVectors, Acc>(groups, all);
}

template <int columns, class Acc, int... index>
auto dot_kernels(int64_t rows, std::integer_sequence<int, index...>) {
  using Kernel = void (*)(int64_t, int64_t, const Acc*, int64_t, const int64_t*, const Acc*, int64_t, int64_t,
                          Acc*, int64_t, bool);
  static constexpr Kernel kernels[] = {dot_kernel<index + 1, columns, Acc>...};
  return kernels[rows - 1];
}

template <int columns_left, class Acc>
auto dot_kernel_for(int64_t rows, int64_t columns) {
  if constexpr (columns_left > 1) {
    if (columns < columns_left) return dot_kernel_for<columns_left - 1, Acc>(rows, columns);
  }
  return dot_kernels<columns_left, Acc>(rows, std::make_integer_sequence<int, kDotWeights>{});
}

}  // namespace pyops::cpu
