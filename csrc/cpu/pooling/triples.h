// Windows that are 3 elements wide and 2 apart, in rows of one channel: a vector of windows takes its taps
// from shuffles of three vectors of the row as it lies in memory. Split rows would be read back before they
// have left the store buffers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/pooling/position_lanes.h"
#include "cpu/pooling/strided_rows.h"

namespace pyops::cpu {

// The padding holds one element of a window at most.
inline bool in_triples(const math::SlidingAxis& axis) {
  return axis.kernel == 3 && axis.stride == 2 && axis.padding <= 1 && axis.dilation == 1;
}

template <int first, class Acc, int... lane>
PYOPS_HD Vec<Acc> lanes_from(Vec<Acc> a, Vec<Acc> b, std::integer_sequence<int, lane...>) {
  return shuffle_lanes(a, b, std::integer_sequence<int, (first + lane)...>{});
}
// The lanes of a, then b, that begin with lane `first` of a.
template <int first, class Acc>
PYOPS_HD Vec<Acc> lanes_from(Vec<Acc> a, Vec<Acc> b) {
  return lanes_from<first>(a, b, LaneNumbers<Acc>{});
}

// Which lanes of a vector that begins `at` elements into a row lie in it: the same for all rows of an image.
// It may begin before the row and end behind it.
template <class Acc>
struct RowPart {
  static constexpr int kLanes = Vec<Acc>::kLanes;
  int64_t at;
  int first, end;
  uint32_t mask;  // a bit for each

  PYOPS_HD static RowPart of(int64_t at, int64_t size) {
    const int first = at < 0 ? static_cast<int>(std::min<int64_t>(-at, kLanes)) : 0;
    const int end = static_cast<int>(std::clamp<int64_t>(size - at, 0, kLanes));
    return {at, first, end, ((1u << end) - 1u) & ~((1u << first) - 1u)};
  }
  PYOPS_HD bool whole() const { return first == 0 && end == kLanes; }

  // `fill` in the other lanes.
  template <class T>
  PYOPS_HD Vec<Acc> load(const T* row, Acc fill) const {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
      return typename Vec<Acc>::Native(
          _mm512_mask_loadu_ps(Vec<Acc>(fill).v, static_cast<__mmask16>(mask), row + at));
    }
#endif
    if (whole()) return cpu::load<Acc>(row + at);
    Acc lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i >= first && i < end ? to_acc(row[at + i]) : fill;
    return cpu::load<Acc>(lanes);
  }

  // Of rows of positions; zeros in the other lanes.
  template <class A>
  PYOPS_HD Positions<Acc> positions(const A* row) const {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (std::is_same_v<Acc, float> && std::is_same_v<A, uint8_t>) {
      const __m128i some = _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), row + at);
      return (Positions<Acc>)_mm512_cvtepu8_epi32(some);
    }
#endif
    if (whole()) return load_positions<Acc>(row + at);
    A lanes[kLanes] = {};
    for (int i = first; i < end; ++i) lanes[i] = row[at + i];
    return load_positions<Acc>(lanes);
  }
};

// The elements of a vector's worth of windows, by tap: from three vectors, of which the first begins with the
// first window and the others follow.
template <class Acc>
struct TripleTaps {
  Vec<Acc> tap[3];
  PYOPS_HD static TripleTaps of(Vec<Acc> a, Vec<Acc> b, Vec<Acc> c) {
    const Vec<Acc> first = every_other<0>(a, b);
    return {{first, every_other<1>(a, b), lanes_from<1>(first, c)}};
  }
};

// The three vectors from `at` elements into a row of `size`, where that is -1 in the padding.
template <class Acc>
struct TripleVectors {
  Vec<Acc> a, b, c;
};
template <class Acc, class T>
PYOPS_HD TripleVectors<Acc> load_triples(const T* row, int64_t at, int64_t size, Acc fill) {
  constexpr int kLanes = Vec<Acc>::kLanes;
  const auto part = [&](int64_t from)
                        __attribute__((always_inline)) { return load_within(row, from, size, fill); };
  const Vec<Acc> first = at >= 0 ? part(at) : lanes_from<kLanes - 1>(Vec<Acc>(fill), part(0));
  return {first, part(at + kLanes), part(at + 2 * kLanes)};
}

}  // namespace pyops::cpu
