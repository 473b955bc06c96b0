// One-pass softmax statistics (Milakov and Gimelshein 2018, arXiv:1805.02867). OnlineSoftmax is for a thread
// that sees part of a row: a running maximum and sum of exp, and optionally sum_c q_c (x_c - max) for weights
// q, all rescaled when the maximum rises. Threads are merged by rescaling each to the common maximum, then
// adding.
#pragma once

#include "common/macros.h"
#include "math/softmax.h"

namespace pyops::math {

// T is what sums are in, Storage what the logits are stored as.
template <class T, class Storage = T>
struct OnlineSoftmax {
  T max = -infinity<T>();
  T sum = T(0);  // of exp(x - shift_of(max))

  // Moves the sum to a maximum at least as large. The old maximum is not shifted: its -inf says that the sum
  // is empty and exp(-inf) keeps it so.
  PYOPS_HD void raise(T new_max) {
    sum *= exp_as<Storage>(max - shift_of(new_max));
    max = new_max;
  }

  template <int kCount>
  PYOPS_HD void add(const T (&x)[kCount]) {
    T new_max = max;
    for (int k = 0; k < kCount; ++k) new_max = larger_number(x[k], new_max);
    raise(new_max);
    const T shift = shift_of(max);
    for (int k = 0; k < kCount; ++k) sum += exp_as<Storage>(x[k] - shift);
  }
};

template <class T, class Storage = T>
struct WeightedOnlineSoftmax {
  OnlineSoftmax<T, Storage> softmax;
  T weighted = T(0);  // sum_c q_c (x_c - shift_of(max))
  T weight = T(0);    // sum_c q_c

  // Every term q_c (x_c - max) and every correction has the sign of -q_c: with weights that are not negative
  // nothing cancels, whatever the logits' common offset.
  PYOPS_HD void raise(T new_max) {
    weighted += weight * (shift_of(softmax.max) - shift_of(new_max));
    softmax.raise(new_max);
  }

  template <int kCount>
  PYOPS_HD void add(const T (&x)[kCount], const T (&q)[kCount]) {
    T new_max = softmax.max;
    for (int k = 0; k < kCount; ++k) new_max = larger_number(x[k], new_max);
    raise(new_max);
    const T shift = shift_of(new_max);
    for (int k = 0; k < kCount; ++k) {
      const T centred = x[k] - shift;
      softmax.sum += exp_as<Storage>(centred);
      weighted += q[k] * centred;
      weight += q[k];
    }
  }
};

// sum_c q_c (-log p_c) from the merged sums.
template <class T>
PYOPS_HD T weighted_nll(T weighted, T weight, SoftmaxStats<T> stats) {
  return weight * stats.log_sum - weighted;
}

// One more logit joins a running (max, sum), which start as (-inf, 0). One exp serves both cases, because
// either the old sum or the new term has the factor exp(0). V is T, or a vector of T on the CPU.
template <class T, class V>
PYOPS_HD void online_push(V& max, V& sum, V x) {
  const V larger = select_greater(x, max, x, max);
  const V smaller = select_greater(x, max, max, x);  // NaN compares false and gets into the sum here
  const V shift = select_greater(larger, V(-infinity<T>()), larger, V(T(0)));
  const V decay = exp(smaller - shift);
  sum = select_greater(x, max, sum * decay + V(T(1)), sum + decay);
  max = larger;
}

}  // namespace pyops::math
