// Tensors of shape [C] or [N, C, *d] seen as rows of classes, and checks of their class-index targets.
#pragma once

#include <string>
#include <vector>

#include "binding/tensor.h"

namespace pyops {

// Row (n, l) has its classes `inner` elements apart.
struct ClassRows {
  int64_t batch;
  int64_t classes;
  int64_t inner;
  std::vector<int64_t> row_shape;  // the tensor's shape without the class dimension

  int64_t rows() const { return batch * inner; }

  static ClassRows of(const Tensor& t, const char* op, const char* name) {
    PYOPS_CHECK(t.dim() >= 1, op, ": ", name, " must have at least one dimension, got a 0-d tensor");
    if (t.dim() == 1) return {1, t.size(0), 1, {}};
    ClassRows s{t.size(0), t.size(1), 1, {t.size(0)}};
    for (int64_t i = 2; i < t.dim(); ++i) {
      s.inner *= t.size(i);
      s.row_shape.push_back(t.size(i));
    }
    return s;
  }

  // The rows that `target` (class indices) labels, for an op that never sees the labelled tensor.
  static ClassRows labelled_by(const Tensor& target, int64_t classes) {
    ClassRows s{target.dim() == 0 ? 1 : target.size(0), classes, 1, shape_of(target)};
    for (int64_t i = 1; i < target.dim(); ++i) s.inner *= target.size(i);
    return s;
  }

  std::vector<int64_t> full_shape() const {
    if (row_shape.empty()) return {classes};
    std::vector<int64_t> shape = row_shape;
    shape.insert(shape.begin() + 1, classes);
    return shape;
  }
};

inline std::string bad_target_message(const char* op, int64_t value, int64_t classes, int64_t ignore_index) {
  return std::string(op) + ": target must be in [0, " + std::to_string(classes) +
         ") or equal ignore_index (" + std::to_string(ignore_index) + "), got " + std::to_string(value);
}

// A per-class or per-row tensor that may be absent.
inline void check_optional(const std::optional<Tensor>& t, const char* op, const char* name,
                           const std::vector<int64_t>& shape, ScalarType type, const Tensor& like) {
  if (!t) return;
  check_dense(*t, op, name, like);
  check_type(*t, op, name, type);
  check_shape(*t, op, name, shape);
}

}  // namespace pyops
