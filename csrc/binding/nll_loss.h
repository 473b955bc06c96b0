// Checks of the nll_loss ops that hold on every device.
#pragma once

#include <optional>

#include "binding/class_rows.h"

namespace pyops {

inline ClassRows check_nll_loss_forward(const Tensor& log_probs, const Tensor& target,
                                        const std::optional<Tensor>& weight, const char* op) {
  const ClassRows shape = ClassRows::of(log_probs, op, "log_probs");
  check_dense(log_probs, op, "log_probs", log_probs);
  check_dense(target, op, "target", log_probs);
  check_type(target, op, "target", ScalarType::Long);
  check_shape(target, op, "target", shape.row_shape);
  check_optional(weight, op, "weight", {shape.classes}, accumulate_type(log_probs.scalar_type()), log_probs);
  return shape;
}

inline ClassRows check_nll_loss_backward(const Tensor& grad_loss, const Tensor& target,
                                         const std::optional<Tensor>& weight, const Tensor& total_weight,
                                         int64_t classes, Reduction reduction, ScalarType type,
                                         const char* op) {
  PYOPS_CHECK(classes >= 0, op, ": num_classes must not be negative, got ", classes);
  const ClassRows shape = ClassRows::labelled_by(target, classes);
  const ScalarType acc = accumulate_type(type);
  check_dense(target, op, "target", target);
  check_type(target, op, "target", ScalarType::Long);
  check_dense(grad_loss, op, "grad_loss", target);
  check_type(grad_loss, op, "grad_loss", acc);
  check_shape(grad_loss, op, "grad_loss",
              reduction == Reduction::kNone ? shape.row_shape : std::vector<int64_t>{});
  check_dense(total_weight, op, "total_weight", target);
  check_type(total_weight, op, "total_weight", acc);
  check_shape(total_weight, op, "total_weight", {});
  check_optional(weight, op, "weight", {classes}, acc, target);
  return shape;
}

}  // namespace pyops
