// Two-dimensional convolution on the CPU.
#include "cpu/conv2d/conv2d.h"

#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv2d/packed_weights.h"
#include "cpu/epilogue/activation.h"

namespace pyops::cpu {
namespace {

// The output and, if it is to be saved, the activation's input.
std::tuple<Tensor, Tensor> form_output(const Tensor& input, const Tensor& weight,
                                       const std::optional<Tensor>& bias,
                                       const std::optional<Tensor>& residual, const Conv2dShape& shape,
                                       const math::ActivationParams& params, bool save_input_of_activation,
                                       PackedWeights* packed, const char* op) {
  check_bias(bias, op, input, shape);
  check_like_output(residual, op, "residual", input, shape);
  Tensor output = new_image(input, shape.output(), shape.channels_last);
  Tensor saved = save_input_of_activation ? new_image(input, shape.output(), shape.channels_last)
                                          : new_tensor(input, {0}, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const std::vector<acc_t<T>> wide_bias = widened<T>(bias);
    math::dispatch_activation<acc_t<T>>(params, [&](const auto& activation) {
      ActivationEpilogue<T, std::decay_t<decltype(activation)>> rows(activation);
      rows.bias = bias ? wide_bias.data() : nullptr;
      rows.residual = data_or_null<T>(residual);
      rows.activation_input = save_input_of_activation ? mutable_data<T>(saved) : nullptr;
      rows.output = mutable_data<T>(output);
      const Conv2d<T> conv(flattened(shape), input, weight);
      ImageEpilogue<T> epilogue(rows, conv.output(mutable_data<T>(output)));
      CorrelationProblem<T> problem = conv.forward(&epilogue);
      problem.packed = packed;
      solve(problem);
    });
  });
  return {output, saved};
}

std::tuple<Tensor, Tensor> conv2d_forward(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> residual, std::vector<int64_t> stride,
                                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                          int64_t groups, int64_t kind, double alpha, double beta,
                                          bool save_input_of_activation) {
  const char* op = "conv2d_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  return form_output(input, weight, bias, residual, shape, params, save_input_of_activation, nullptr, op);
}

// The weight, packed for inputs of this shape and format; empty if that does not pay or nothing is packed.
Tensor conv2d_pack_weight(Tensor input, Tensor weight, std::vector<int64_t> stride,
                          std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  const char* op = "conv2d_pack_weight";
  // Of each weight, with so many outputs, packing is a hundredth of the work.
  constexpr int64_t kMostOutputs = 4096;
  const math::ActivationParams none{static_cast<int64_t>(math::ActivationKind::kIdentity), 0, 0};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, none, op);
  Tensor bytes = new_tensor(input, {0}, ScalarType::Byte);
  if (shape.images * shape.height.output() * shape.width.output() > kMostOutputs) return bytes;
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const Conv2d<T> conv(flattened(shape), input, weight);
    const ActivationEpilogue<T, math::Identity<acc_t<T>>> rows{{}};
    ImageEpilogue<T> epilogue(rows, conv.output(nullptr));
    CorrelationProblem<T> problem = conv.forward(&epilogue);
    PackedWeights packed{PackedWeights::Use::kMeasure};
    problem.packed = &packed;
    if (!algorithm_for(problem).packs) return;
    solve(problem);
    bytes = new_output(input, {packed.bytes}, ScalarType::Byte);
    packed.use = PackedWeights::Use::kFill;
    packed.memory = bytes.mutable_data_ptr();
    if (packed.bytes > 0) solve(problem);
  });
  return bytes;
}

