// Checks of the layer_norm ops that hold on every device.
#pragma once

#include <optional>

#include "binding/activation.h"
#include "binding/tensor.h"
#include "common/macros.h"

namespace pyops {

// A contiguous tensor seen as rows of `size` elements, each of which is normalised. A row's elements belong
// to size / inner channels of `inner` neighbours; the channels of `groups` rows, one after the other, have a
// weight and a bias each. Layer normalisation has one group, of channels of one element.
struct LayerNormShape {
  int64_t rows;
  int64_t size;
  int64_t inner;
  int64_t groups;

  PYOPS_HD int64_t channels() const { return size / inner; }           // of a row
  PYOPS_HD int64_t parameters() const { return groups * channels(); }  // that have a weight

  static LayerNormShape of(const Tensor& input, int64_t size, int64_t inner, int64_t groups, const char* op) {
    check_dense(input, op, "input", input);
    PYOPS_CHECK(size > 0 && input.numel() % size == 0, op, ": size must divide the input's ", input.numel(),
                " elements, got ", size);
    PYOPS_CHECK(inner > 0 && size % inner == 0, op, ": inner must divide size, ", size, ", got ", inner);
    const int64_t rows = input.numel() / size;
    PYOPS_CHECK(groups > 0 && rows % groups == 0, op, ": groups must divide the number of rows, ", rows,
                ", got ", groups);
    return {rows, size, inner, groups};
  }
};

// Weight and bias have the dtype that the input's is computed in.
inline void check_layer_norm_parameter(const std::optional<Tensor>& t, const char* name, const Tensor& input,
                                       const LayerNormShape& s, const char* op) {
  if (!t) return;
  check_dense(*t, op, name, input);
  check_type(*t, op, name, accumulate_type(input.scalar_type()));
  check_shape(*t, op, name, {s.parameters()});
}

inline LayerNormShape check_layer_norm(const Tensor& input, const std::optional<Tensor>& weight,
                                       const std::optional<Tensor>& bias, int64_t size, int64_t inner,
                                       int64_t groups, const math::ActivationParams& params, const char* op) {
  const LayerNormShape s = LayerNormShape::of(input, size, inner, groups, op);
  PYOPS_CHECK(is_floating(input.scalar_type()), op, ": expected float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(input.scalar_type()));
  check_layer_norm_parameter(weight, "weight", input, s, op);
  check_layer_norm_parameter(bias, "bias", input, s, op);
  check_activation_kind(params, op);
  return s;
}

inline void check_layer_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                      const Tensor& rstd, const LayerNormShape& s, const char* op) {
  check_dense(grad_output, op, "grad_output", input);
  check_type(grad_output, op, "grad_output", input.scalar_type());
  check_shape(grad_output, op, "grad_output", shape_of(input));
  const ScalarType acc = accumulate_type(input.scalar_type());
  check_dense(mean, op, "mean", input);
  check_type(mean, op, "mean", acc);
  check_shape(mean, op, "mean", {s.rows});
  check_dense(rstd, op, "rstd", input);
  check_type(rstd, op, "rstd", acc);
  check_shape(rstd, op, "rstd", {s.rows});
}

}  // namespace pyops
