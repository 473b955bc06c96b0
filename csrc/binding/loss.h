// Arguments of the elementwise loss ops and their checks, on every device.
#pragma once

#include "binding/tensor.h"
#include "math/loss.h"

namespace pyops {

// As dispatch_floating, for the types that sums are kept in.
template <class F>
void dispatch_accumulating(ScalarType type, const char* op, F&& f) {
  PYOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
              ": expected float32 or float64, got ", torch::headeronly::toString(type));
  type == ScalarType::Double ? f(double{}) : f(float{});
}

// A factor of each element's term, repeated: element i has entry i / inner % count of a contiguous tensor.
template <class T>
struct Repeated {
  const T* data = nullptr;  // null: no factor
  int64_t count = 1;
  int64_t inner = 1;

  Repeated() = default;
  Repeated(const std::optional<Tensor>& t, int64_t inner_) : data(data_or_null<T>(t)), inner(inner_) {
    if (t) count = t->numel();
  }
};

struct LossArguments {
  Tensor input;
  Tensor target;
  std::optional<Tensor> weight;
  int64_t weight_inner;
  std::optional<Tensor> pos_weight;
  int64_t pos_weight_inner;
  math::LossKind kind;
  double parameter;
  Reduction reduction;

  LossArguments(const char* op, const Tensor& input_, const Tensor& target_,
                const std::optional<Tensor>& weight_, int64_t weight_inner_,
                const std::optional<Tensor>& pos_weight_, int64_t pos_weight_inner_, int64_t kind_,
                double parameter_, int64_t reduction_)
      : input(input_),
        target(target_),
        weight(weight_),
        weight_inner(weight_inner_),
        pos_weight(pos_weight_),
        pos_weight_inner(pos_weight_inner_),
        kind(static_cast<math::LossKind>(kind_)),
        parameter(parameter_),
        reduction(check_reduction(reduction_, op)) {
    PYOPS_CHECK(math::is_loss_kind(kind_), op, ": kind must be between 0 and 4, got ", kind_);
    PYOPS_CHECK(!math::has_positive_parameter(kind) || parameter > 0, op,
                ": parameter must be positive, got ", parameter);
    PYOPS_CHECK(!pos_weight || kind == math::LossKind::kBceWithLogits, op,
                ": pos_weight is for kind 4 (binary cross-entropy) alone, got kind ", kind_);
    check_dense(input, op, "input", input);
    check_dense(target, op, "target", input);
    check_type(target, op, "target", input.scalar_type());
    check_shape(target, op, "target", shape_of(input));
    check_repeated(weight, op, "weight", weight_inner);
    check_repeated(pos_weight, op, "pos_weight", pos_weight_inner);
  }

  bool per_element() const { return reduction == Reduction::kNone; }
  bool divides_by_weight() const {
    return weight && reduction == Reduction::kMean && math::mean_divides_by_weight(kind);
  }
  ScalarType type() const { return input.scalar_type(); }
  // A reduced loss is as precise as its sum; the losses of the elements have the input's type.
  ScalarType loss_type() const { return per_element() ? type() : accumulate_type(type()); }
  std::vector<int64_t> loss_shape() const { return per_element() ? shape_of(input) : std::vector<int64_t>{}; }

  void check_both(const char* op, bool both) const {
    PYOPS_CHECK(!both || kind != math::LossKind::kBceWithLogits, op,
                ": the target's gradient is that of a difference, of kinds 0 to 3 alone");
  }

  void check_backward(const char* op, const Tensor& grad_loss, const Tensor& divisor) const {
    check_dense(grad_loss, op, "grad_loss", input);
    check_type(grad_loss, op, "grad_loss", loss_type());
    check_shape(grad_loss, op, "grad_loss", loss_shape());
    check_dense(divisor, op, "divisor", input);
    check_type(divisor, op, "divisor", accumulate_type(type()));
    check_shape(divisor, op, "divisor", {});
  }

 private:
  void check_repeated(const std::optional<Tensor>& t, const char* op, const char* name, int64_t inner) const {
    if (!t) return;
    check_dense(*t, op, name, input);
    check_type(*t, op, name, type());
    PYOPS_CHECK(t->numel() > 0 || input.numel() == 0, op, ": ", name, " must not be empty");
    PYOPS_CHECK(inner > 0, op, ": ", name, "_inner must be positive, got ", inner);
  }
};

}  // namespace pyops
