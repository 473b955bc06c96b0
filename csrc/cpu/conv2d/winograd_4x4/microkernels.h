// Micro-kernels of Winograd's F(4 x 4, 3 x 3): products of matrices whose left one is transposed or not.
#pragma once

#include <cstdint>

#include "cpu/conv2d/microkernels.h"

namespace pyops::cpu {

// c[i, channel] (+)= sum_d x[i * row + d * term] * right[d, channel] for vectors of channels. One of `row`
// and `term` is 1.
using MatrixKernel = void (*)(int64_t depth, const float* x, int64_t stride, const float* right, float* c,
                              int64_t ldc, bool accumulate);
// Of 1 ... kPixels rows, `stride` apart, and 1 or kChannelVectors vectors; terms are neighbours.
MatrixKernel rows_kernel_of(int64_t rows, int64_t vectors);
// Rows are neighbours and terms are `stride` apart.
MatrixKernel terms_kernel_of(int64_t rows, int64_t vectors);

}  // namespace pyops::cpu
