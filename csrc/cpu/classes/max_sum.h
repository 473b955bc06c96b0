// The maximum of a row, and the sum of exp(x - maximum) over it: what softmax and the losses begin with.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/classes/row_groups.h"
#include "cpu/simd/loops.h"
#include "math/online_softmax.h"

namespace pyops::cpu {

template <class T>
acc_t<T> row_max(const T* x, int64_t n) {
  using V = Vec<acc_t<T>>;
  constexpr acc_t<T> kLowest = -math::infinity<acc_t<T>>();
  const auto join = [](V& acc, int64_t, V v) { acc = max(v, acc); };
  return horizontal_max(reduce_row(x, n, kLowest, kLowest, join, [](V a, V b) { return max(a, b); }));
}

// Fetches the elements that follow the summed ones into cache: the sum is bound by arithmetic, and the
// maximum of the next piece would otherwise wait for memory.
template <class T>
acc_t<T> row_sum_exp(const T* x, int64_t n, acc_t<T> shift) {
  using V = Vec<acc_t<T>>;
  const auto join = [=](V& acc, int64_t i, V v) {
    __builtin_prefetch(x + n + i);
    acc += exp(v - shift);
  };
  return horizontal_sum(reduce_row(x, n, acc_t<T>(0), -math::infinity<acc_t<T>>(), join, add<V>));
}

template <class T>
struct MaxSum {
  T max;
  T sum;  // of exp(x - shift_of(max))
};

// The row is visited in pieces that fit the L1 cache, so that the sum reads what the maximum has just
// fetched; a new maximum rescales the sum so far.
template <class T>
MaxSum<acc_t<T>> row_max_sum(const T* x, int64_t n) {
  constexpr int64_t kPiece = 4096;
  MaxSum<acc_t<T>> r{-math::infinity<acc_t<T>>(), 0};
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t length = std::min(kPiece, n - begin);
    const acc_t<T> piece_max = row_max(x + begin, length);
    if (piece_max > r.max) {
      if (begin > 0) r.sum *= math::exp(r.max - piece_max);
      r.max = piece_max;
    }
    r.sum += row_sum_exp(x + begin, length, math::shift_of(r.max));
  }
  return r;
}

// The same for a panel of rows.
template <class T>
void panel_max_sum(const T* x, int64_t classes, int64_t stride, int64_t width, Panel<acc_t<T>>& max,
                   Panel<acc_t<T>>& sum) {
  using Acc = acc_t<T>;
  max.fill(-math::infinity<Acc>());
  sum.fill(0);
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      Vec<Acc> m = max.vec(i), s = sum.vec(i);
      math::online_push<Acc>(m, s, load_lanes(x + c * stride + i, lanes));
      max.set(i, m);
      sum.set(i, s);
    });
  }
}

}  // namespace pyops::cpu
