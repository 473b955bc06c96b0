// Checks of the linear ops that hold on every device.
#pragma once

#include <optional>

#include "binding/dropout.h"

namespace pyops {

// What follows the product: dropout(activation(z)).
struct LinearEpilogue {
  std::optional<Tensor> seed;  // no dropout without
  double p;
  math::ActivationParams activation;

  bool is_identity() const { return activation.is(math::ActivationKind::kIdentity) && !seed; }
};

// input [*, K] and weight [N, K] give an output [*, N]; M is the product of the leading dimensions.
struct LinearShape {
  int64_t M;
  int64_t N;
  int64_t K;
  std::vector<int64_t> input;
  std::vector<int64_t> output;
};

// What a matrix product takes as [rows, columns] without a copy.
inline void check_matrix(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  PYOPS_CHECK(t.dim() >= 1, op, ": ", name, " must have at least 1 dimension, got a 0-d tensor");
  PYOPS_CHECK(same_device(t, like), op, ": ", name, " must be on the device of the first tensor");
  check_type(t, op, name, like.scalar_type());
  const bool unit_stride = t.dim() == 2 && (t.stride(0) == 1 || t.stride(1) == 1);
  PYOPS_CHECK(unit_stride || t.is_contiguous(), op, ": ", name,
              " must be contiguous, or a matrix with a stride of 1, got shape ", shape_string(t));
}

// `rows` is the input or the output: its leading dimensions become M.
inline LinearShape linear_shape(const Tensor& rows, const Tensor& weight, const LinearEpilogue& epilogue,
                                const char* op, const char* name) {
  PYOPS_CHECK(is_floating(rows.scalar_type()), op, ": ", name,
              " must be float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(rows.scalar_type()));
  PYOPS_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got shape ", shape_string(weight));
  check_matrix(rows, op, name, rows);
  check_matrix(weight, op, "weight", rows);
  check_dropout_mask(epilogue.seed, epilogue.p, op, rows);
  LinearShape s{1, weight.size(0), weight.size(1), shape_of(rows), shape_of(rows)};
  for (size_t i = 0; i + 1 < s.output.size(); ++i) s.M *= s.output[i];
  s.input.back() = s.K;
  s.output.back() = s.N;
  return s;
}

inline LinearShape check_linear_forward(const Tensor& input, const Tensor& weight,
                                        const std::optional<Tensor>& bias, const LinearEpilogue& epilogue,
                                        const char* op) {
  LinearShape s = linear_shape(input, weight, epilogue, op, "input");
  check_shape(input, op, "input", s.input);
  check_activation_kind(epilogue.activation, op);
  if (bias) {
    check_dense(*bias, op, "bias", input);
    check_type(*bias, op, "bias", input.scalar_type());
    check_shape(*bias, op, "bias", {s.N});
  }
  return s;
}

inline LinearShape check_linear_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                                         const Tensor& weight, const std::optional<Tensor>& saved,
                                         bool saved_is_output, bool needs_weight,
                                         const LinearEpilogue& epilogue, const char* op) {
  LinearShape s = linear_shape(grad_output, weight, epilogue, op, "grad_output");
  check_dense(grad_output, op, "grad_output", grad_output);
  check_shape(grad_output, op, "grad_output", s.output);
  PYOPS_CHECK(input || !needs_weight, op, ": input must be given for the weight's gradient");
  if (input) {
    check_matrix(*input, op, "input", grad_output);
    check_shape(*input, op, "input", s.input);
  }
  const bool from_output = is_from_output(epilogue.activation, op);
  PYOPS_CHECK(saved || epilogue.activation.is(math::ActivationKind::kIdentity), op,
              ": saved must be given with an activation");
  PYOPS_CHECK(!saved || !saved_is_output || from_output, op,
              ": this activation's derivative needs its input, so saved_is_output must be false");
  check_companion(saved, op, "saved", grad_output);
  return s;
}

}  // namespace pyops
