// linear with bias, activation and dropout on CUDA. The vendor's library forms the products, through torch:
// one call for product and bias, then one pass for activation and dropout. Backward is one pass for their
// derivatives and the bias's gradient, then the two products.
#include "binding/linear.h"
#include "binding/matmul.h"
#include "cuda/device/tensor.cuh"
#include "cuda/dropout.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kOp = "linear";

Tensor empty(const Tensor& like, bool needed, const std::vector<int64_t>& shape) {
  return new_tensor(like, needed ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

std::tuple<Tensor, Tensor> linear_forward(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> seed, double p, int64_t kind, double alpha,
                                          double beta, bool save_input_of_activation) {
  const LinearEpilogue e{seed, p, {kind, alpha, beta}};
  const LinearShape s = check_linear_forward(input, weight, bias, e, kOp);
  const DeviceScope device(input);
  Tensor z = empty(input, true, s.output);
  if (s.M * s.N > 0) library_linear(matrix_view(z, s.M, s.N), matrix_view(input, s.M, s.K), weight, bias);
  if (e.is_identity() && !save_input_of_activation) return {z, empty(input, false, {})};
  Tensor output = bias_activation_dropout(z, std::nullopt, std::nullopt, seed, p, e.activation, 0);
  return {output, save_input_of_activation ? z : empty(input, false, {})};
}

// The product's gradient dz and the bias's. Where nothing follows the product, dz is grad_output itself.
std::tuple<Tensor, Tensor> backward_of_epilogue(const Tensor& grad_output, const std::optional<Tensor>& saved,
                                                const LinearShape& s, const LinearEpilogue& e,
                                                bool saved_is_output, bool needs_bias) {
  if (!e.is_identity()) {
    const int64_t dim = grad_output.dim() - 1;
    return bias_activation_dropout_gradients(grad_output, saved, std::nullopt, e.seed, e.p, e.activation, dim,
                                             saved_is_output, needs_bias);
  }
  if (!needs_bias) return {grad_output, empty(grad_output, false, {})};
  // torch's sum: its order is its own, but always the same.
  const Tensor rows = matrix_view(grad_output, s.M, s.N);
  return {grad_output, torch::stable::sum(rows, std::vector<int64_t>{0}, false, grad_output.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor grad_output, std::optional<Tensor> input,
                                                   Tensor weight, std::optional<Tensor> saved,
                                                   std::optional<Tensor> seed, double p, int64_t kind,
                                                   double alpha, double beta, bool saved_is_output,
                                                   bool needs_input, bool needs_weight, bool needs_bias) {
  const LinearEpilogue e{seed, p, {kind, alpha, beta}};
  const LinearShape s =
      check_linear_backward(grad_output, input, weight, saved, saved_is_output, needs_weight, e, kOp);
  const DeviceScope device(grad_output);
  const auto [dz, grad_bias] = backward_of_epilogue(grad_output, saved, s, e, saved_is_output, needs_bias);
  const Tensor rows = matrix_view(dz, s.M, s.N);
  Tensor grad_input = empty(weight, needs_input, s.input);
  Tensor grad_weight = empty(weight, needs_weight, {s.N, s.K});
  if (needs_input && s.M * s.K > 0) library_mm(matrix_view(grad_input, s.M, s.K), rows, weight);
  if (needs_weight && s.N * s.K > 0) {
    library_mm(grad_weight, torch::stable::transpose(rows, 0, 1), matrix_view(*input, s.M, s.K));
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("linear_forward", TORCH_BOX(&pyops::cuda::linear_forward));
  m.impl("linear_backward", TORCH_BOX(&pyops::cuda::linear_backward));
}
