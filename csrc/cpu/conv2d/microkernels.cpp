// The convolution's micro-kernels, which microkernels.h describes.
#include "cpu/conv2d/microkernels.h"

#include <type_traits>
#include <utility>

#include "cpu/conv2d/winograd/transforms.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {
namespace {

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

template <int groups, int run, int vectors, class Acc>
void weight_kernel(const WeightKernelPixels& pixels, const Acc* x, const int64_t* offsets,
                   const int64_t* rows, const Acc* grad, Acc* c, int64_t ldc, bool accumulate) {
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
  const int64_t columns = pixels.columns;
  for (int64_t image = 0; image < pixels.images; ++image) {
    const Acc* from = x + image * pixels.image_stride;
    for (int64_t row = 0; row < pixels.rows; ++row, from += pixels.row_stride) {
      const Acc* left[groups];
#pragma GCC unroll 16
      for (int g = 0; g < groups; ++g) left[g] = from + offsets[rows[g]];
#pragma GCC unroll 1
      for (int64_t column = 0; column < columns; ++column, right += vectors) {
        // A neighbour's broadcast is not worth a register until the next pixel: the compiler must not see it.
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
  }
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
    for (int k = 0; k < run; ++k)
      write_row<vectors>(block.sum[g * run + k], c + (rows[g] + k) * ldc, accumulate);
  }
}

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

// c[i, channel] (+)= sum_s x[i, s] * grad[s, channel] over Winograd tiles s, for `rows` channels of a
// transformed input and `vectors` vectors of channels of a transformed gradient.
template <int rows, int vectors, class Acc>
void winograd_kernel(int64_t tiles, const Acc* x, const Acc* grad, Acc* c, int64_t ldc, bool accumulate) {
  using Native = typename Vec<Acc>::Native;
  constexpr int64_t kChannel =
      WinogradLayout<Acc>{kWinogradTiles}.channel();  // a constant: 14 pointers are too many
  SumBlock<rows, vectors, Acc> block;
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {  // c is needed when the loop is through
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * Vec<Acc>::kLanes - 1, 1);
  }
  const auto* const right = reinterpret_cast<const Native*>(grad);
#pragma GCC unroll 1
  for (int64_t s = 0; s < tiles; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Native value = x[i * kChannel + s] - Native{};
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) block.sum[i][j] += value * right[s * vectors + j];
    }
  }
  block.write(c, ldc, accumulate);
}

// ---- tables of kernels by the number of rows, from 1 -----------------------------------------------------

template <int count>
using Numbers = std::make_integer_sequence<int, count>;

template <int vectors, class Acc, int... i>
PixelKernel<Acc> pixel_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr PixelKernel<Acc> kernels[] = {pixel_kernel<i + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

template <int vectors, class Acc, int... i>
ChannelKernel<Acc> channel_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr ChannelKernel<Acc> kernels[] = {channel_kernel<i + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

template <int run, int vectors, class Acc, int... i>
WeightKernel<Acc> weight_kernel_at(int64_t groups, std::integer_sequence<int, i...>) {
  static constexpr WeightKernel<Acc> kernels[] = {weight_kernel<i + 1, run, vectors, Acc>...};
  return kernels[groups - 1];
}

template <int run, class Acc>
WeightKernel<Acc> weight_kernel_from(int64_t length, int64_t groups, int64_t vectors) {
  if constexpr (run > 1) {
    if (length < run) return weight_kernel_from<run - 1, Acc>(length, groups, vectors);
  }
  constexpr Numbers<kWeights / run> all{};
  return vectors == 1 ? weight_kernel_at<run, 1, Acc>(groups, all)
                      : weight_kernel_at<run, kChannelVectors, Acc>(groups, all);
}

template <int vectors, class Acc, int... i>
WinogradKernel<Acc> winograd_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr WinogradKernel<Acc> kernels[] = {winograd_kernel<i + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

template <int columns, class Acc, int... i>
DotKernel<Acc> dot_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr DotKernel<Acc> kernels[] = {dot_kernel<i + 1, columns, Acc>...};
  return kernels[rows - 1];
}

template <int most, class Acc>
DotKernel<Acc> dot_kernel_from(int64_t rows, int64_t columns) {
  if constexpr (most > 1) {
    if (columns < most) return dot_kernel_from<most - 1, Acc>(rows, columns);
  }
  return dot_kernel_at<most, Acc>(rows, Numbers<kDotWeights>{});
}

}  // namespace

template <class Acc>
PixelKernel<Acc> pixel_kernel_of(int64_t pixels, int64_t vectors) {
  return vectors == 1 ? pixel_kernel_at<1, Acc>(pixels, Numbers<kPixels>{})
                      : pixel_kernel_at<kChannelVectors, Acc>(pixels, Numbers<kPixels>{});
}

template <class Acc>
ChannelKernel<Acc> channel_kernel_of(int64_t channels, int64_t vectors) {
  return vectors == kMostPixelVectors
             ? channel_kernel_at<kMostPixelVectors, Acc>(channels, Numbers<kFewChannels>{})
         : vectors == kPixelVectors ? channel_kernel_at<kPixelVectors, Acc>(channels, Numbers<kChannels>{})
                                    : channel_kernel_at<1, Acc>(channels, Numbers<kChannels>{});
}

template <class Acc>
WeightKernel<Acc> weight_kernel_of(int64_t length, int64_t runs, int64_t vectors) {
  return weight_kernel_from<kMostRun, Acc>(length, runs, vectors);
}

template <class Acc>
WinogradKernel<Acc> winograd_kernel_of(int64_t channels, int64_t vectors) {
  return vectors == 1 ? winograd_kernel_at<1, Acc>(channels, Numbers<kPixels>{})
                      : winograd_kernel_at<kChannelVectors, Acc>(channels, Numbers<kPixels>{});
}

template <class Acc>
DotKernel<Acc> dot_kernel_of(int64_t weights, int64_t channels) {
  return dot_kernel_from<kDotChannels, Acc>(weights, channels);
}

template PixelKernel<float> pixel_kernel_of<float>(int64_t, int64_t);
template PixelKernel<double> pixel_kernel_of<double>(int64_t, int64_t);
template ChannelKernel<float> channel_kernel_of<float>(int64_t, int64_t);
template ChannelKernel<double> channel_kernel_of<double>(int64_t, int64_t);
template WeightKernel<float> weight_kernel_of<float>(int64_t, int64_t, int64_t);
template WeightKernel<double> weight_kernel_of<double>(int64_t, int64_t, int64_t);
template WinogradKernel<float> winograd_kernel_of<float>(int64_t, int64_t);
template DotKernel<float> dot_kernel_of<float>(int64_t, int64_t);
template DotKernel<double> dot_kernel_of<double>(int64_t, int64_t);

}  // namespace pyops::cpu
