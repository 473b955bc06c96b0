// Exchanges between the lanes of vectors.
#pragma once

#include <utility>

#include "cpu/simd/vec.h"

namespace pyops::cpu {

// The lanes of a and b that `index` names, b's numbers following a's.
template <class Acc, int... index>
PYOPS_HD Vec<Acc> shuffle_lanes(Vec<Acc> a, Vec<Acc> b, std::integer_sequence<int, index...>) {
#if defined(__clang__)
  return Vec<Acc>(__builtin_shufflevector(a.v, b.v, index...));
#else
  return Vec<Acc>(__builtin_shuffle(a.v, b.v, typename Vec<Acc>::NativeInt{index...}));
#endif
}

template <class Acc>
using LaneNumbers = std::make_integer_sequence<int, Vec<Acc>::kLanes>;

template <int odd, class Acc, int... lane>
PYOPS_HD Vec<Acc> every_other(Vec<Acc> a, Vec<Acc> b, std::integer_sequence<int, lane...>) {
  return shuffle_lanes(a, b, std::integer_sequence<int, (2 * lane + odd)...>{});
}
// Lanes 0, 2, 4, ... (odd = 0) or 1, 3, 5, ... of a and b.
template <int odd, class Acc>
PYOPS_HD Vec<Acc> every_other(Vec<Acc> a, Vec<Acc> b) {
  return every_other<odd>(a, b, LaneNumbers<Acc>{});
}

template <int half, class Acc, int... lane>
PYOPS_HD Vec<Acc> interleave(Vec<Acc> a, Vec<Acc> b, std::integer_sequence<int, lane...>) {
  constexpr int n = Vec<Acc>::kLanes;
  return shuffle_lanes(a, b, std::integer_sequence<int, (half * n / 2 + lane / 2 + lane % 2 * n)...>{});
}
// a0 b0 a1 b1 ... : the lower halves of a and b interleaved for half = 0, the upper for half = 1.
template <int half, class Acc>
PYOPS_HD Vec<Acc> interleave(Vec<Acc> a, Vec<Acc> b) {
  return interleave<half>(a, b, LaneNumbers<Acc>{});
}

// Transposes a square of kLanes vectors. Interleaving row i with row i + n/2 rotates the bits of
// the (row, lane) index by one, so log2(n) rounds exchange row and lane.
template <class Acc>
PYOPS_HD void transpose(Vec<Acc> (&rows)[Vec<Acc>::kLanes]) {
  constexpr int n = Vec<Acc>::kLanes;
#pragma GCC unroll 8
  for (int round = 1; round < n; round *= 2) {
    Vec<Acc> next[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + n / 2]);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

}  // namespace pyops::cpu
