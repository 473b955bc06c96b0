// Softmax cross-entropy: the formulas of one row, forward and derivative.
//
// With m = max_c x_c and s = sum_c exp(x_c - m):
//   log p_c = (x_c - m) - log s,   lse = m + log s.
// m and log s are kept apart because m + log s rounds away log s when the logits share a large offset;
// this way the result does not change when a constant is added to every logit.
//
// Class index y, label smoothing e (Szegedy et al. 2016, arXiv:1512.00567), class weights w, z-loss z
// (Chowdhery et al. 2022, arXiv:2204.02311, section 5), sample weight v, C classes:
//   loss = v [ (1-e) w_y (-log p_y) + (e/C) sum_c w_c (-log p_c) + z lse^2 ]
// Class probabilities t, smoothed to t'_c = (1-e) t_c + e/C:
//   loss = v [ sum_c w_c t'_c (-log p_c) + z lse^2 ]
//
// With q_c the weight that multiplies -log p_c, and d(-log p_j)/dx_c = p_c - [c = j], d lse/dx_c = p_c:
//   dloss/dx_c = v [ (sum_j q_j + 2 z lse) p_c - q_c ].
#pragma once

#include "common/macros.h"
#include "math/softmax.h"

namespace pyops::math {

template <class T>
struct CrossEntropyParams {
  T label_smoothing;
  T z_loss;
  T num_classes;

  // The weight of each class's -log p_c that comes from smoothing alone.
  PYOPS_HD T uniform() const { return label_smoothing / num_classes; }
  PYOPS_HD T on_target() const { return T(1) - label_smoothing; }

  // V is T, or a vector of T on the CPU.
  template <class V>
  PYOPS_HD V smoothed(V probability) const {
    return probability * on_target() + uniform();
  }
};

// `target_nll` is -log p_y and `smooth_nll` is sum_c w_c (-log p_c), which is read only with smoothing:
// a class of probability zero makes it infinite.
template <class T>
PYOPS_HD T index_loss(const CrossEntropyParams<T>& p, T target_nll, T target_weight, T smooth_nll,
                      SoftmaxStats<T> stats, T sample_weight) {
  T loss = p.on_target() * target_weight * target_nll;
  if (p.label_smoothing > T(0)) loss += p.uniform() * smooth_nll;
  if (p.z_loss != T(0)) loss += p.z_loss * stats.lse() * stats.lse();
  return sample_weight * loss;
}

// `weighted_nll` is sum_c w_c t'_c (-log p_c).
template <class T>
PYOPS_HD T probability_loss(const CrossEntropyParams<T>& p, T weighted_nll, SoftmaxStats<T> stats,
                            T sample_weight) {
  if (p.z_loss != T(0)) weighted_nll += p.z_loss * stats.lse() * stats.lse();
  return sample_weight * weighted_nll;
}

// The gradient of one row is  on_probability * p_c - on_target * q_c.
template <class T>
struct RowGradient {
  T on_probability;
  T on_target;
};

// `grad` is d(total)/d(row loss), `sum_q` is sum_c q_c, `grad_lse` the gradient of a returned lse.
template <class T>
PYOPS_HD RowGradient<T> row_gradient(const CrossEntropyParams<T>& p, T grad, T sum_q, SoftmaxStats<T> stats,
                                     T sample_weight, T grad_lse) {
  const T scale = grad * sample_weight;
  T on_probability = scale * sum_q;
  if (p.z_loss != T(0)) on_probability += scale * T(2) * p.z_loss * stats.lse();
  return {on_probability + grad_lse, scale};
}

// sum_c q_c for a class index.
template <class T>
PYOPS_HD T index_sum_q(const CrossEntropyParams<T>& p, T target_weight, T weight_sum) {
  return p.on_target() * target_weight + p.uniform() * weight_sum;
}

// q_c for a class index; `class_weight` is w_c. V is T, or a vector of T on the CPU.
template <class V, class T>
PYOPS_HD V index_q(const CrossEntropyParams<T>& p, V class_weight, bool is_target) {
  return class_weight * (is_target ? p.on_target() + p.uniform() : p.uniform());
}

template <class V, class T>
PYOPS_HD V logit_gradient(const RowGradient<T>& row, V probability, V q) {
  return probability * row.on_probability - q * row.on_target;
}

}  // namespace pyops::math
