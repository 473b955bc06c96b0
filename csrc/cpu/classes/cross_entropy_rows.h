// The loops of cross-entropy over groups of rows (see row_groups.h): the formulas of csrc/math are applied
// to vectors along the classes when these are contiguous (inner == 1), otherwise to vectors across
// neighbouring rows.
#pragma once

#include "binding/cross_entropy.h"
#include "cpu/classes/max_sum.h"
#include "math/cross_entropy.h"

namespace pyops::cpu {

template <class T>
struct Problem {
  using Acc = acc_t<T>;
  const T* logits;
  bool has_probabilities;  // a flag of its own: an empty tensor's pointer is null, too
  const int64_t* index;    // class indices, or null
  const T* target;         // class probabilities, or null
  const Acc* weight;
  const Acc* sample_weight;
  math::CrossEntropyParams<Acc> params;
  int64_t ignore_index;
  int64_t classes;
  int64_t inner;
  int64_t rows;
  Acc weight_sum;  // over all classes; read with label smoothing only

  explicit Problem(const CrossEntropyArguments& a)
      : logits(data<T>(a.logits)),
        has_probabilities(a.has_probabilities),
        index(a.has_probabilities ? nullptr : data<int64_t>(a.target)),
        target(a.has_probabilities ? data<T>(a.target) : nullptr),
        weight(data_or_null<Acc>(a.weight)),
        sample_weight(data_or_null<Acc>(a.sample_weight)),
        params{Acc(a.label_smoothing), Acc(a.z_loss), Acc(a.shape.classes)},
        ignore_index(a.ignore_index),
        classes(a.shape.classes),
        inner(a.shape.inner),
        rows(a.shape.rows()),
        weight_sum(Acc(a.shape.classes)) {
    if (!weight || params.label_smoothing == Acc(0)) return;
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += weight[c];
    weight_sum = static_cast<Acc>(sum);
  }

  Acc class_weight(int64_t c) const { return weight ? weight[c] : Acc(1); }
  Acc row_weight(int64_t row) const { return sample_weight ? sample_weight[row] : Acc(1); }
  bool is_class(int64_t y) const { return y >= 0 && y < classes; }
  bool needs_class_sum() const { return has_probabilities || params.label_smoothing > Acc(0); }

  // The weights of -log p_c that come from probabilities, or before scaling by e/C from smoothing.
  template <class V>
  V spread_weight(int64_t c, V probability) const {
    return (has_probabilities ? params.smoothed(probability) : V(Acc(1))) * class_weight(c);
  }
  Vec<Acc> spread_weights(int64_t c, int lanes, const T* row_target) const {
    const Vec<Acc> q =
        has_probabilities ? params.smoothed(load_lanes(row_target + c, lanes)) : Vec<Acc>(Acc(1));
    return weight ? q * load_lanes(weight + c, lanes) : q;
  }

  // q_c of every class but an indexed target.
  template <class V>
  V q(V spread) const {
    return has_probabilities ? spread : math::index_q(params, spread, false);
  }

  int64_t row_offset(RowGroup group, int64_t i) const {
    return group.offset + (inner == 1 ? i * classes : i);
  }

  RowGroups<Acc> groups() const {
    const int64_t per_outer = std::max<int64_t>(1, inner);
    return RowGroups<Acc>(classes, inner, rows / per_outer);
  }
};

// What one group of rows knows after its first pass over the classes.
template <class Acc>
struct GroupStats {
  PanelCopy<Acc> copy;  // of the logits of strided classes
  Panel<Acc> max;
  Panel<Acc> log_sum;
  Panel<Acc> class_sum;  // sum_c w_c t'_c (-log p_c) or, for smoothing, sum_c w_c (-log p_c)

  template <class T>
  explicit GroupStats(const Problem<T>& p)
      : copy(p.inner == 1 ? PanelCopy<Acc>::kMostClasses + 1 : p.classes) {}
  math::SoftmaxStats<Acc> operator[](int64_t i) const { return {max[i], log_sum[i]}; }
};

template <class T>
acc_t<T> row_class_sum(const Problem<T>& p, int64_t offset, math::SoftmaxStats<acc_t<T>> stats) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const T* x = p.logits + offset;
  const T* t = p.has_probabilities ? p.target + offset : nullptr;
  V total = Acc(0);
  for_each_vector<Acc>(p.classes, [&](int64_t c, int lanes) {
    // Missing lanes hold the row's lse, whose -log p is 0.
    const V nll = V(Acc(0)) - math::log_probability(load_lanes(x + c, lanes, stats.lse()), stats);
    const V term = p.spread_weights(c, lanes, t) * nll;
    total += lanes == V::kLanes ? term : first_lanes(term, lanes);
  });
  return horizontal_sum(total);
}

