// Activations on CUDA.
#include "binding/activation.h"
#include "cuda/device/elementwise.cuh"
#include "cuda/device/tensor.cuh"

namespace pyops::cuda {
namespace {

void forward_into(const Tensor& input, Tensor& output, const math::ActivationParams& params, const char* op) {
  const DeviceScope device(input);
  dispatch_typed_activation(input.scalar_type(), params, op, [&](auto tag, const auto& functor) {
    using T = decltype(tag);
    const math::Forward<std::decay_t<decltype(functor)>> f{functor};
    elementwise(input.numel(), device.stream, f, mutable_data<T>(output), data<T>(input));
  });
}

Tensor activation_forward(Tensor input, int64_t kind, double alpha, double beta) {
  const char* op = "activation_forward";
  check_packed(input, op, "input", input);
  const DeviceScope device(input);
  Tensor output = new_tensor_like(input);
  forward_into(input, output, {kind, alpha, beta}, op);
  return output;
}

void activation_forward_(Tensor input, int64_t kind, double alpha, double beta) {
  const char* op = "activation_forward_";
  check_packed(input, op, "input", input);
  forward_into(input, input, {kind, alpha, beta}, op);
}

Tensor activation_backward(Tensor grad_output, Tensor saved, int64_t kind, double alpha, double beta,
                           bool saved_is_output) {
  const char* op = "activation_backward";
  check_activation_backward(grad_output, saved, op);
  const DeviceScope device(saved);
  Tensor grad_input = new_tensor_like(saved);
  dispatch_activation_derivative(
      saved.scalar_type(), {kind, alpha, beta}, saved_is_output, op, [&](auto tag, const auto& derivative) {
        using T = decltype(tag);
        elementwise(saved.numel(), device.stream, derivative, mutable_data<T>(grad_input), data<T>(saved),
                    data<T>(grad_output));
      });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("activation_forward", TORCH_BOX(&pyops::cuda::activation_forward));
  m.impl("activation_forward_", TORCH_BOX(&pyops::cuda::activation_forward_));
  m.impl("activation_backward", TORCH_BOX(&pyops::cuda::activation_backward));
}
