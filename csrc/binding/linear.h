// Checks of the linear ops that hold on every device.
#pragma once

#include <optional>

#include "tensor.h"

namespace pyops {

// What follows the product: dropout(activation(z)); see math/activation.h and math/dropout.h.
struct LinearEpilogue {
  std::optional<Tensor> seed;  // no dropout without
  double p;
  int64_t kind;
  double a;
  double b;

  bool is_identity() const { return kind == 0 && !seed; }
};

// input [*, K] and weight [N, K] give an output [*, N]; M is the product of the leading dimensions.
struct LinearShape {
  int64_t M;
  int64_t N;
  int64_t K;
  std::vector<int64_t> output;
};

inline void check_matrix(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(same_device(t, like), op, ": ", name, " must be on the device of the first tensor");
  const bool unit_stride = t.is_contiguous() || (t.dim() == 2 && (t.stride(0) == 1 || t.stride(1) == 1));
  STD_TORCH_CHECK(unit_stride, op, ": ", name,
                  " must be contiguous, or a matrix with a stride of 1, got shape ", shape_string(t));
}

inline LinearShape check_linear_operands(const Tensor& input, const Tensor& weight,
                                         const LinearEpilogue& epilogue, const char* op) {
  STD_TORCH_CHECK(is_floating(input.scalar_type()), op,
                  ": input must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(input.scalar_type()));
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got a 0-d tensor");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got shape ", shape_string(weight));
  check_matrix(input, op, "input", input);
  check_matrix(weight, op, "weight", input);
  check_type(weight, op, "weight", input.scalar_type());
  LinearShape s{1, weight.size(0), weight.size(1), shape_of(input)};
  STD_TORCH_CHECK(s.output.back() == s.K, op, ": weight must have shape (N, K) with K = ", s.output.back(),
                  " as in input, got ", shape_string(weight));
  s.output.back() = s.N;
  for (size_t i = 0; i + 1 < s.output.size(); ++i) s.M *= s.output[i];
  STD_TORCH_CHECK(epilogue.p >= 0 && epilogue.p <= 1, op, ": p must be between 0 and 1, got ", epilogue.p);
  if (epilogue.seed) {
    check_dense(*epilogue.seed, op, "seed", input);
    check_type(*epilogue.seed, op, "seed", ScalarType::Long);
    check_shape(*epilogue.seed, op, "seed", {2});
  }
  return s;
}

inline LinearShape check_linear_forward(const Tensor& input, const Tensor& weight,
                                        const std::optional<Tensor>& bias, const LinearEpilogue& epilogue,
                                        const char* op) {
  LinearShape s = check_linear_operands(input, weight, epilogue, op);
  if (bias) {
    check_dense(*bias, op, "bias", input);
    check_type(*bias, op, "bias", input.scalar_type());
    check_shape(*bias, op, "bias", {s.N});
  }
  return s;
}

inline LinearShape check_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                         const std::optional<Tensor>& saved, const LinearEpilogue& epilogue,
                                         const char* op) {
  LinearShape s = check_linear_operands(input, weight, epilogue, op);
  check_dense(grad_output, op, "grad_output", input);
  check_type(grad_output, op, "grad_output", input.scalar_type());
  check_shape(grad_output, op, "grad_output", s.output);
  STD_TORCH_CHECK(saved || epilogue.kind == 0, op, ": saved must be given with an activation");
  if (saved) {
    check_dense(*saved, op, "saved", input);
    check_type(*saved, op, "saved", input.scalar_type());
    check_shape(*saved, op, "saved", s.output);
  }
  return s;
}

}  // namespace pyops
