// Checks of the softmax ops that hold on every device.
#pragma once

#include "binding/tensor.h"

namespace pyops {

// A contiguous tensor seen as [outer, classes, inner] with the reduced dimension in the middle.
struct ReducedShape {
  int64_t outer;
  int64_t classes;
  int64_t inner;

  int64_t rows() const { return outer * inner; }

  static ReducedShape of(const Tensor& t, int64_t dim, const char* op) {
    const int64_t rank = std::max<int64_t>(t.dim(), 1);
    PYOPS_CHECK(dim >= -rank && dim < rank, op, ": dim must be in [", -rank, ", ", rank - 1, "], got ", dim);
    if (dim < 0) dim += rank;
    ReducedShape s{1, t.dim() == 0 ? 1 : t.size(dim), 1};
    for (int64_t i = 0; i < dim; ++i) s.outer *= t.size(i);
    for (int64_t i = dim + 1; i < t.dim(); ++i) s.inner *= t.size(i);
    return s;
  }
};

inline void check_softmax_backward(const Tensor& grad_output, const Tensor& output, const char* op) {
  check_dense(output, op, "output", output);
  check_dense(grad_output, op, "grad_output", output);
  check_type(grad_output, op, "grad_output", output.scalar_type());
  check_shape(grad_output, op, "grad_output", shape_of(output));
}

}  // namespace pyops
