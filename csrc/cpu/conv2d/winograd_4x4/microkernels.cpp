// The micro-kernels that microkernels.h describes.
#include "cpu/conv2d/winograd_4x4/microkernels.h"

#include <utility>

#include "cpu/simd/vec.h"

namespace pyops::cpu {
namespace {

constexpr int64_t n = Vec<float>::kLanes, kAhead = 8;

template <bool rows_apart, int rows, int vectors>
void matrix_kernel(int64_t depth, const float* x, int64_t stride, const float* right, float* c, int64_t ldc,
                   bool accumulate) {
  using Native = Vec<float>::Native;
  Native sum[rows][vectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {  // c is needed when the loop is through
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * n - 1, 1);
  }
#pragma GCC unroll 1
  for (int64_t d = 0; d < depth; ++d, right += vectors * n) {
    const float* left = x;
    x += rows_apart ? 1 : stride;
    if (!rows_apart) {  // the prefetcher does not follow rows of which some elements are read
      __builtin_prefetch(left + kAhead * stride);
      __builtin_prefetch(left + kAhead * stride + rows - 1);
    }
    Native row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = load<float>(right + j * n).v;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      // Rows by fours share a pointer: there are not enough registers for one each.
      const Native value = (rows_apart ? left[i % 4 * stride] : left[i]) - Native{};
      if (rows_apart && i % 4 == 3) {
        left += 4 * stride;
        asm("" : "+r"(left));
      }
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += value * row[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* const to = c + i * ldc + j * n;
      store(to, Vec<float>(accumulate ? sum[i][j] + load<float>(to).v : sum[i][j]));
    }
  }
}

template <bool rows_apart, int vectors, int... i>
MatrixKernel matrix_kernel_at(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr MatrixKernel kernels[] = {matrix_kernel<rows_apart, i + 1, vectors>...};
  return kernels[rows - 1];
}

template <bool rows_apart>
MatrixKernel matrix_kernel_of(int64_t rows, int64_t vectors) {
  constexpr std::make_integer_sequence<int, kPixels> all{};
  return vectors == 1 ? matrix_kernel_at<rows_apart, 1>(rows, all)
                      : matrix_kernel_at<rows_apart, kChannelVectors>(rows, all);
}

}  // namespace

MatrixKernel rows_kernel_of(int64_t rows, int64_t vectors) { return matrix_kernel_of<true>(rows, vectors); }
MatrixKernel terms_kernel_of(int64_t rows, int64_t vectors) { return matrix_kernel_of<false>(rows, vectors); }

}  // namespace pyops::cpu
