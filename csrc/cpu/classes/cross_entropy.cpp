// Fused softmax cross-entropy on the CPU: the ops; the loops are in cross_entropy_rows.h and _gradients.h.
//
// log_softmax + nll_loss make 7 passes over memory, forward and backward. Here forward reads the logits once
// and writes two numbers per row, backward reads them again and writes the gradient: 3 passes. A scalar loss
// can write its gradient in the forward pass: 2.
#include "math/cross_entropy.h"

#include "binding/cross_entropy.h"
#include "cpu/classes/cross_entropy_gradients.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(Tensor logits, Tensor target,
                                                         std::optional<Tensor> weight,
                                                         std::optional<Tensor> sample_weight,
                                                         int64_t reduction, int64_t ignore_index,
                                                         double label_smoothing, double z_loss) {
  const char* op = "cross_entropy_forward";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  const ScalarType acc = accumulate_type(logits.scalar_type());
  const bool per_row = a.reduction == Reduction::kNone;
  Tensor loss = new_tensor(logits, per_row ? a.shape.row_shape : std::vector<int64_t>{}, acc);
  Tensor stats = new_tensor(logits, {2, a.shape.rows()}, acc);
  Tensor divisor = new_tensor(logits, {}, acc);
  dispatch_floating(logits.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    Acc* out = mutable_data<Acc>(loss);
    const LossSum sum = forward_rows(Problem<T>(a), per_row ? out : nullptr, mutable_data<Acc>(stats),
                                     [](RowGroup, const PanelCopy<Acc>&) {});
    PYOPS_CHECK_INDEX(!sum.has_bad_target,
                      bad_target_message("cross_entropy", sum.bad_target, a.shape.classes, ignore_index));
    const double denominator = a.reduction == Reduction::kMean ? sum.weight : 1.0;
    if (!per_row) *out = static_cast<Acc>(sum.loss / denominator);
    *mutable_data<Acc>(divisor) = static_cast<Acc>(denominator);
  });
  return {loss, stats, divisor};
}

// Loss and gradient in one pass over memory: a scalar loss scales every row's gradient alike, so the gradient
// for an upstream gradient of 1 can be written while the row is in cache. Backward then has at most to scale
// it.
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_forward_with_grad(
    Tensor logits, Tensor target, std::optional<Tensor> weight, std::optional<Tensor> sample_weight,
    int64_t reduction, int64_t ignore_index, double label_smoothing, double z_loss) {
  const char* op = "cross_entropy_forward_with_grad";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  PYOPS_CHECK(a.reduction != Reduction::kNone, op, ": reduction must be 1 (mean) or 2 (sum), got 0");
  const ScalarType acc = accumulate_type(logits.scalar_type());
  Tensor loss = new_tensor(logits, {}, acc);
  Tensor stats = new_tensor(logits, {2, a.shape.rows()}, acc);
  Tensor divisor = new_tensor(logits, {}, acc);
  Tensor grad_logits = new_output(logits, shape_of(logits), logits.scalar_type());
  dispatch_floating(logits.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const Problem<T> p(a);
    Acc* const row_stats = mutable_data<Acc>(stats);
    T* const dx = mutable_data<T>(grad_logits);
    const double denominator = a.reduction == Reduction::kMean ? target_weight(p) : 1.0;
    const Acc one = 1;
    const Upstream<Acc> up{&one, nullptr, row_stats, one / static_cast<Acc>(denominator), false};
    const LossSum sum = forward_rows(p, static_cast<Acc*>(nullptr), row_stats,
                                     [&](RowGroup group, const PanelCopy<Acc>& copy) {
                                       write_group(p, up, group, dx, copy ? &copy : nullptr);
                                     });
    PYOPS_CHECK_INDEX(!sum.has_bad_target,
                      bad_target_message("cross_entropy", sum.bad_target, a.shape.classes, ignore_index));
    *mutable_data<Acc>(loss) = static_cast<Acc>(sum.loss / denominator);
    *mutable_data<Acc>(divisor) = static_cast<Acc>(denominator);
  });
  return {loss, stats, divisor, grad_logits};
}

void run_backward(const char* op, const CrossEntropyArguments& a, const Tensor& grad_loss,
                  const std::optional<Tensor>& grad_lse, const Tensor& stats, const Tensor& divisor,
                  const Tensor& grad_logits) {
  a.check_backward(op, grad_loss, grad_lse, stats, divisor);
  dispatch_floating(a.logits.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const Acc* denominator = data<Acc>(divisor);
    const Upstream<Acc> up{data<Acc>(grad_loss), data_or_null<Acc>(grad_lse), data<Acc>(stats),
                           Acc(1) / *denominator, a.reduction == Reduction::kNone};
    backward_rows(Problem<T>(a), up, mutable_data<T>(grad_logits));
  });
}

// The second half of cross_entropy_forward_with_grad: nothing to do for the usual upstream gradient of 1. For
// another the gradient is computed anew, which costs what scaling it would, and rounds once.
void cross_entropy_regrade_(Tensor grad_logits, Tensor grad_loss, Tensor logits, Tensor target,
                            std::optional<Tensor> weight, std::optional<Tensor> sample_weight, Tensor stats,
                            Tensor divisor, int64_t reduction, int64_t ignore_index, double label_smoothing,
                            double z_loss) {
  const char* op = "cross_entropy_regrade_";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  PYOPS_CHECK(a.reduction != Reduction::kNone, op, ": reduction must be 1 (mean) or 2 (sum), got 0");
  a.check_backward(op, grad_loss, std::nullopt, stats, divisor);
  check_dense(grad_logits, op, "grad_logits", logits);
  check_type(grad_logits, op, "grad_logits", logits.scalar_type());
  check_shape(grad_logits, op, "grad_logits", shape_of(logits));
  const bool is_double = grad_loss.scalar_type() == ScalarType::Double;
  const double value = is_double ? *data<double>(grad_loss) : *data<float>(grad_loss);
  if (value != 1.0) run_backward(op, a, grad_loss, std::nullopt, stats, divisor, grad_logits);
}

Tensor cross_entropy_backward(Tensor grad_loss, std::optional<Tensor> grad_lse, Tensor logits, Tensor target,
                              std::optional<Tensor> weight, std::optional<Tensor> sample_weight, Tensor stats,
                              Tensor divisor, int64_t reduction, int64_t ignore_index, double label_smoothing,
                              double z_loss) {
  const char* op = "cross_entropy_backward";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  Tensor grad_logits = new_output(logits, shape_of(logits), logits.scalar_type());
  run_backward(op, a, grad_loss, grad_lse, stats, divisor, grad_logits);
  return grad_logits;
}

void cross_entropy_backward_(Tensor grad_loss, std::optional<Tensor> grad_lse, Tensor logits, Tensor target,
                             std::optional<Tensor> weight, std::optional<Tensor> sample_weight, Tensor stats,
                             Tensor divisor, int64_t reduction, int64_t ignore_index, double label_smoothing,
                             double z_loss) {
  const char* op = "cross_entropy_backward_";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  run_backward(op, a, grad_loss, grad_lse, stats, divisor, logits);
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&pyops::cpu::cross_entropy_forward));
  m.impl("cross_entropy_forward_with_grad", TORCH_BOX(&pyops::cpu::cross_entropy_forward_with_grad));
  m.impl("cross_entropy_regrade_", TORCH_BOX(&pyops::cpu::cross_entropy_regrade_));
  m.impl("cross_entropy_backward", TORCH_BOX(&pyops::cpu::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&pyops::cpu::cross_entropy_backward_));
}