template <class T>
void panel_class_sum(const Problem<T>& p, RowGroup group, GroupStats<acc_t<T>>& s) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  s.class_sum.fill(0);
  for (int64_t c = 0; c < p.classes; ++c) {
    const int64_t at = group.offset + c * p.inner;
    for_each_vector<Acc>(group.width, [&](int64_t i, int lanes) {
      const math::SoftmaxStats<V> stats{s.max.vec(i), s.log_sum.vec(i)};
      const V log_p = math::log_probability(load_lanes(p.logits + at + i, lanes), stats);
      const V t = p.has_probabilities ? load_lanes(p.target + at + i, lanes) : V(Acc(0));
      s.class_sum.set(i, s.class_sum.vec(i) - p.spread_weight(c, t) * log_p);
    });
  }
}

template <class T>
void compute_stats(const Problem<T>& p, RowGroup group, GroupStats<acc_t<T>>& s) {
  using Acc = acc_t<T>;
  if (p.inner == 1) {
    for (int64_t i = 0; i < group.width; ++i) {
      const MaxSum<Acc> r = row_max_sum(p.logits + p.row_offset(group, i), p.classes);
      s.max[i] = r.max;
      s.log_sum[i] = r.sum;
    }
  } else {
    panel_max_sum(p.logits + group.offset, p.classes, p.inner, group.width, s.copy, s.max, s.log_sum);
  }
  for_each_vector<Acc>(group.width, [&](int64_t i, int) {
    s.log_sum.set(i, math::finish_stats(s.max.vec(i), s.log_sum.vec(i)).log_sum);
  });
  if (!p.needs_class_sum()) return;
  if (p.inner != 1) return panel_class_sum(p, group, s);
  for (int64_t i = 0; i < group.width; ++i) s.class_sum[i] = row_class_sum(p, p.row_offset(group, i), s[i]);
}

// The loss of row i of a group, and what it adds to the sums.
template <class T>
acc_t<T> row_loss(const Problem<T>& p, RowGroup group, int64_t i, const GroupStats<acc_t<T>>& s,
                  LossSum& sum) {
  using Acc = acc_t<T>;
  const int64_t row = group.first_row + i;
  const Acc class_sum = p.needs_class_sum() ? s.class_sum[i] : Acc(0);
  Acc loss = 0;
  if (p.has_probabilities) {
    loss = math::probability_loss(p.params, class_sum, s[i], p.row_weight(row));
    sum.weight += p.classes > 0 ? 1 : 0;  // torch: the mean over no elements is NaN
  } else if (const int64_t y = p.index[row]; y != p.ignore_index) {
    if (!p.is_class(y)) {
      sum.reject(y);
      return 0;
    }
    const Acc nll = -math::log_probability(to_acc(p.logits[p.row_offset(group, i) + y * p.inner]), s[i]);
    loss = math::index_loss(p.params, nll, p.class_weight(y), class_sum, s[i], p.row_weight(row));
    sum.weight += p.class_weight(y);
  }
  sum.loss += loss;
  return loss;
}

// ---- backward -------------------------------------------------------------------------------------------

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

