// Checks of the two-dimensional convolution that hold on every device.
#pragma once

#include "binding/activation.h"
#include "binding/tensor.h"
#include "math/conv2d.h"

namespace pyops {

struct Conv2dShape {
  int64_t images;
  int64_t in_channels;
  int64_t out_channels;
  int64_t groups;
  math::ConvAxis height;
  math::ConvAxis width;
  bool channels_last;  // of the output

  std::vector<int64_t> input() const { return {images, in_channels, height.input, width.input}; }
  std::vector<int64_t> output() const { return {images, out_channels, height.output(), width.output()}; }
  std::vector<int64_t> weight() const {
    return {out_channels, in_channels / groups, height.kernel, width.kernel};
  }
};

// Dense with the channels last in memory; of some shapes, a tensor may be contiguous as well.
inline bool has_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  int64_t expected = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// Whether outputs have the channels last because this dense tensor has. Where both formats are the same in
// memory, the strides tell what the tensor was made as; torch goes by them, too.
inline bool is_channels_last(const Tensor& t) {
  if (!has_channels_last(t)) return false;
  return !t.is_contiguous() ||
         (t.stride(1) == 1 && t.stride(3) == t.size(1) && t.size(1) * t.size(2) * t.size(3) > 1);
}

// A 4-D tensor, contiguous or channels_last, of the dtype and on the device of `like`.
inline void check_image(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  PYOPS_CHECK(same_device(t, like), op, ": ", name, " must be on the device of the first tensor");
  check_type(t, op, name, like.scalar_type());
  PYOPS_CHECK(t.dim() == 4, op, ": ", name, " must have 4 dimensions, got shape ", shape_string(t));
  PYOPS_CHECK(t.is_contiguous() || has_channels_last(t), op, ": ", name,
              " must be contiguous or channels_last");
}

inline math::ConvAxis conv_axis(const char* op, int64_t input, int64_t kernel, int64_t stride,
                                int64_t padding, int64_t dilation) {
  // Keeps every sum and product below within 64 bits; more than any memory holds.
  constexpr int64_t kLimit = int64_t{1} << 30;
  PYOPS_CHECK(stride >= 1 && stride < kLimit, op, ": stride must be at least 1, got ", stride);
  PYOPS_CHECK(dilation >= 1 && dilation < kLimit, op, ": dilation must be at least 1, got ", dilation);
  PYOPS_CHECK(padding >= 0 && padding < kLimit, op, ": padding must be at least 0, got ", padding);
  PYOPS_CHECK(kernel >= 1 && kernel < kLimit, op, ": the kernel's sides must be at least 1, got ", kernel);
  const math::ConvAxis axis{input, kernel, stride, padding, dilation};
  PYOPS_CHECK(axis.extent() <= input + 2 * padding, op, ": the kernel, ", axis.extent(),
              " with its dilation, must fit into the padded input's ", input + 2 * padding);
  return axis;
}

inline Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                int64_t groups, const math::ActivationParams& params, const char* op) {
  check_image(input, op, "input", input);
  check_image(weight, op, "weight", input);
  PYOPS_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
              ": stride, padding and dilation must be two numbers each");
  PYOPS_CHECK(groups >= 1 && weight.size(0) >= 1 && weight.size(0) % groups == 0, op,
              ": groups must divide the output channels, ", weight.size(0), ", got ", groups);
  PYOPS_CHECK(weight.size(1) >= 1 && input.size(1) % groups == 0 && input.size(1) / groups == weight.size(1),
              op, ": input must have ", weight.size(1), " channels in each of ", groups,
              " groups, got shape ", shape_string(input));
  check_activation_kind(params, op);
  return {input.size(0),
          input.size(1),
          weight.size(0),
          groups,
          conv_axis(op, input.size(2), weight.size(2), stride[0], padding[0], dilation[0]),
          conv_axis(op, input.size(3), weight.size(3), stride[1], padding[1], dilation[1]),
          is_channels_last(input) || is_channels_last(weight)};
}

inline void check_bias(const std::optional<Tensor>& bias, const char* op, const Tensor& input,
                       const Conv2dShape& shape) {
  if (!bias) return;
  check_dense(*bias, op, "bias", input);
  check_type(*bias, op, "bias", input.scalar_type());
  check_shape(*bias, op, "bias", {shape.out_channels});
}

// An optional tensor of the output's shape, dtype and memory format.
inline void check_like_output(const std::optional<Tensor>& t, const char* op, const char* name,
                              const Tensor& like, const Conv2dShape& shape) {
  if (!t) return;
  check_image(*t, op, name, like);
  check_shape(*t, op, name, shape.output());
  PYOPS_CHECK(shape.channels_last ? has_channels_last(*t) : t->is_contiguous(), op, ": ", name,
              " must be in the output's memory format, ",
              shape.channels_last ? "channels_last" : "contiguous");
}

}  // namespace pyops
