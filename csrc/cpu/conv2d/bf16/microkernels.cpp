// The micro-kernels that bf16.h describes. They alone are compiled for VDPBF16PS, and run only on CPUs that
// have it.
#include "cpu/conv2d/bf16/bf16.h"

#if defined(__AVX512F__)

#include <utility>

#define PYOPS_PAIRS __attribute__((target("avx512bf16")))

namespace pyops::cpu {
namespace {

PYOPS_PAIRS inline __m512 multiply_add(__m512 sum, __m512 left, __m512 right) {
  return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
}

inline __m512 broadcast(const void* pair) {
  float value;
  __builtin_memcpy(&value, pair, sizeof(value));
  return _mm512_set1_ps(value);
}

template <int vectors>
inline void write_row(const __m512 (&sum)[vectors], float* c, bool accumulate) {
#pragma GCC unroll 8
  for (int j = 0; j < vectors; ++j) {
    float* const to = c + j * 16;
    _mm512_storeu_ps(to, accumulate ? _mm512_add_ps(sum[j], _mm512_loadu_ps(to)) : sum[j]);
  }
}

template <int rows, int vectors>
PYOPS_PAIRS void pixel_kernel(int64_t depth, const float* x, int64_t stride, const int64_t* offsets,
                              const float* weight, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[rows][vectors] = {};
#pragma GCC unroll 1
  for (int64_t d = 0; d < depth; ++d, weight += vectors * 16) {
    const float* left = x + offsets[d];
    __m512 right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = _mm512_load_ps(weight + j * 16);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      // Pixels by fours share a pointer: there are not enough registers for one each.
      const __m512 value = broadcast(left + i % 4 * stride);
      if (i % 4 == 3) {
        left += 4 * stride;
        asm("" : "+r"(left));
      }
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], value, right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) write_row(sum[i], c + i * ldc, accumulate);
}

template <int rows, int vectors>
PYOPS_PAIRS void channel_kernel(int64_t depth, const float* x, const int64_t* starts, const int64_t* offsets,
                                const float* weight, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[rows][vectors] = {};
  const float* from[vectors];
  for (int j = 0; j < vectors; ++j) from[j] = x + starts[j];
#pragma GCC unroll 1
  for (int64_t d = 0; d < depth; ++d, weight += rows) {
    __m512 value[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) value[i] = broadcast(weight + i);
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      const __m512 right = _mm512_loadu_ps(from[j] + offsets[d]);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) sum[i][j] = multiply_add(sum[i][j], value[i], right);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) write_row(sum[i], c + i * ldc, accumulate);
}

template <int groups, int run, int vectors>
PYOPS_PAIRS void weight_kernel(const WeightKernelPixels& pixels, const float* x, const int64_t* offsets,
                               const int64_t* rows, const float* grad, float* c, int64_t ldc,
                               bool accumulate) {
  __m512 sum[groups * run][vectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < groups * run; ++i) {
    // c is needed when the loops are through and by then has come from the L2 cache.
    float* const to = c + (rows[i / run] + i % run) * ldc;
    __builtin_prefetch(to, 1);
    __builtin_prefetch(to + vectors * 16 - 1, 1);
  }
  const int64_t columns = pixels.columns;
  for (int64_t image = 0; image < pixels.images; ++image) {
    // Images are as far apart as of floats.
    const bfloat16* from = reinterpret_cast<const bfloat16*>(x + image * pixels.image_stride);
    for (int64_t row = 0; row < pixels.rows; ++row, from += pixels.row_stride) {
      const bfloat16* left[groups];
#pragma GCC unroll 16
      for (int g = 0; g < groups; ++g) left[g] = from + offsets[rows[g]];
      const auto add = [&](int64_t column, auto load) PYOPS_PAIRS __attribute__((always_inline)) {
        __m512 right[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) right[j] = _mm512_load_ps(grad + j * 16);
        grad += vectors * 16;
#pragma GCC unroll 16
        for (int i = 0; i < groups * run; ++i) {
          const __m512 value = load(left[i / run] + column + i % run);
#pragma GCC unroll 4
          for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], value, right[j]);
        }
      };
      int64_t column = 0;
#pragma GCC unroll 1
      for (; column + 1 < columns; column += 2) {
        // A neighbour's broadcast is not worth a register until the next pixel: the compiler must not see it.
        asm("" : "+r"(column));
        add(column, [](const bfloat16* pair) { return broadcast(pair); });
      }
      if (column < columns) {
        add(column, [](const bfloat16* one) { return _mm512_castsi512_ps(_mm512_set1_epi32(one->bits)); });
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < groups * run; ++i) write_row(sum[i], c + (rows[i / run] + i % run) * ldc, accumulate);
}

