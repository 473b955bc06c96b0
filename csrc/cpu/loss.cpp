// Elementwise losses on the CPU: the ops; loss_chunks.h has the loops.
//
// Forward reads input and target once, backward reads them again and writes the gradient. A scalar loss can
// write its gradient in the forward pass, so that backward reads nothing: with the bits that backward would
// give it for an upstream gradient of 1.
#include "math/loss.h"

#include "binding/loss.h"
#include "cpu/loss_chunks.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

int64_t cost_of(const LossArguments& a) { return a.kind == math::LossKind::kBceWithLogits ? 4 : 1; }

double divisor_of(const LossArguments& a, double weight) {
  if (a.reduction != Reduction::kMean) return 1.0;
  return a.divides_by_weight() ? weight : static_cast<double>(a.input.numel());
}

std::tuple<Tensor, Tensor> elementwise_loss_forward(Tensor input, Tensor target, std::optional<Tensor> weight,
                                                    int64_t weight_inner, std::optional<Tensor> pos_weight,
                                                    int64_t pos_weight_inner, int64_t kind, double parameter,
                                                    int64_t reduction) {
  const char* op = "elementwise_loss_forward";
  const LossArguments a(op, input, target, weight, weight_inner, pos_weight, pos_weight_inner, kind,
                        parameter, reduction);
  Tensor loss = a.per_element() ? new_output(input, a.loss_shape(), a.loss_type())
                                : new_tensor(input, {}, a.loss_type());
  Tensor divisor = new_tensor(input, {}, accumulate_type(a.type()));
  dispatch_floating(a.type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    LossTensors<T> tensors(a);
    if (a.per_element()) tensors.all.value = mutable_data<T>(loss);
    const TermSum sum = tensors.visit_all(input.numel(), cost_of(a), chunk_visitor<true, false, Acc>(a));
    const double denominator = divisor_of(a, sum.weight);
    if (!a.per_element()) {
      *mutable_data<Acc>(loss) = static_cast<Acc>(sum.loss / denominator);
    }
    *mutable_data<Acc>(divisor) = static_cast<Acc>(denominator);
  });
  return {loss, divisor};
}

struct Gradients {
  Tensor input;
  Tensor target;  // minus the input's; empty when not asked for

  Gradients(const char* op, const LossArguments& a, bool both)
      : input(new_output(a.input, shape_of(a.input), a.type())),
        target(both ? new_output(a.input, shape_of(a.input), a.type()) : new_tensor(a.input, {0}, a.type())) {
    a.check_both(op, both);
  }

  template <class T>
  void connect(Chunk<T>& chunk) const {
    chunk.gradient = mutable_data<T>(input);
    if (target.numel() > 0) chunk.negated_gradient = mutable_data<T>(target);
  }
};

// The sum of all elements' weights, for gradients that are divided by it.
template <class T>
double weight_sum(const Repeated<T>& weight, int64_t count) {
  using Acc = acc_t<T>;
  return parallel_sum<double>(count, 1, [&](int64_t begin, int64_t end) {
    alignas(kVectorBytes) Acc buffer[kChunk];
    double total = 0;
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t length = std::min(kChunk, end - at);
      const Acc* const values = lay_out(weight, at, length, true, buffer);
      const auto join = [](Vec<Acc>& sum, int64_t, Vec<Acc> v) { sum += v; };
      total += horizontal_sum(reduce_row(values, length, Acc(0), Acc(0), join, add<Vec<Acc>>));
    }
    return total;
  });
}

