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
// f(accumulator, index, v); the accumulators are joined by `merge`. Of bfloat16 a vector holds every other
// element of two vectors' worth, and the index is about where they lie.
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
    for (int u = 0; u < kUnroll; u += 2) {
      const auto v = TwoVectors<T>::load(x + i + u * kLanes);
      f(acc[u], i + u * kLanes, v.first);
      f(acc[u + 1], i + (u + 1) * kLanes, v.second);
    }
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    f(acc[0], i, load_lanes(x + i, lanes, fill));
  }
  return merge(merge(acc[0], acc[1]), merge(acc[2], acc[3]));
}

// The sum of f(elements...) of n elements of each row, all of type T.
template <class T, class F, class... Same>
PYOPS_HD acc_t<T> sum_row(int64_t n, const F& f, const T* x, const Same*... more) {
  using V = Vec<acc_t<T>>;
  constexpr int kLanes = V::kLanes;
  V first = acc_t<T>(0), second = acc_t<T>(0);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    first += f(TwoVectors<T>::load(x + i).first, TwoVectors<T>::load(more + i).first...);
    second += f(TwoVectors<T>::load(x + i).second, TwoVectors<T>::load(more + i).second...);
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    first += f(load_lanes(x + i, lanes), load_lanes(more + i, lanes)...);
  }
  return horizontal_sum(first + second);
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
  constexpr bool kParted = (std::is_same_v<Out, bfloat16> && ... && std::is_same_v<In, bfloat16>);
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    TwoVectors<Out, kParted> v[kUnroll / 2];
    PYOPS_UNROLL
    for (int u = 0; u < kUnroll / 2; ++u) {
      v[u] = {f(TwoVectors<In, kParted>::load(x + i + u * kPair).first...),
              f(TwoVectors<In, kParted>::load(x + i + u * kPair).second...)};
    }
    PYOPS_UNROLL
    for (int u = 0; u < kUnroll / 2; ++u) {
      if constexpr (kParted) {
        v[u].store(y + i + u * kPair);
      } else {
        put(y + i + u * kPair, v[u].first, kLanes, kStream);
        put(y + i + u * kPair + kLanes, v[u].second, kLanes, kStream);
      }
    }
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    store_lanes(y + i, f(load_lanes(x + i, lanes)...), lanes);
  }
}

}  // namespace pyops::cpu