template <int rows, int vectors>
PYOPS_PAIRS void channel_gradient_kernel(const WeightKernelPixels& pixels, const float* x, int64_t stride,
                                         const float* grad, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[rows][vectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * 16 - 1, 1);
  }
  const int64_t pairs = (pixels.columns + 1) / 2, line = (pixels.row_stride + 1) / 2 * stride;
  for (int64_t image = 0; image < pixels.images; ++image) {
    for (int64_t row = 0; row < pixels.rows; ++row) {
      const float* left = x + image * pixels.image_stride + row * line;
#pragma GCC unroll 1
      for (int64_t p = 0; p < pairs; ++p, left += stride, grad += vectors * 16) {
        __m512 right[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) right[j] = _mm512_load_ps(grad + j * 16);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
          const __m512 value = broadcast(left + i);
#pragma GCC unroll 4
          for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], value, right[j]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) write_row(sum[i], c + i * ldc, accumulate);
}

// ---- tables of kernels by the number of rows, from 1 -----------------------------------------------------

template <int count>
using Numbers = std::make_integer_sequence<int, count>;

template <int vectors, int... i>
PairPixelKernel pixel_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr PairPixelKernel kernels[] = {pixel_kernel<i + 1, vectors>...};
  return kernels[rows - 1];
}

template <int vectors, int... i>
ChannelKernel<float> channel_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr ChannelKernel<float> kernels[] = {channel_kernel<i + 1, vectors>...};
  return kernels[rows - 1];
}

template <int vectors, int... i>
PairChannelGradientKernel channel_gradient_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr PairChannelGradientKernel kernels[] = {channel_gradient_kernel<i + 1, vectors>...};
  return kernels[rows - 1];
}

template <int run, int vectors, int... i>
WeightKernel<float> weight_kernel_at(int64_t groups, std::integer_sequence<int, i...>) {
  static constexpr WeightKernel<float> kernels[] = {weight_kernel<i + 1, run, vectors>...};
  return kernels[groups - 1];
}

template <int run>
WeightKernel<float> weight_kernel_from(int64_t length, int64_t groups, int64_t vectors) {
  if constexpr (run > 1) {
    if (length < run) return weight_kernel_from<run - 1>(length, groups, vectors);
  }
  constexpr Numbers<kWeights / run> all{};
  return vectors == 1 ? weight_kernel_at<run, 1>(groups, all)
                      : weight_kernel_at<run, kChannelVectors>(groups, all);
}

}  // namespace

PairPixelKernel pair_pixel_kernel_of(int64_t pixels, int64_t vectors) {
  constexpr Numbers<kPixels> all{};
  return vectors == 1 ? pixel_kernel_at<1>(pixels, all) : pixel_kernel_at<kChannelVectors>(pixels, all);
}

ChannelKernel<float> pair_channel_kernel_of(int64_t channels, int64_t vectors) {
  constexpr Numbers<kChannels> all{};
  if (vectors == 1) return channel_kernel_at<1>(channels, all);
  if (vectors == kPixelVectors) return channel_kernel_at<kPixelVectors>(channels, all);
  return channel_kernel_at<kMostPixelVectors>(channels, Numbers<kFewChannels>{});
}

WeightKernel<float> pair_weight_kernel_of(int64_t length, int64_t runs, int64_t vectors) {
  return weight_kernel_from<kMostRun>(length, runs, vectors);
}

PairChannelGradientKernel pair_channel_gradient_kernel_of(int64_t channels, int64_t vectors) {
  constexpr Numbers<kPixels> all{};
  return vectors == 1 ? channel_gradient_kernel_at<1>(channels, all)
                      : channel_gradient_kernel_at<kChannelVectors>(channels, all);
}

}  // namespace pyops::cpu

#endif
