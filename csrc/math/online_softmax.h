// One-pass softmax statistics for a thread that sees part of a row (Milakov and Gimelshein 2018,
// arXiv:1805.02867): a running maximum and sum of exp, and optionally sum_c q_c (x_c - max) for weights q,
// all rescaled when the maximum rises. Threads are merged by rescaling each to the common maximum, then adding.
#pragma once

#include "../common/macros.h"
#include "softmax.h"

namespace pyops::math {

template <class T>
struct OnlineSoftmax {
  T max = -infinity<T>();
  T sum = T(0);  // of exp(x - shift_of(max))

  // Moves the sum to a maximum at least as large. The old maximum is not shifted: its -inf says that the sum
  // is empty and exp(-inf) keeps it so.
  PYOPS_HD void raise(T new_max) {
    sum *= exp(max - shift_of(new_max));
    max = new_max;
  }

  template <int kCount>
  PYOPS_HD void add(const T (&x)[kCount]) {
    T new_max = max;
    for (int k = 0; k < kCount; ++k) new_max = select_greater(x[k], new_max, x[k], new_max);
    raise(new_max);
    const T shift = shift_of(max);
    for (int k = 0; k < kCount; ++k) sum += exp(x[k] - shift);
  }
};

template <class T>
struct WeightedOnlineSoftmax {
  OnlineSoftmax<T> softmax;
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
    for (int k = 0; k < kCount; ++k) new_max = select_greater(x[k], new_max, x[k], new_max);
    raise(new_max);
    const T shift = shift_of(new_max);
    for (int k = 0; k < kCount; ++k) {
      const T centred = x[k] - shift;
      softmax.sum += exp(centred);
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

// What an output needs of its row: the maximum and, for log-softmax, log s, for softmax 1/s. Dividing by s
// instead of using exp(log p) keeps the rounding of log s out of the probabilities.
template <class T>
struct SoftmaxNormaliser {
  T max;
  T sum_term;
};

template <class T>
PYOPS_HD SoftmaxNormaliser<T> softmax_normaliser(T max, T sum, bool log) {
  const SoftmaxStats<T> stats = finish_stats(max, sum);
  return {max, log || stats.log_sum != stats.log_sum ? stats.log_sum : T(1) / sum};
}

template <class T>
PYOPS_HD T normalised(T x, SoftmaxNormaliser<T> row, bool log) {
  return log ? (x - row.max) - row.sum_term : exp(x - row.max) * row.sum_term;
}

}  // namespace pyops::math
