// Checks of the convolution that is pooled, on every device; the contract is in
// pyops/ops/conv2d_max_pool2d.py.
#pragma once

#include "binding/conv2d.h"
#include "binding/pooling.h"

namespace pyops {

// In argmax: no element of the window gets a gradient.
constexpr int64_t kNoGradient = 255;

// Whether backward needs neither input nor output of the activation: argmax tells all.
inline bool keeps_nothing(const math::ActivationParams& params) {
  return params.is(math::ActivationKind::kIdentity) || params.is(math::ActivationKind::kRelu);
}

inline Windows check_pool(const Sizes& conv_size, const Sizes& kernel, const Sizes& stride,
                          const Sizes& padding, const Sizes& dilation, bool ceil_mode, const char* op) {
  const Windows windows = Windows::of(conv_size, kernel, stride, padding, dilation, ceil_mode, op);
  PYOPS_CHECK(windows.positions() <= kMaxBytePositions, op, ": pool_kernel must have at most ",
              kMaxBytePositions, " positions, got ", shape_string(kernel));
  return windows;
}

// What backward works on. Images are [N, C, H, W] in torch's order, in either memory format.
struct PooledGradient {
  Windows windows;
  int64_t images;
  int64_t channels;
  bool channels_last;

  Sizes conv_shape() const { return {images, channels, windows.height().in, windows.width().in}; }
  // Of the pooled tensors.
  Image image() const {
    const int64_t height = windows.height().out, width = windows.width().out;
    if (channels_last) return {images, height, width, channels, {images, height, width, channels}, true};
    return {images * channels, height, width, 1, {images * channels, height, width}, false};
  }
};

inline PooledGradient check_pooled_gradient(const Tensor& grad_output, const Tensor& argmax,
                                            const std::optional<Tensor>& saved,
                                            const math::ActivationParams& params, const Windows& windows,
                                            const char* op) {
  check_floating(grad_output, op, "grad_output");
  check_image(grad_output, op, "grad_output", grad_output);
  check_activation_kind(params, op);
  const int64_t images = grad_output.size(0), channels = grad_output.size(1);
  const Sizes shape{images, channels, windows.height().out, windows.width().out};
  check_shape(grad_output, op, "grad_output", shape);
  check_type(argmax, op, "argmax", ScalarType::Byte);
  check_shape(argmax, op, "argmax", shape);
  const bool channels_last = is_channels_last(argmax);
  const auto check_format = [&](const Tensor& t, const char* name) {
    PYOPS_CHECK(same_device(t, grad_output), op, ": ", name, " must be on the device of the first tensor");
    PYOPS_CHECK(channels_last ? has_channels_last(t) : t.is_contiguous(), op, ": ", name, " must be ",
                channels_last ? "channels_last, as argmax is" : "contiguous");
  };
  check_format(grad_output, "grad_output");
  check_format(argmax, "argmax");
  if (!keeps_nothing(params)) {
    PYOPS_CHECK(saved, op, ": saved must be given for this activation");
    check_type(*saved, op, "saved", grad_output.scalar_type());
    check_shape(*saved, op, "saved", shape);
    check_format(*saved, "saved");
  }
  return {windows, images, channels, channels_last};
}

}  // namespace pyops
