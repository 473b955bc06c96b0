// The gradients of cross-entropy over groups of rows, from the numbers that forward keeps of them.
#pragma once

#include <cstring>

#include "cpu/classes/cross_entropy_rows.h"
#include "cpu/simd/stream.h"

namespace pyops::cpu {

template <class Acc>
struct Upstream {
  const Acc* grad_loss;
  const Acc* grad_lse;
  const Acc* stats;
  Acc scale;  // 1 / divisor for mean
  bool per_row;

  Acc loss(int64_t row) const { return per_row ? grad_loss[row] : grad_loss[0] * scale; }
  Acc lse(int64_t row) const { return grad_lse ? grad_lse[row] : Acc(0); }
};

// Everything the gradient of one row is made of. The target class differs from the others, so its gradient is
// computed apart, from a logit that is read before anything is written: in place, writing destroys it.
template <class Acc>
struct RowPlan {
  math::SoftmaxStats<Acc> stats;
  math::RowGradient<Acc> gradient;
  int64_t target = -1;  // class with a gradient of its own, or -1
  Acc target_logit = 0;
  Acc target_q = 0;
  bool zero = false;
};

template <class T>
acc_t<T> probability_sum_q(const Problem<T>& p, int64_t offset) {
  using Acc = acc_t<T>;
  if (p.inner != 1) {
    Acc sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) sum += p.spread_weight(c, to_acc(p.target[offset + c * p.inner]));
    return sum;
  }
  Vec<Acc> sum = Acc(0);
  for_each_vector<Acc>(p.classes, [&](int64_t c, int lanes) {
    sum += first_lanes(p.spread_weights(c, lanes, p.target + offset), lanes);
  });
  return horizontal_sum(sum);
}

// `logit_of(y)` is the row's logit of class y.
template <class T, class LogitOf>
RowPlan<acc_t<T>> plan_row(const Problem<T>& p, const Upstream<acc_t<T>>& up, int64_t row, int64_t offset,
                           const LogitOf& logit_of) {
  using Acc = acc_t<T>;
  RowPlan<Acc> plan;
  plan.stats = {up.stats[row], up.stats[p.rows + row]};
  const Acc grad_lse = up.lse(row);
  if (p.has_probabilities) {
    plan.gradient = math::row_gradient(p.params, up.loss(row), probability_sum_q(p, offset), plan.stats,
                                       p.row_weight(row), grad_lse);
    return plan;
  }
  const int64_t y = p.index[row];
  if (y == p.ignore_index) {
    plan.gradient = {grad_lse, Acc(0)};
    plan.zero = grad_lse == Acc(0);
    return plan;
  }
  if (!p.is_class(y)) {  // only through the raw op: forward would have refused
    plan.gradient = {math::quiet_nan<Acc>(), Acc(0)};
    return plan;
  }
  const Acc sum_q = math::index_sum_q(p.params, p.class_weight(y), p.weight_sum);
  plan.gradient = math::row_gradient(p.params, up.loss(row), sum_q, plan.stats, p.row_weight(row), grad_lse);
  plan.target = y;
  plan.target_logit = logit_of(y);
  plan.target_q = math::index_q(p.params, p.class_weight(y), true);
  return plan;
}

template <class T>
void write_row(const Problem<T>& p, const RowPlan<acc_t<T>>& plan, int64_t offset, T* dx) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const T* x = p.logits + offset;
  T* out = dx + offset;
  if (plan.zero) {
    std::fill(out, out + p.classes, from_acc<T>(Acc(0)));
    return;
  }
  if (p.weight || p.has_probabilities) {
    const T* t = p.has_probabilities ? p.target + offset : nullptr;
    for_each_vector<Acc>(p.classes, [&](int64_t c, int lanes) {
      const V probability = math::probability(load_lanes(x + c, lanes), plan.stats);
      const V q = p.q(p.spread_weights(c, lanes, t));
      store_lanes(out + c, math::logit_gradient(plan.gradient, probability, q), lanes);
    });
  } else {
    const V q = p.q(V(Acc(1)));
    const auto gradient = [&](V logit) {
      return math::logit_gradient(plan.gradient, math::probability(logit, plan.stats), q);
    };
    transform(p.classes, gradient, out, x);
  }
  if (plan.target < 0) return;
  const Acc probability = math::probability(plan.target_logit, plan.stats);
  out[plan.target] = from_acc<T>(math::logit_gradient(plan.gradient, probability, plan.target_q));
}

// What the gradients of a panel are made of, as vectors across its rows.
template <class Acc>
struct PanelPlan {
  using V = Vec<Acc>;
  using Classes = typename V::NativeInt;
  using Class = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
  Panel<Acc> max, log_sum, on_probability, on_target, keep, target_logit, target_q;
  alignas(kVectorBytes) Class target[Panel<Acc>::kRows];

