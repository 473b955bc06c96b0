// Checks of the prelu ops that hold on every device.
#pragma once

#include "binding/tensor.h"
#include "common/macros.h"

namespace pyops {

// The input of prelu as [outer, channels, inner]; with a single slope, channels is 1 and outer is everything.
struct PreluShape {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  PYOPS_HD int64_t numel() const { return outer * channels * inner; }
  PYOPS_HD int64_t period() const { return channels * inner; }  // after which the slopes repeat

  static PreluShape of(const Tensor& input, const Tensor& weight, int64_t dim, const char* op) {
    check_dense(input, op, "input", input);
    check_dense(weight, op, "weight", input);
    check_type(weight, op, "weight", input.scalar_type());
    PYOPS_CHECK(weight.dim() <= 1, op, ": weight must have at most 1 dimension, got ", weight.dim());
    const int64_t channels = weight.numel();
    if (channels == 1) return {input.numel(), 1, 1};
    PYOPS_CHECK(dim >= 0 && dim < input.dim(), op, ": dim must be in [0, ", input.dim() - 1, "], got ", dim);
    PYOPS_CHECK(input.size(dim) == channels, op, ": weight must have 1 or ", input.size(dim),
                " elements, got ", channels);
    PreluShape s{1, channels, 1};
    for (int64_t i = 0; i < dim; ++i) s.outer *= input.size(i);
    for (int64_t i = dim + 1; i < input.dim(); ++i) s.inner *= input.size(i);
    return s;
  }
};

inline PreluShape check_prelu_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                       int64_t dim, const char* op) {
  const PreluShape shape = PreluShape::of(input, weight, dim, op);
  check_dense(grad_output, op, "grad_output", input);
  check_type(grad_output, op, "grad_output", input.scalar_type());
  check_shape(grad_output, op, "grad_output", shape_of(input));
  return shape;
}

}  // namespace pyops
