// Checks of the cross_entropy ops that hold on every device: after them every pointer may be followed.
#pragma once

#include <optional>
#include <vector>

#include "binding/class_rows.h"

namespace pyops {

struct CrossEntropyArguments {
  Tensor logits;
  Tensor target;
  std::optional<Tensor> weight;
  std::optional<Tensor> sample_weight;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
  ClassRows shape;
  bool has_probabilities;

  CrossEntropyArguments(const char* op, Tensor logits_, Tensor target_, std::optional<Tensor> weight_,
                        std::optional<Tensor> sample_weight_, int64_t reduction_, int64_t ignore_index_,
                        double label_smoothing_, double z_loss_)
      : logits(std::move(logits_)),
        target(std::move(target_)),
        weight(std::move(weight_)),
        sample_weight(std::move(sample_weight_)),
        reduction(check_reduction(reduction_, op)),
        ignore_index(ignore_index_),
        label_smoothing(label_smoothing_),
        z_loss(z_loss_),
        shape(ClassRows::of(logits, op, "logits")),
        has_probabilities(target.scalar_type() != ScalarType::Long) {
    const ScalarType acc = accumulate_type(logits.scalar_type());
    check_dense(logits, op, "logits", logits);
    check_dense(target, op, "target", logits);
    if (has_probabilities) {
      check_type(target, op, "target", logits.scalar_type());
      check_shape(target, op, "target", shape_of(logits));
    } else {
      check_shape(target, op, "target", shape.row_shape);
    }
    check_optional(weight, op, "weight", {shape.classes}, acc, logits);
    check_optional(sample_weight, op, "sample_weight", shape.row_shape, acc, logits);
    PYOPS_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op,
                ": label_smoothing must be between 0 and 1, got ", label_smoothing);
  }

  // What backward gets from forward and from upstream.
  void check_backward(const char* op, const Tensor& grad_loss, const std::optional<Tensor>& grad_lse,
                      const Tensor& stats, const Tensor& divisor) const {
    const ScalarType acc = accumulate_type(logits.scalar_type());
    check_dense(grad_loss, op, "grad_loss", logits);
    check_type(grad_loss, op, "grad_loss", acc);
    check_shape(grad_loss, op, "grad_loss",
                reduction == Reduction::kNone ? shape.row_shape : std::vector<int64_t>{});
    check_optional(grad_lse, op, "grad_lse", shape.row_shape, acc, logits);
    check_dense(stats, op, "stats", logits);
    check_type(stats, op, "stats", acc);
    check_shape(stats, op, "stats", {2, shape.rows()});
    check_dense(divisor, op, "divisor", logits);
    check_type(divisor, op, "divisor", acc);
    check_shape(divisor, op, "divisor", {});
  }
};

}  // namespace pyops