// Everything the gradient of one row is made of. The target class differs from the others, so its value is
// computed apart, before anything is written: in place, writing destroys the logit it needs.
template <class Acc>
struct RowPlan {
  math::SoftmaxStats<Acc> stats;
  math::RowGradient<Acc> gradient;
  int64_t target = -1;  // class with a value of its own, or -1
  Acc target_value = 0;
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

template <class T>
RowPlan<acc_t<T>> plan_row(const Problem<T>& p, const Upstream<acc_t<T>>& up, int64_t row, int64_t offset) {
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
  const Acc q = math::index_q(p.params, p.class_weight(y), true);
  const Acc probability = math::probability(to_acc(p.logits[offset + y * p.inner]), plan.stats);
  plan.target_value = math::logit_gradient(plan.gradient, probability, q);
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
  if (plan.target >= 0) out[plan.target] = from_acc<T>(plan.target_value);
}

template <class T>
void write_panel(const Problem<T>& p, const Upstream<acc_t<T>>& up, RowGroup group, T* dx,
                 const PanelCopy<acc_t<T>>* copy) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  Panel<Acc> max, log_sum, on_probability, on_target, keep;
  RowPlan<Acc> plans[Panel<Acc>::kRows];
  for (int64_t i = 0; i < group.width; ++i) {
    const RowPlan<Acc>& plan = plans[i] = plan_row(p, up, group.first_row + i, group.offset + i);
    max[i] = plan.stats.max;
    log_sum[i] = plan.stats.log_sum;
    on_probability[i] = plan.gradient.on_probability;
    on_target[i] = plan.gradient.on_target;
    keep[i] = plan.zero ? Acc(0) : Acc(1);
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    const int64_t at = group.offset + c * p.inner;
    for_each_vector<Acc>(group.width, [&](int64_t i, int lanes) {
      const math::SoftmaxStats<V> stats{max.vec(i), log_sum.vec(i)};
      const math::RowGradient<V> gradient{on_probability.vec(i), on_target.vec(i)};
      const V logit = copy ? copy->vec(c, i) : load_lanes(p.logits + at + i, lanes);
      const V probability = math::probability(logit, stats);
      const V t = p.has_probabilities ? load_lanes(p.target + at + i, lanes) : V(Acc(0));
      const V grad = math::logit_gradient(gradient, probability, p.q(p.spread_weight(c, t)));
      store_lanes(dx + at + i, select_greater(keep.vec(i), V(Acc(0)), grad, V(Acc(0))), lanes);
    });
  }
  for (int64_t i = 0; i < group.width; ++i) {
    if (plans[i].target >= 0) {
      dx[group.offset + i + plans[i].target * p.inner] = from_acc<T>(plans[i].target_value);
    }
  }
}

// `copy`, if it is not null, holds the logits of strided classes.
template <class T>
void write_group(const Problem<T>& p, const Upstream<acc_t<T>>& up, RowGroup group, T* dx,
                 const PanelCopy<acc_t<T>>* copy = nullptr) {
  if (p.inner != 1) return write_panel(p, up, group, dx, copy);
  RowPlan<acc_t<T>> plans[Panel<acc_t<T>>::kRows];
  for (int64_t i = 0; i < group.width; ++i)
    plans[i] = plan_row(p, up, group.first_row + i, p.row_offset(group, i));
  for (int64_t i = 0; i < group.width; ++i) write_row(p, plans[i], p.row_offset(group, i), dx);
}

template <class T>
void backward_rows(const Problem<T>& p, const Upstream<acc_t<T>>& up, T* dx) {
  p.groups().for_each([&](RowGroup group) { write_group(p, up, group, dx); });
}

// ---- forward, and both at once --------------------------------------------------------------------------

// Calls after(group, copy) when a group's statistics are written and its logits are still in cache.
template <class T, class After>
LossSum forward_rows(const Problem<T>& p, acc_t<T>* per_row_loss, acc_t<T>* stats, const After& after) {
  return p.groups().template sum<LossSum>([&](LossSum& sum, RowGroup group) {
    GroupStats<acc_t<T>> s(p);
    compute_stats(p, group, s);
    for (int64_t i = 0; i < group.width; ++i) {
      const int64_t row = group.first_row + i;
      stats[row] = s.max[i];
      stats[p.rows + row] = s.log_sum[i];
      const acc_t<T> loss = row_loss(p, group, i, s, sum);
      if (per_row_loss) per_row_loss[row] = loss;
    }
    after(group, s.copy);
  });
}

// What the mean divides by, from the targets alone.
template <class T>
double target_weight(const Problem<T>& p) {
  if (p.has_probabilities) return p.classes > 0 ? static_cast<double>(p.rows) : 0.0;
  return parallel_sum<double>(p.rows, 1, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = p.index[row];
      if (y != p.ignore_index && p.is_class(y)) sum += p.class_weight(y);
    }
    return sum;
  });
}

}  // namespace pyops::cpu
