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

  // Few classes leave most lanes of a vector along them empty: then, too, vectors run across rows.
  bool few_classes() const { return inner == 1 && classes <= 16 && !has_probabilities; }
  bool in_panels() const { return inner != 1 || few_classes(); }

  int64_t row_offset(RowGroup group, int64_t i) const {
    return group.offset + (inner == 1 ? i * classes : i);
  }

  RowGroups<Acc> groups() const {
    const int64_t per_outer = std::max<int64_t>(1, inner);
    return RowGroups<Acc>(classes, inner, rows / per_outer, few_classes());
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
      : copy(p.in_panels() ? p.classes : PanelCopy<Acc>::kMostClasses + 1) {}
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
      const V logit = s.copy ? s.copy.vec(c, i) : load_lanes(p.logits + at + i, lanes);
      const V log_p = math::log_probability(logit, stats);
      const V t = p.has_probabilities ? load_lanes(p.target + at + i, lanes) : V(Acc(0));
      s.class_sum.set(i, s.class_sum.vec(i) - p.spread_weight(c, t) * log_p);
    });
  }
}

template <class T>
void compute_stats(const Problem<T>& p, RowGroup group, GroupStats<acc_t<T>>& s) {
  using Acc = acc_t<T>;
  if (p.few_classes()) {
    copy_rows(p.logits + group.offset, p.classes, group.width, s.copy);
    max_sum_of(s.copy, p.classes, group.width, s.max, s.log_sum);
  } else if (p.inner == 1) {
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
  if (p.in_panels()) return panel_class_sum(p, group, s);
  for (int64_t i = 0; i < group.width; ++i) s.class_sum[i] = row_class_sum(p, p.row_offset(group, i), s[i]);
}

// The logit of class y of row i of a panel: from the copy, if there is one.
template <class T>
acc_t<T> panel_logit(const Problem<T>& p, RowGroup group, int64_t i, int64_t y,
                     const PanelCopy<acc_t<T>>* copy) {
  return copy ? copy->of_class(y)[i] : to_acc(p.logits[group.offset + i + y * p.inner]);
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
    const Acc logit = p.in_panels() ? panel_logit(p, group, i, y, s.copy ? &s.copy : nullptr)
                                    : to_acc(p.logits[p.row_offset(group, i) + y]);
    const Acc nll = -math::log_probability(logit, s[i]);
    loss = math::index_loss(p.params, nll, p.class_weight(y), class_sum, s[i], p.row_weight(row));
    sum.weight += p.class_weight(y);
  }
  sum.loss += loss;
  return loss;
}

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