  void set(int64_t i, const RowPlan<Acc>& plan) {
    max[i] = plan.stats.max;
    log_sum[i] = plan.stats.log_sum;
    on_probability[i] = plan.gradient.on_probability;
    on_target[i] = plan.gradient.on_target;
    keep[i] = plan.zero ? Acc(0) : Acc(1);
    target[i] = static_cast<Class>(plan.target);
    target_logit[i] = plan.target_logit;
    target_q[i] = plan.target_q;
  }

  V gradient(int64_t i, V logit, V q) const {
    const math::SoftmaxStats<V> stats{max.vec(i), log_sum.vec(i)};
    const math::RowGradient<V> row{on_probability.vec(i), on_target.vec(i)};
    return math::logit_gradient(row, math::probability(logit, stats), q);
  }
  // That of the rows' targets, which their gradients at class c are replaced by where it is the target.
  V at_target(int64_t i) const { return gradient(i, target_logit.vec(i), target_q.vec(i)); }
  V of_class(int64_t c, int64_t i, V logit, V q, V at_target) const {
    Classes targets;
    memcpy(&targets, target + i, sizeof(targets));
    const V kept = select_greater(keep.vec(i), V(Acc(0)), gradient(i, logit, q), V(Acc(0)));
    return typename V::Native(targets == static_cast<Class>(c) ? at_target.v : kept.v);
  }
};

template <class T>
void write_panel(const Problem<T>& p, const Upstream<acc_t<T>>& up, RowGroup group, T* dx,
                 const PanelCopy<acc_t<T>>* copy) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  PanelPlan<Acc> plan;
  for (int64_t i = 0; i < group.width; ++i) {
    plan.set(i, plan_row(p, up, group.first_row + i, p.row_offset(group, i),
                         [&](int64_t y) { return panel_logit(p, group, i, y, copy); }));
  }
  Panel<Acc> at_target;
  for_each_vector<Acc>(group.width, [&](int64_t i, int) { at_target.set(i, plan.at_target(i)); });
  const bool by_rows = p.few_classes();  // the gradients replace the copy, and go to their rows from there
  for (int64_t c = 0; c < p.classes; ++c) {
    const int64_t at = group.offset + c * p.inner;
    for_each_vector<Acc>(group.width, [&](int64_t i, int lanes) {
      const V logit = copy ? copy->vec(c, i) : load_lanes(p.logits + at + i, lanes);
      const V t = p.has_probabilities ? load_lanes(p.target + at + i, lanes) : V(Acc(0));
      const V grad = plan.of_class(c, i, logit, p.q(p.spread_weight(c, t)), at_target.vec(i));
      if (by_rows) return store(copy->of_class(c) + i, grad);
      // The classes of a panel often lie a power of two apart, where the caches keep few lines: past them.
      put(dx + at + i, grad, lanes, lanes == V::kLanes && can_stream(dx + at + i, true));
    });
  }
  if (!by_rows) return end_of_streams();
  for (int64_t i = 0; i < group.width; ++i) {
    T* const row = dx + p.row_offset(group, i);
    for (int64_t c = 0; c < p.classes; ++c) row[c] = from_acc<T>(copy->of_class(c)[i]);
  }
}

// `copy`, if it is not null, holds the logits of strided classes.
template <class T>
void write_group(const Problem<T>& p, const Upstream<acc_t<T>>& up, RowGroup group, T* dx,
                 const PanelCopy<acc_t<T>>* copy = nullptr) {
  if (p.few_classes() && !copy) {
    const PanelCopy<acc_t<T>> own(p.classes);
    copy_rows(p.logits + group.offset, p.classes, group.width, own);
    return write_panel(p, up, group, dx, &own);
  }
  if (p.in_panels()) return write_panel(p, up, group, dx, copy);
  RowPlan<acc_t<T>> plans[Panel<acc_t<T>>::kRows];
  for (int64_t i = 0; i < group.width; ++i) {
    const int64_t offset = p.row_offset(group, i);
    plans[i] =
        plan_row(p, up, group.first_row + i, offset, [&](int64_t y) { return to_acc(p.logits[offset + y]); });
  }
  for (int64_t i = 0; i < group.width; ++i) write_row(p, plans[i], p.row_offset(group, i), dx);
}

template <class T>
void backward_rows(const Problem<T>& p, const Upstream<acc_t<T>>& up, T* dx) {
  p.groups().for_each([&](RowGroup group) { write_group(p, up, group, dx); });
}

}  // namespace pyops::cpu
