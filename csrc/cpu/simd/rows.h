// Loops over the classes of one row, or of a panel of neighbouring rows.
//
// When a row's classes are contiguous, vectors run along the classes. Otherwise classes are `stride` elements
// apart while the same class of neighbouring rows is contiguous, so vectors run across rows: a panel is
// kPanel such rows, one cache-friendly strip per class.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd/vec.h"
#include "math/online_softmax.h"

namespace pyops::cpu {

// Independent accumulators hide the latency of a max, an add or an exp.
constexpr int kUnroll = 4;

template <class T>
void store_lanes(T* p, Vec<acc_t<T>> x, int lanes) {
  if (lanes == Vec<acc_t<T>>::kLanes) {
    store(p, x);
  } else {
    store_partial(p, x, lanes);
  }
}

template <class T>
Vec<acc_t<T>> load_lanes(const T* p, int lanes, acc_t<T> fill = 0) {
  return lanes == Vec<acc_t<T>>::kLanes ? load<acc_t<T>>(p) : load_partial<acc_t<T>>(p, lanes, fill);
}

// The first `lanes` lanes, zeros behind them.
template <class Acc>
Vec<Acc> first_lanes(Vec<Acc> v, int lanes) {
  Acc values[Vec<Acc>::kLanes];
  store(values, v);
  return load_lanes(values, lanes);
}

// Calls f(index, lanes) for each vector's worth of n contiguous elements.
template <class Acc, class F>
PYOPS_HD void for_each_vector(int64_t n, const F& f) {
  constexpr int kLanes = Vec<Acc>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, static_cast<int>(n - i));
}

// Reduces n elements: every vector v, missing lanes holding `fill`, is joined to an accumulator by
// f(accumulator, index, v); the accumulators are joined by `merge`.
template <class T, class F, class Merge>
PYOPS_HD Vec<acc_t<T>> reduce_row(const T* x, int64_t n, acc_t<T> start, acc_t<T> fill, const F& f,
                                  const Merge& merge) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  constexpr int kLanes = V::kLanes;
  if (n <= kLanes) {
    V single = start;
    f(single, 0, load_lanes(x, static_cast<int>(n), fill));
    return single;
  }
  V acc[kUnroll];
  for (V& a : acc) a = start;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    for (int u = 0; u < kUnroll; ++u) f(acc[u], i + u * kLanes, load<Acc>(x + i + u * kLanes));
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    f(acc[0], i, load_lanes(x + i, lanes, fill));
  }
  return merge(merge(acc[0], acc[1]), merge(acc[2], acc[3]));
}

template <class V>
PYOPS_HD V add(V a, V b) {
  return a + b;
}

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

// ---- panels of rows whose classes are strided -----------------------------------------------------------

template <class Acc>
struct Panel {
  static constexpr int kRows = kUnroll * Vec<Acc>::kLanes;
  alignas(kVectorBytes) Acc rows[kRows];

  Acc& operator[](int64_t i) { return rows[i]; }
  const Acc& operator[](int64_t i) const { return rows[i]; }
  Vec<Acc> vec(int64_t i) const { return load<Acc>(rows + i); }
  void set(int64_t i, Vec<Acc> v) { store(rows + i, v); }
  void fill(Acc value) { std::fill(rows, rows + kRows, value); }
};

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
