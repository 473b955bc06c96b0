// Vectors of window positions beside the vectors of values they belong to, and running maxima with them.
//
// A position takes as many bits in a register as a value, and one byte (or four) in memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/fast_math.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

// How Vec<Acc>::kLanes positions become numbers of type A in memory and back. The compiler converts between
// neighbouring widths well, but takes larger steps lane by lane; so conversions go from width to width.
template <class Acc, class A>
struct StoredPositions;
template <>
struct StoredPositions<float, uint8_t> {
  typedef uint8_t Lanes __attribute__((vector_size(kVectorBytes / 4)));
  typedef uint16_t Wider __attribute__((vector_size(kVectorBytes / 2)));
  using Wide = NativeVectors<float>::Bits;

  PYOPS_HD static Wide widen(Lanes x) {
#if defined(__AVX512F__)
    return (Wide)_mm512_cvtepu8_epi32((__m128i)x);
#else
    return __builtin_convertvector(__builtin_convertvector(x, Wider), Wide);
#endif
  }
  PYOPS_HD static Lanes narrow(Wide x) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtepi32_epi8((__m512i)x);
#else
    return __builtin_convertvector(__builtin_convertvector(x, Wider), Lanes);
#endif
  }
};
template <>
struct StoredPositions<double, uint8_t> {
  typedef uint8_t Lanes __attribute__((vector_size(kVectorBytes / 8)));
  typedef uint16_t Wider __attribute__((vector_size(kVectorBytes / 4)));
  typedef uint32_t Widest __attribute__((vector_size(kVectorBytes / 2)));
  using Wide = NativeVectors<double>::Bits;

  PYOPS_HD static Wide widen(Lanes x) {
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(x, Wider), Widest), Wide);
  }
  PYOPS_HD static Lanes narrow(Wide x) {
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(x, Widest), Wider), Lanes);
  }
};
template <>
struct StoredPositions<float, int32_t> {
  using Lanes = NativeVectors<float>::Bits;
  PYOPS_HD static Lanes widen(Lanes x) { return x; }
  PYOPS_HD static Lanes narrow(Lanes x) { return x; }
};
template <>
struct StoredPositions<double, int32_t> {
  typedef int32_t Lanes __attribute__((vector_size(kVectorBytes / 2)));
  using Wide = NativeVectors<double>::Bits;
  PYOPS_HD static Wide widen(Lanes x) { return __builtin_convertvector(x, Wide); }
  PYOPS_HD static Lanes narrow(Wide x) { return __builtin_convertvector(x, Lanes); }
};

// As numbers of the values' own type, among which they can be moved like values.
template <class Acc>
struct StoredPositions<Acc, Acc> {
  using Lanes = typename NativeVectors<Acc>::Lanes;
  using Wide = typename NativeVectors<Acc>::Bits;
  PYOPS_HD static Wide widen(Lanes x) { return __builtin_convertvector(x, Wide); }
  PYOPS_HD static Lanes narrow(Wide x) { return __builtin_convertvector(x, Lanes); }
};

template <class Acc>
using Positions = typename Vec<Acc>::NativeInt;

// One lane of Positions<Acc>.
template <class Acc>
struct PositionLane;
template <>
struct PositionLane<float> {
  using type = int32_t;
};
template <>
struct PositionLane<double> {
  using type = int64_t;
};
template <class Acc>
using position_t = typename PositionLane<Acc>::type;

template <class Acc>
PYOPS_HD Positions<Acc> all_positions(int64_t position) {
  return Positions<Acc>{} + static_cast<position_t<Acc>>(position);
}

// `lanes` positions from memory, zeros behind them.
template <class Acc, class A>
PYOPS_HD Positions<Acc> load_positions(const A* p, int lanes = Vec<Acc>::kLanes) {
  typename StoredPositions<Acc, A>::Lanes stored{};
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (std::is_same_v<Acc, float> && std::is_same_v<A, uint8_t>) {
    const __m128i some = _mm_maskz_loadu_epi8(__mmask16((1u << lanes) - 1u), p);
    return (Positions<Acc>)_mm512_cvtepu8_epi32(some);
  }
#endif
  if (lanes == Vec<Acc>::kLanes) {
    memcpy(&stored, p, sizeof(stored));
  } else {
    A some[Vec<Acc>::kLanes] = {};
    for (int i = 0; i < lanes; ++i) some[i] = p[i];
    memcpy(&stored, some, sizeof(stored));
  }
  return StoredPositions<Acc, A>::widen(stored);
}

template <class Acc, class A>
PYOPS_HD void store_positions(A* p, Positions<Acc> positions, int lanes) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Acc, float> && std::is_same_v<A, uint8_t>) {
    return _mm512_mask_cvtepi32_storeu_epi8(p, __mmask16((1u << lanes) - 1u), (__m512i)positions);
  }
#endif
  const auto stored = StoredPositions<Acc, A>::narrow(positions);
  if (lanes == Vec<Acc>::kLanes) {
    memcpy(p, &stored, sizeof(stored));
  } else {
    A some[Vec<Acc>::kLanes];
    memcpy(some, &stored, sizeof(stored));
    for (int i = 0; i < lanes; ++i) p[i] = some[i];
  }
}

// Maximum so far of each lane, and where it was (math::replaces_maximum).
template <class Acc>
struct MaximumLanes {
  Vec<Acc> value;
  Positions<Acc> position;

  PYOPS_HD static MaximumLanes starting_at(Positions<Acc> first) {
    return {Vec<Acc>(-math::infinity<Acc>()), first};
  }

  PYOPS_HD void push(Vec<Acc> x, Positions<Acc> at) {
#if defined(__AVX512F__)
    // The compiler would turn the two masks into vectors to join them.
    if constexpr (std::is_same_v<Acc, float>) {
      const __mmask16 take =
          _mm512_cmp_ps_mask(x.v, value.v, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
      value = typename Vec<Acc>::Native(_mm512_mask_mov_ps(value.v, take, x.v));
      position = (Positions<Acc>)_mm512_mask_mov_epi32((__m512i)position, take, (__m512i)at);
      return;
    }
#endif
    const Positions<Acc> take = (x.v > value.v) | (x.v != x.v);
    value = typename Vec<Acc>::Native(take ? x.v : value.v);
    position = take ? at : position;
  }
};

// Adds grad in the lanes whose maximum was at position `at`.
template <class Acc>
PYOPS_HD void add_where_maximum(Vec<Acc>& sum, Vec<Acc> grad, Positions<Acc> argmax, Positions<Acc> at) {
  sum += Vec<Acc>(typename Vec<Acc>::Native(argmax == at ? grad.v : typename Vec<Acc>::Native{}));
}

}  // namespace pyops::cpu