// conv2d_forward with a weight that conv2d_pack_weight has packed. Says whether it was of use: it is not if
// the problem or the weight is another. The weight is not looked at if it is said to be unchanged.
std::tuple<Tensor, bool> conv2d_packed_forward(Tensor input, Tensor weight, Tensor packed_weight,
                                               std::optional<Tensor> bias, std::optional<Tensor> residual,
                                               std::vector<int64_t> stride, std::vector<int64_t> padding,
                                               std::vector<int64_t> dilation, int64_t groups, int64_t kind,
                                               double alpha, double beta, bool unchanged) {
  const char* op = "conv2d_packed_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  PYOPS_CHECK(packed_weight.scalar_type() == ScalarType::Byte && packed_weight.is_contiguous(), op,
              ": packed_weight must be contiguous bytes");
  PackedWeights packed{PackedWeights::Use::kRead, packed_weight.mutable_data_ptr(), packed_weight.numel()};
  packed.unchanged = unchanged;
  Tensor output = std::get<0>(form_output(input, weight, bias, residual, shape, params, false, &packed, op));
  return {output, packed.was_read};
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
  // A new one each time: no two outputs may be one tensor.
  const auto none = [&] { return new_tensor(input, {0}, input.scalar_type()); };
  // ReLU's gradient is formed where it is read; what takes longer is formed once.
  const bool reads_relu_output = params.is(math::ActivationKind::kRelu) && saved_is_output && !needs_residual;
  const bool formed = (!identity && !reads_relu_output) || needs_residual;
  Tensor gradient = formed ? new_image(input, shape.output(), shape.channels_last) : grad_output;
  Tensor grad_input = needs_input ? new_image(input, shape.input(), is_channels_last(input)) : none();
  Tensor grad_weight = needs_weight ? new_image(weight, shape.weight(), is_channels_last(weight)) : none();
  Tensor grad_bias = needs_bias ? new_tensor(input, {shape.out_channels}, input.scalar_type()) : none();
  if (formed) {
    activation_gradient(grad_output, identity ? grad_output : *saved, params, identity || saved_is_output, op,
                        gradient);
  }
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const T* const grad = data<T>(gradient);
    const T* const relu_output = reads_relu_output ? data<T>(*saved) : nullptr;
    const Conv2d<T> conv(flattened(shape), input, weight);
    if (needs_input && conv.has_input()) {
      ActivationEpilogue<T, math::Identity<acc_t<T>>> rows{{}};
      rows.output = mutable_data<T>(grad_input);
      ImageEpilogue<T> epilogue(rows, conv.input(mutable_data<T>(grad_input)));
      solve(conv.input_gradient(grad, relu_output, &epilogue));
    }
    if (needs_weight || needs_bias) {
      solve(conv.weight_gradient(grad, relu_output, needs_weight ? mutable_data<T>(grad_weight) : nullptr,
                                 needs_bias ? mutable_data<T>(grad_bias) : nullptr));
    }
  });
  return {grad_input, grad_weight, grad_bias, needs_residual ? gradient : none()};
}

// The names of the algorithms that serve the forward pass, the input gradient and the weight gradient.
std::vector<std::string> conv2d_algorithms(Tensor input, Tensor weight, std::vector<int64_t> stride,
                                           std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                           int64_t groups) {
  const char* op = "conv2d_algorithms";
  const math::ActivationParams none{static_cast<int64_t>(math::ActivationKind::kIdentity), 0, 0};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, none, op);
  std::vector<std::string> names;
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const Conv2d<T> conv(flattened(shape), input, weight);
    const T* const null = nullptr;
    names.push_back(algorithm_for(conv.forward(nullptr)).name);
    names.push_back(conv.has_input() ? algorithm_for(conv.input_gradient(null, null, nullptr)).name : "");
    names.push_back(algorithm_for(conv.weight_gradient(null, null, nullptr, nullptr)).name);
  });
  return names;
}

// All names in order, those of a direction in one string.
std::vector<std::string> conv2d_algorithm_names() {
  const auto joined = [](const std::vector<std::string>& names) {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : " ") + name;
    return all;
  };
  const std::string correlation = joined(correlation_algorithms());
  return {correlation, correlation, joined(weight_gradient_algorithms())};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&pyops::cpu::conv2d_forward));
  m.impl("conv2d_pack_weight", TORCH_BOX(&pyops::cpu::conv2d_pack_weight));
  m.impl("conv2d_packed_forward", TORCH_BOX(&pyops::cpu::conv2d_packed_forward));
  m.impl("conv2d_backward", TORCH_BOX(&pyops::cpu::conv2d_backward));
  m.impl("conv2d_algorithms", TORCH_BOX(&pyops::cpu::conv2d_algorithms));
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("conv2d_algorithm_names", TORCH_BOX(&pyops::cpu::conv2d_algorithm_names));
}
