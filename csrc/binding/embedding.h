// Checks of the embedding ops that hold on every device.
#pragma once

#include <string>

#include "binding/tensor.h"

namespace pyops {

// A table of `rows` rows of `dim` elements, whatever its strides, and the number of indices into it.
struct EmbeddingShape {
  int64_t rows;
  int64_t dim;
  int64_t row_stride;
  int64_t column_stride;
  int64_t positions;
};

inline void check_indices(const Tensor& indices, const char* op, const Tensor& like) {
  check_dense(indices, op, "indices", like);
  PYOPS_CHECK(indices.scalar_type() == ScalarType::Long || indices.scalar_type() == ScalarType::Int, op,
              ": indices must be int64 or int32, got ", torch::headeronly::toString(indices.scalar_type()));
}

// Calls f with a value of the C++ type of the indices.
template <class F>
void dispatch_index(const Tensor& indices, F&& f) {
  if (indices.scalar_type() == ScalarType::Int) return f(int32_t{});
  return f(int64_t{});
}

inline EmbeddingShape check_embedding_table(const Tensor& weight, const Tensor& indices, const char* op) {
  PYOPS_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got shape ", shape_string(weight));
  PYOPS_CHECK(is_floating(weight.scalar_type()), op,
              ": weight must be float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(weight.scalar_type()));
  check_indices(indices, op, weight);
  return {weight.size(0), weight.size(1), weight.stride(0), weight.stride(1), indices.numel()};
}

// Rows are changed in parallel, so none may share memory with another.
inline EmbeddingShape check_embedding_renorm(const Tensor& weight, const Tensor& indices, const char* op) {
  const EmbeddingShape s = check_embedding_table(weight, indices, op);
  const bool separate = s.rows <= 1 || s.dim == 0 || (s.dim == 1 && s.row_stride >= 1) ||
                        (s.column_stride >= 1 && s.row_stride >= s.column_stride * s.dim) ||
                        (s.row_stride >= 1 && s.column_stride >= s.row_stride * s.rows);
  PYOPS_CHECK(separate, op, ": weight must not have elements that share memory, got strides (", s.row_stride,
              ", ", s.column_stride, ")");
  return s;
}

inline std::vector<int64_t> embedded_shape(const Tensor& indices, int64_t dim) {
  std::vector<int64_t> shape = shape_of(indices);
  shape.push_back(dim);
  return shape;
}

inline EmbeddingShape check_embedding_backward(const Tensor& grad_output, const Tensor& indices,
                                               int64_t num_weights, const char* op) {
  PYOPS_CHECK(num_weights >= 0, op, ": num_weights must not be negative, got ", num_weights);
  PYOPS_CHECK(grad_output.dim() >= 1, op, ": grad_output must have at least one dimension");
  check_indices(indices, op, grad_output);
  check_dense(grad_output, op, "grad_output", grad_output);
  const int64_t dim = grad_output.size(grad_output.dim() - 1);
  check_shape(grad_output, op, "grad_output", embedded_shape(indices, dim));
  return {num_weights, dim, dim, 1, indices.numel()};
}

inline std::string bad_index_message(int64_t index, int64_t rows) {
  return "embedding: index " + std::to_string(index) + " is out of range for a weight of " +
         std::to_string(rows) + " rows";
}

}  // namespace pyops
