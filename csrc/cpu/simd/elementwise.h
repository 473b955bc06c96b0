// Loops over elements: one output element from the elements at the same place in one or more inputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/runtime/parallel.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace pyops::cpu {

// y[i] = f(x[i]...) for n elements of one thread's share; f takes and returns vectors. y may be one of the x.
// Vectors are loaded kUnroll at a time before any is stored: with y possibly an x, the compiler could not
// move a load across a store.
template <class Out, class F, class... In>
void transform(int64_t n, const F& f, Out* y, const In*... x) {
  using Acc = acc_t<Out>;
  constexpr int kLanes = Vec<Acc>::kLanes;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    Vec<Acc> v[kUnroll];
    PYOPS_UNROLL
    for (int u = 0; u < kUnroll; ++u) v[u] = f(load<Acc>(x + i + u * kLanes)...);
    PYOPS_UNROLL
    for (int u = 0; u < kUnroll; ++u) store(y + i + u * kLanes, v[u]);
  }
  for (; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    store_lanes(y + i, f(load_lanes(x + i, lanes)...), lanes);
  }
}

// As transform, by several threads; `cost` is that of an element in units of a plain copy's.
template <class Out, class F, class... In>
void elementwise(int64_t n, int64_t cost, const F& f, Out* y, const In*... x) {
  // Shares are whole blocks, so that only the last one ends inside a vector.
  constexpr int64_t kBlock = 1024;
  parallel_for((n + kBlock - 1) / kBlock, kBlock * cost, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock;
    transform(std::min(n, end * kBlock) - first, f, y + first, (x + first)...);
  });
}

}  // namespace pyops::cpu
