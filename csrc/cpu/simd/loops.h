// Loops over the elements of a row or of one thread's share, a vector at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/simd/stream.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Independent accumulators hide the latency of a max, an add or an exp.
constexpr int kUnroll = 4;

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

// y[i] = f(x[i]...) for n elements of one thread's share; f takes and returns vectors. y may be one of the x.
// Vectors are loaded kUnroll at a time before any is stored: with y possibly an x, the compiler could not
// move a load across a store.
// With kStream full vectors are stored past the caches (stream.h).
template <bool kStream = false, class Out, class F, class... In>
void transform(int64_t n, const F& f, Out* y, const In*... x) {
  using Acc = acc_t<Out>;
  constexpr int kLanes = Vec<Acc>::kLanes;
  constexpr int kPair = 2 * kLanes;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    if constexpr ((std::is_same_v<Out, bfloat16> && ... && std::is_same_v<In, bfloat16>)) {
      EvenOdd v[kUnroll / 2];
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll / 2; ++u) {
        v[u] = {f(EvenOdd::load(x + i + u * kPair).even...), f(EvenOdd::load(x + i + u * kPair).odd...)};
      }
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll / 2; ++u) v[u].store(y + i + u * kPair);
    } else {
      Vec<Acc> v[kUnroll];
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll; ++u) v[u] = f(load<Acc>(x + i + u * kLanes)...);
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll; ++u) put(y + i + u * kLanes, v[u], kLanes, kStream);
    }
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    store_lanes(y + i, f(load_lanes(x + i, lanes)...), lanes);
  }
}

}  // namespace pyops::cpu
