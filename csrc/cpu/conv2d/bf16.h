// The convolution in bfloat16 by VDPBF16PS, an instruction that multiplies two pairs in every lane and adds
// both products to a float32 sum: twice the multiplications of a float32 vector, and nothing is widened.
//
// A pair is 4 bytes and passes for one float: slabs, panels and tables of offsets are those of
// correlate.h and weight.h, of half as many terms. What makes a pair is two neighbouring input
// channels in the correlation and two neighbouring pixels in the weight gradient. The instruction takes
// subnormal numbers for zeros; torch uses it as well.
#pragma once

#include <cstdint>

#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/output.h"
#include "cpu/conv2d/taps.h"

namespace pyops::cpu {

// Whether the CPU has the instruction. The environment variable PYOPS_AVX512_BF16=0 takes it away, for tests.
bool multiplies_pairs();

// Correlates as correlate() does; false, and nothing is done, where pairs do not suit.
bool correlate_pairs(const ImageSource<bfloat16>& x, const ConvWeights<bfloat16>& weights,
                     const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
                     TileSink<bfloat16>& sink, int64_t images);

// Writes the gradients, either of which may be null; false, and nothing is done, where pairs do not suit.
bool weight_gradient_of_pairs(const ImageSource<bfloat16>& x, const ImageSource<bfloat16>& grad,
                              const ConvWeights<bfloat16>& weights, const math::CorrelationAxis& h,
                              const math::CorrelationAxis& w, int64_t images, bfloat16* weight,
                              bfloat16* bias);

// The micro-kernels of microkernels.h on pairs. Pixels may be `stride` apart. The slab of the weight
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
