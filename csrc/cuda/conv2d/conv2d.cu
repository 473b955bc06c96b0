// Two-dimensional convolution on CUDA: the ops.
//
// Forward is one product with everything that follows it. Backward first forms the gradient of the
// activation's input and the bias's gradient, in one pass; the two other products then copy their operands
// asynchronously, which no gate between memory and tile would allow. A rule that hands some shapes to the
// vendor's library, followed by one fused pass, would stand in conv2d_forward and conv2d_backward; there is
// none, because none was measured.
#include "binding/matmul.h"
#include "cuda/conv2d/conv2d.cuh"
#include "cuda/dropout.cuh"

namespace pyops::cuda {

bool conv2d_allows_tf32() { return ask("pyops::conv2d_allows_tf32"); }

namespace {

std::tuple<Tensor, Tensor> conv2d_forward(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> residual, std::vector<int64_t> stride,
                                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                          int64_t groups, int64_t kind, double alpha, double beta,
                                          bool save_input_of_activation) {
  const char* op = "conv2d_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  check_bias(bias, op, input, shape);
  check_like_output(residual, op, "residual", input, shape);
  const DeviceScope device(input);
  Tensor output = new_image(input, shape.output(), shape.channels_last);
  Tensor saved = save_input_of_activation ? new_image(input, shape.output(), shape.channels_last)
                                          : new_tensor(input, {0}, input.scalar_type());
  if (output.numel() == 0) return {output, saved};
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    ConvEpilogue<T> epilogue{};
    epilogue.bias = data_or_null<T>(bias);
    epilogue.residual = data_or_null<T>(residual);
    epilogue.saved = save_input_of_activation ? mutable_data<T>(saved) : nullptr;
    epilogue.output = mutable_data<T>(output);
    epilogue.activation = {params};
    conv2d_output<T>(shape, input, weight, epilogue, device.stream);
  });
  return {output, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv2d_backward(
    Tensor grad_output, Tensor input, Tensor weight, std::optional<Tensor> saved, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, int64_t kind, double alpha,
    double beta, bool saved_is_output, bool needs_input, bool needs_weight, bool needs_bias,
    bool needs_residual) {
  const char* op = "conv2d_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  const bool identity = params.is(math::ActivationKind::kIdentity);
  check_like_output(grad_output, op, "grad_output", input, shape);
  STD_TORCH_CHECK(identity || saved, op, ": saved must be given for an activation");
  if (!identity) check_like_output(saved, op, "saved", input, shape);
  const DeviceScope device(input);
  const Tensor none = new_tensor(input, {0}, input.scalar_type());
  Tensor gradient = grad_output, grad_bias = none;
  const bool last = shape.channels_last;
  if (!identity || needs_residual) {
    const std::optional<Tensor> kept =
        identity ? std::nullopt : std::optional<Tensor>(contiguous_view(*saved, last));
    const auto [dz, sums] = bias_activation_dropout_gradients(contiguous_view(grad_output, last), kept,
                                                              std::nullopt, std::nullopt, 0.0, params,
                                                              channel_dim(last), saved_is_output, needs_bias);
    gradient = last ? torch::stable::transpose(torch::stable::transpose(dz, 1, 3), 2, 3) : dz;
    if (needs_bias) grad_bias = sums;
  } else if (needs_bias) {
    grad_bias = bias_gradient(contiguous_view(grad_output, last), channel_dim(last));
  }
  Tensor grad_input = needs_input ? new_image(input, shape.input(), is_channels_last(input)) : none;
  Tensor grad_weight = needs_weight ? new_image(weight, shape.weight(), is_channels_last(weight)) : none;
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (!needs_input && !needs_weight) return;
    const ConvOperand<T> grad = conv2d_gradient_operand<T>(shape, gradient, device.stream);
    if (needs_input) conv2d_input_gradient<T>(shape, grad, weight, grad_input, device.stream);
    if (needs_weight) conv2d_weight_gradient<T>(shape, grad, input, grad_weight, device.stream);
  });
  return {grad_input, grad_weight, grad_bias, needs_residual ? gradient : none};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("conv2d_forward", TORCH_BOX(&pyops::cuda::conv2d_forward));
  m.impl("conv2d_backward", TORCH_BOX(&pyops::cuda::conv2d_backward));
}