// Loss and gradient in one pass over memory: a scalar loss scales every element's gradient alike, so the
// gradient for an upstream gradient of 1 is written while the element is in a register.
std::tuple<Tensor, Tensor, Tensor, Tensor> elementwise_loss_forward_with_grad(
    Tensor input, Tensor target, std::optional<Tensor> weight, int64_t weight_inner,
    std::optional<Tensor> pos_weight, int64_t pos_weight_inner, int64_t kind, double parameter,
    int64_t reduction, bool both) {
  const char* op = "elementwise_loss_forward_with_grad";
  const LossArguments a(op, input, target, weight, weight_inner, pos_weight, pos_weight_inner, kind,
                        parameter, reduction);
  PYOPS_CHECK(!a.per_element(), op, ": reduction must be 1 (mean) or 2 (sum), got 0");
  Tensor loss = new_tensor(input, {}, a.loss_type());
  Tensor divisor = new_tensor(input, {}, a.loss_type());
  const Gradients gradients(op, a, both);
  dispatch_floating(a.type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    LossTensors<T> tensors(a);
    gradients.connect(tensors.all);
    const int64_t count = input.numel();
    const double weights = a.divides_by_weight() ? weight_sum(tensors.weight, count) : 0.0;
    const double denominator = divisor_of(a, weights);
    const Acc scale = Acc(1) / static_cast<Acc>(denominator);
    const TermSum sum = tensors.visit_all(count, cost_of(a), chunk_visitor<true, true, Acc>(a, scale));
    *mutable_data<Acc>(loss) = static_cast<Acc>(sum.loss / denominator);
    *mutable_data<Acc>(divisor) = static_cast<Acc>(denominator);
  });
  return {loss, divisor, gradients.input, gradients.target};
}

std::tuple<Tensor, Tensor> elementwise_loss_backward(Tensor grad_loss, Tensor input, Tensor target,
                                                     std::optional<Tensor> weight, int64_t weight_inner,
                                                     std::optional<Tensor> pos_weight,
                                                     int64_t pos_weight_inner, Tensor divisor, int64_t kind,
                                                     double parameter, int64_t reduction, bool both) {
  const char* op = "elementwise_loss_backward";
  const LossArguments a(op, input, target, weight, weight_inner, pos_weight, pos_weight_inner, kind,
                        parameter, reduction);
  a.check_backward(op, grad_loss, divisor);
  const Gradients gradients(op, a, both);
  dispatch_floating(a.type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    LossTensors<T> tensors(a);
    gradients.connect(tensors.all);
    Acc scale = 1;
    if (a.per_element()) {
      tensors.all.upstream = data<T>(grad_loss);
    } else {
      scale = *data<Acc>(grad_loss) / *data<Acc>(divisor);
    }
    tensors.visit_all(input.numel(), cost_of(a), chunk_visitor<false, true, Acc>(a, scale));
  });
  return {gradients.input, gradients.target};
}

// The second half of elementwise_loss_forward_with_grad: nothing to do for the usual upstream gradient of 1.
void elementwise_loss_regrade_(Tensor gradient, Tensor grad_loss) {
  const char* op = "elementwise_loss_regrade_";
  const ScalarType type = gradient.scalar_type();
  check_dense(gradient, op, "gradient", gradient);
  check_dense(grad_loss, op, "grad_loss", gradient);
  check_type(grad_loss, op, "grad_loss", type);
  check_shape(grad_loss, op, "grad_loss", {});
  dispatch_accumulating(type, op, [&](auto tag) {
    using T = decltype(tag);
    const T upstream = *data<T>(grad_loss);
    if (upstream == T(1)) return;
    T* const values = mutable_data<T>(gradient);
    elementwise(gradient.numel(), 1, [=](Vec<T> v) { return v * upstream; }, values, values);
  });
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("elementwise_loss_forward", TORCH_BOX(&pyops::cpu::elementwise_loss_forward));
  m.impl("elementwise_loss_forward_with_grad", TORCH_BOX(&pyops::cpu::elementwise_loss_forward_with_grad));
  m.impl("elementwise_loss_regrade_", TORCH_BOX(&pyops::cpu::elementwise_loss_regrade_));
  m.impl("elementwise_loss_backward", TORCH_BOX(&pyops::cpu::elementwise_loss_backward));
}
