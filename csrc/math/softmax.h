// Softmax and log-softmax of one row, forward and derivative.
//
// With m = max_c x_c and s = sum_c exp(x_c - m):  p_c = exp(x_c - m) / s,  log p_c = (x_c - m) - log s.
// Subtracting the maximum keeps exp in range (Milakov and Gimelshein 2018, arXiv:1805.02867, for the one-pass
// form), and no formula here changes when a constant is added to every logit.
//
// Derivatives, with y the output and g its upstream gradient:
//   softmax:      dx_c = y_c (g_c - sum_j g_j y_j)         log-softmax:  dx_c = g_c - exp(y_c) sum_j g_j
#pragma once

#include "common/fast_math.h"
#include "common/macros.h"

namespace pyops::math {

// Row statistics shared by forward and backward.
template <class T>
struct SoftmaxStats {
  T max;
  T log_sum;
  PYOPS_HD T lse() const { return max + log_sum; }
};

// V is T, or a vector of T on the CPU. Storage: what the logits and results of a function are stored as,
// where a short exp may do (exp_as); double stands for any.
template <class V, class T>
PYOPS_HD V log_probability(V x, SoftmaxStats<T> stats) {
  return (x - stats.max) - stats.log_sum;
}

template <class Storage = double, class V, class T>
PYOPS_HD V probability(V x, SoftmaxStats<T> stats) {
  return exp_as<Storage>(log_probability(x, stats));
}

// What to subtract from the logits before exp: their maximum, except that a maximum of -inf (all
// logits so far are -inf) would turn -inf - -inf into NaN and spoil the finite logits that follow.
template <class T>
PYOPS_HD T shift_of(T max) {
  return max == -infinity<T>() ? T(0) : max;
}

// A row whose maximum is infinite has no distribution (-inf: log(0/0), +inf: inf - inf): NaN as in torch,
// which is what max - max is then. T is a number, or a vector of rows' numbers on the CPU.
template <class T>
PYOPS_HD SoftmaxStats<T> finish_stats(T max, T sum) {
  return {max, log(sum) + (max - max)};
}

// What an output needs of its row: the maximum and, for log-softmax, log s, for softmax 1/s. Dividing by s
// instead of using exp(log p) keeps the rounding of log s out of the probabilities.
template <class T>
struct SoftmaxNormaliser {
  T max;
  T sum_term;
};

template <class T>
PYOPS_HD SoftmaxNormaliser<T> softmax_normaliser(T max, T sum, bool log) {
  return {max, log ? finish_stats(max, sum).log_sum : T(1) / sum + (max - max)};
}

// V and R are a number, or vectors on the CPU: of one row's elements, or of one element of several rows.
template <class Storage = double, class V, class R>
PYOPS_HD V normalised(V x, const SoftmaxNormaliser<R>& row, bool log) {
  return log ? (x - row.max) - row.sum_term : exp_as<Storage>(x - row.max) * row.sum_term;
}

template <class V>
PYOPS_HD V softmax_gradient(V y, V grad, V dot) {
  return y * (grad - dot);
}

template <class Storage = double, class V>
PYOPS_HD V log_softmax_gradient(V y, V grad, V grad_sum) {
  return grad - exp_as<Storage>(y) * grad_sum;
}

}  // namespace pyops::math
