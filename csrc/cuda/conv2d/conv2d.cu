// Two-dimensional convolution on CUDA: the ops.
//
// Forward is one correlation with everything that follows it. Backward first forms the gradient of the
// activation's input and the bias's gradient, in one pass. The data gradient and the weight gradient then
// read that gradient by asynchronous copies, which could not look at the activation's output on the way.
#include "binding/matmul.h"
#include "cuda/conv2d/algorithms.cuh"
#include "cuda/conv2d/images.cuh"
#include "cuda/dropout.cuh"

namespace pyops::cuda {

bool conv2d_allows_tf32() { return ask("pyops::conv2d_allows_tf32"); }

namespace {

using Axes = std::vector<math::CorrelationAxis>;

int take_phases(const Axes& axes, size_t first, ConvPhase* phases) {
  const size_t count = std::min<size_t>(kMaxPhases, axes.size() - first);
  for (size_t p = 0; p < count; ++p) phases[p] = ConvPhase::of(axes[first + p]);
  return static_cast<int>(count);
}

// Runs the problem for every phase of the two axes, as many in a launch as it can take.
template <class T>
void correlate(const Axes& h, const Axes& w, CorrelationProblem<T> problem) {
  const auto& algorithm = algorithm_for(kCorrelations<T>, problem);
  Correlation& c = problem.correlation;
  problem.epilogue.channels_inner = c.target.channel == 1;
  for (size_t i = 0; i < h.size(); i += kMaxPhases) {
    for (size_t j = 0; j < w.size(); j += kMaxPhases) {
      c.phases_down = take_phases(h, i, c.down);
      c.phases_across = take_phases(w, j, c.across);
      algorithm.run(problem);
    }
  }
}

template <class T>
void run_forward(const Conv2dShape& s, const Tensor& input, const Tensor& weight,
                 const ConvEpilogue<T>& epilogue, cudaStream_t stream) {
  check_narrow(s, "conv2d");
  const Axes h{math::forward_axis(s.height)}, w{math::forward_axis(s.width)};
  const ConvOperand<T> operand = input_operand<T>(s, input, stream);
  const ImageStrides target =
      ImageStrides::of(s.out_channels, s.height.output(), s.width.output(), s.channels_last);
  correlate<T>(
      h, w,
      {s, conv_correlation(s, h[0], w[0], s.out_channels / s.groups, target), operand.source, weight,
       weight_strides(s, is_channels_last(weight), false), s.in_channels / s.groups, epilogue, stream});
}

template <class T>
void run_input_gradient(const Conv2dShape& s, const ConvSource<T>& grad, const Tensor& weight,
                        const Tensor& grad_input, cudaStream_t stream) {
  check_narrow(s, "conv2d");
  const Axes h = math::gradient_axes(s.height), w = math::gradient_axes(s.width);
  if (h.empty() || w.empty()) return;
  const ImageStrides target =
      ImageStrides::of(s.in_channels, s.height.input, s.width.input, is_channels_last(grad_input));
  ConvEpilogue<T> epilogue{};
  epilogue.output = mutable_data<T>(grad_input);
  correlate<T>(
      h, w,
      {s, conv_correlation(s, h[0], w[0], s.in_channels / s.groups, target), grad, weight,
       weight_strides(s, is_channels_last(weight), true), s.out_channels / s.groups, epilogue, stream});
}

template <class T>
void run_weight_gradient(const Conv2dShape& s, const ConvSource<T>& grad, const Tensor& input,
                         const Tensor& grad_weight, cudaStream_t stream) {
  const char* op = "conv2d_backward";
  check_narrow(s, op);
  const ConvOperand<T> operand = input_operand<T>(s, input, stream);
  const int64_t plane = s.height.output() * s.width.output();
  const int64_t terms = s.height.kernel * s.width.kernel * operand.source.channels;
  constexpr int64_t kLimit = int64_t{1} << 30;
  PYOPS_CHECK(plane < kLimit && terms < kLimit, op,
              ": an image must have less than 2^30 pixels and an output less than 2^30 terms, got ", plane,
              " and ", terms);
  const WeightGradientProblem<T> problem{s, grad, operand.source, grad_weight, stream};
  algorithm_for(kWeightGradients<T>, problem).run(problem);
}

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
    run_forward<T>(shape, input, weight, epilogue, device.stream);
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
  PYOPS_CHECK(identity || saved, op, ": saved must be given for an activation");
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
    const ConvOperand<T> grad = gradient_operand<T>(shape, gradient, device.stream);
    if (needs_input) run_input_gradient<T>(shape, grad.source, weight, grad_input, device.stream);
    if (needs_weight) run_weight_gradient<T>(shape, grad.source, input, grad_weight, device.stream);
  });
  return {grad_input, grad_weight, grad_bias, needs_residual ? gradient : none};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("conv2d_forward", TORCH_BOX(&pyops::cuda::conv2d_forward));
  m.impl("conv2d_backward", TORCH_BOX(&pyops::cuda::conv2d_backward));
}
