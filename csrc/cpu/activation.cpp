// Activations on the CPU.

// Several vectors' operations in turns: a core looks less far ahead than one vector's are many. Softplus
// takes a quarter less, tanh and gelu_tanh a tenth.
#pragma GCC optimize("schedule-insns", "sched-pressure")

#include "binding/activation.h"

#include "cpu/epilogue/activation.h"
#include "cpu/runtime/elementwise.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

void forward_into(const Tensor& input, Tensor& output, const math::ActivationParams& params, const char* op) {
  dispatch_typed_activation(input.scalar_type(), params, op, [&](auto tag, const auto& functor) {
    using T = decltype(tag);
    const math::Forward<std::decay_t<decltype(functor)>> f{functor};
    elementwise(input.numel(), activation_cost(params), f, mutable_data<T>(output), data<T>(input));
  });
}

Tensor activation_forward(Tensor input, int64_t kind, double alpha, double beta) {
  const char* op = "activation_forward";
  check_packed(input, op, "input", input);
  Tensor output = new_output_like(input);
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
  Tensor grad_input = new_output_like(saved);
  activation_gradient(grad_output, saved, {kind, alpha, beta}, saved_is_output, op, grad_input);
  return grad_input;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("activation_forward", TORCH_BOX(&pyops::cpu::activation_forward));
  m.impl("activation_forward_", TORCH_BOX(&pyops::cpu::activation_forward_));
  m.impl("activation_backward", TORCH_BOX(&pyops::cpu::activation_backward));
}
