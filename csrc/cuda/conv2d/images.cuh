// Images as tensors of torch: [N, C, H, W] in one of the two memory formats.
#pragma once

#include "binding/conv2d.h"

namespace pyops::cuda {

// An uninitialised one.
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
