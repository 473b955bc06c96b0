// The convolution in bfloat16 by VDPBF16PS, an instruction that multiplies two pairs in every lane and adds
// both products to a float32 sum: twice the multiplications of a float32 vector, and nothing is widened.
//
// A pair is 4 bytes and passes for one float: packed inputs, panels and tables of offsets are those of
// direct/direct.h and direct/weight_gradient.h, of half as many terms. Two neighbouring input channels make a
// pair in the correlation, two neighbouring pixels in the weight gradient. The instruction takes subnormal
// numbers for zeros; torch uses it as well.
#pragma once

#include <cstdint>

#include "cpu/conv2d/microkernels.h"

namespace pyops::cpu {

// The micro-kernels of microkernels.h on pairs. Pixels may be `stride` apart. The packed input of the weight
// gradient has single elements, any two neighbours of which are a pair; a row's last one may be without.
using PairPixelKernel = void (*)(int64_t depth, const float* x, int64_t stride, const int64_t* offsets,
                                 const float* weight, float* c, int64_t ldc, bool accumulate);
PairPixelKernel pair_pixel_kernel_of(int64_t pixels, int64_t vectors);
ChannelKernel<float> pair_channel_kernel_of(int64_t channels, int64_t vectors);
WeightKernel<float> pair_weight_kernel_of(int64_t length, int64_t runs, int64_t vectors);

// c[i, channel] (+)= sum over pixels of x[pixel, i] * grad[pixel, channel] where both are pairs of pixels,
// those of x `stride` apart and each row's beginning with a pair of its own: for a kernel of one tap.
using PairChannelGradientKernel = void (*)(const WeightKernelPixels& pixels, const float* x, int64_t stride,
                                           const float* grad, float* c, int64_t ldc, bool accumulate);
// Of 1 ... kPixels channels of x and 1 or kChannelVectors vectors.
PairChannelGradientKernel pair_channel_gradient_kernel_of(int64_t channels, int64_t vectors);

}  // namespace pyops::cpu
