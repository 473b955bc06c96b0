// The convolution's three products, for the ops that are made of them. T is a tensor's element type.
#pragma once

#include "cuda/conv2d/layout.cuh"

namespace pyops::cuda {

// Whether torch lets convolutions of float32 round their factors to TF32 (conv2d.cu).
bool conv2d_allows_tf32();

// Whether a group has too few channels for a product of tiles (direct.cu).
inline bool conv2d_is_direct(const Conv2dShape& s) {
  constexpr int64_t kFewFactors = 16;
  return s.in_channels / s.groups * (s.out_channels / s.groups) <= kFewFactors;
}

// Whether the products gather the input's elements where they lie instead of reading packs of a copy.
template <class T>
bool conv2d_gathers(const Conv2dShape& s) {
  constexpr int64_t kFewChannels = 8;
  return conv2d_is_direct(s) || (sizeof(T) < 8 && s.in_channels / s.groups <= kFewChannels);
}

// What direct.cu does of the functions below: the correlation's phases, and the weight gradient's
// parts [parts, outputs, taps, inputs].
template <class T>
void conv2d_direct(const Correlation& c, const ConvSource<T>& source, const Tensor& weight,
                   const WeightStrides& strides, int64_t inputs, const ConvEpilogue<T>& epilogue,
                   cudaStream_t stream);
template <class T>
Tensor conv2d_direct_weight_sums(const Conv2dShape& shape, const ConvSource<T>& grad,
                                 const ConvSource<T>& source, const Tensor& like, cudaStream_t stream);

// The output of `shape`, with what follows it.
template <class T>
void conv2d_output(const Conv2dShape& shape, const Tensor& input, const Tensor& weight,
                   ConvEpilogue<T> epilogue, cudaStream_t stream);

// The gradient of the output as the two functions below read it.
template <class T>
ConvOperand<T> conv2d_gradient_operand(const Conv2dShape& shape, const Tensor& grad, cudaStream_t stream) {
  return conv_operand<T>(grad, shape.channels_last, shape.groups, conv2d_is_direct(shape), stream);
}

template <class T>
void conv2d_input_gradient(const Conv2dShape& shape, const ConvOperand<T>& grad, const Tensor& weight,
                           const Tensor& grad_input, cudaStream_t stream);
template <class T>
void conv2d_weight_gradient(const Conv2dShape& shape, const ConvOperand<T>& grad, const Tensor& input,
                            const Tensor& grad_weight, cudaStream_t stream);

// An uninitialised image [N, C, H, W] in one of the two formats.
inline Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape, bool channels_last,
                        ScalarType type) {
  if (!channels_last) return new_tensor(like, shape, type);
  Tensor t = new_tensor(like, {shape[0], shape[2], shape[3], shape[1]}, type);
  return torch::stable::transpose(torch::stable::transpose(t, 1, 3), 2, 3);
}

inline Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape, bool channels_last) {
  return new_image(like, shape, channels_last, like.scalar_type());
}

// The same memory as a contiguous tensor, and where its channels are then.
inline Tensor contiguous_view(const Tensor& image, bool channels_last) {
  if (!channels_last) return image;
  return torch::stable::transpose(torch::stable::transpose(image, 2, 3), 1, 3);
}
inline int64_t channel_dim(bool channels_last) { return channels_last ? 3 : 1; }

}  // namespace pyops::cuda
