// Dropout, and bias + activation + dropout + residual in one pass, on CUDA.
#include "cuda/dropout.cuh"
#include "cuda/epilogue/bias_gradient.cuh"

namespace pyops::cuda {
namespace {

template <class T>
void plain(const Tensor& input, const T* x, T* y, const Tensor& seed, double p, const char* op) {
  using Activation = OneActivation<math::Identity<acc_t<T>>>;
  const ReducedShape s = bias_shape(input, false, 0, op);
  const DeviceScope device(input);
  const EpilogueForward<T, Activation> work{x,
                                            nullptr,
                                            y,
                                            ChannelBias<T>::of(nullptr, s),
                                            DropoutMask<acc_t<T>>::of(seed_data(seed), p),
                                            {},
                                            is_aligned(x) && is_aligned(y)};
  launch_epilogue(work, s.inner, device.stream);
}

Tensor dropout(Tensor input, Tensor seed, double p) {
  const char* op = "dropout";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    plain<T>(input, data<T>(input), mutable_data<T>(output), seed, p, op);
  });
  return output;
}

void dropout_(Tensor input, Tensor seed, double p) {
  const char* op = "dropout_";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    plain<T>(input, data<T>(input), mutable_data<T>(input), seed, p, op);
  });
}

}  // namespace

Tensor bias_activation_dropout(const Tensor& input, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, const std::optional<Tensor>& seed,
                               double p, const math::ActivationParams& params, int64_t dim) {
  const char* op = "bias_activation_dropout_forward";
  const ReducedShape s = check_fused_forward(input, bias, residual, seed, p, params, dim, op);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    with_activation<Acc>(params, [&](const auto& activation) {
      const T *x = data<T>(input), *r = data_or_null<T>(residual);
      T* y = mutable_data<T>(output);
      const EpilogueForward<T, std::decay_t<decltype(activation)>> work{
          x,
          r,
          y,
          ChannelBias<T>::of(data_or_null<T>(bias), s),
          DropoutMask<Acc>::of(seed_data(seed), p),
          activation,
          is_aligned(x) && is_aligned(r) && is_aligned(y)};
      launch_epilogue(work, s.rows() * s.classes, device.stream);
    });
  });
  return output;
}

namespace {

// The gradients that are needed: of the input, of the bias.
std::tuple<Tensor, Tensor> fused_backward(const Tensor& grad_output, const std::optional<Tensor>& saved,
                                          const std::optional<Tensor>& bias,
                                          const std::optional<Tensor>& seed, double p,
                                          const math::ActivationParams& params, int64_t dim,
                                          bool saved_is_output, bool needs_input, bool needs_bias) {
  const char* op = "bias_activation_dropout_backward";
  const ReducedShape s =
      check_fused_backward(grad_output, saved, bias, seed, p, params, dim, saved_is_output, needs_bias, op);
  const DeviceScope device(grad_output);
  const ScalarType type = grad_output.scalar_type();
  Tensor grad_input =
      new_tensor(grad_output, needs_input ? shape_of(grad_output) : std::vector<int64_t>{0}, type);
  Tensor grad_bias = new_tensor(grad_output, {needs_bias ? s.classes : 0}, type);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    with_activation<Acc>(params, [&](const auto& activation) {
      const T *g = data<T>(grad_output), *kept = data_or_null<T>(saved);
      T* dx = needs_input ? mutable_data<T>(grad_input) : nullptr;
      const EpilogueBackward<T, std::decay_t<decltype(activation)>> work{
          g,
          kept,
          dx,
          ChannelBias<T>::of(data_or_null<T>(bias), s),
          DropoutMask<Acc>::of(seed_data(seed), p),
          activation,
          saved_is_output,
          is_aligned(g) && is_aligned(kept) && is_aligned(dx)};
      if (needs_bias) {
        launch_with_bias_gradient(work, s, grad_output, mutable_data<T>(grad_bias), device.stream);
      } else {
        launch_epilogue(work, s.rows() * s.classes, device.stream);
      }
    });
  });
  return {grad_input, grad_bias};
}

}  // namespace

std::tuple<Tensor, Tensor> bias_activation_dropout_gradients(
    const Tensor& grad_output, const std::optional<Tensor>& saved, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& seed, double p, const math::ActivationParams& params, int64_t dim,
    bool saved_is_output, bool needs_bias) {
  return fused_backward(grad_output, saved, bias, seed, p, params, dim, saved_is_output, true, needs_bias);
}

Tensor bias_gradient(const Tensor& grad_output, int64_t dim) {
  return std::get<1>(
      fused_backward(grad_output, std::nullopt, std::nullopt, std::nullopt, 0.0, {}, dim, true, false, true));
}

namespace {

Tensor bias_activation_dropout_forward(Tensor input, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, std::optional<Tensor> seed, double p,
                                       int64_t kind, double alpha, double beta, int64_t dim) {
  return bias_activation_dropout(input, bias, residual, seed, p, {kind, alpha, beta}, dim);
}

std::tuple<Tensor, Tensor> bias_activation_dropout_backward(
    Tensor grad_output, std::optional<Tensor> saved, std::optional<Tensor> bias, std::optional<Tensor> seed,
    double p, int64_t kind, double alpha, double beta, int64_t dim, bool saved_is_output, bool needs_bias) {
  return bias_activation_dropout_gradients(grad_output, saved, bias, seed, p, {kind, alpha, beta}, dim,
                                           saved_is_output, needs_bias);
}

}  // namespace

}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("dropout", TORCH_BOX(&pyops::cuda::dropout));
  m.impl("dropout_", TORCH_BOX(&pyops::cuda::dropout_));
  m.impl("bias_activation_dropout_forward", TORCH_BOX(&pyops::cuda::bias_activation_dropout_forward));
  m.impl("bias_activation_dropout_backward", TORCH_BOX(&pyops::cuda::bias_activation_dropout_backward));
}
