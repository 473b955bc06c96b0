// One bit per element: comparisons as bits, bits in memory, and elements chosen by bits.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Bit l is set unless x[l] <= limit: NaN passes.
template <class Acc>
PYOPS_HD uint32_t bits_above(Vec<Acc> x, Acc limit) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Acc, float>) {
    return _mm512_cmp_ps_mask(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ);
  } else {
    return _mm512_cmp_pd_mask(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<Acc, float>) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ));
  } else {
    return _mm256_movemask_pd(_mm256_cmp_pd(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ));
  }
#else
  uint32_t bits = 0;
  for (int l = 0; l < Vec<Acc>::kLanes; ++l) bits |= (x.v[l] <= limit ? 0u : 1u) << l;
  return bits;
#endif
}

// The bits of elements [i, i + lanes) of a row whose first element has the lowest bit of *row.
template <int kLanes>
PYOPS_HD void store_bits(uint8_t* row, int64_t i, int lanes, uint32_t bits) {
  bits &= (uint32_t{1} << lanes) - 1u;
  if constexpr (kLanes >= 8) {
    // Not a memcpy, which would be a call where the length is not a constant.
    row[i / 8] = static_cast<uint8_t>(bits);
    if constexpr (kLanes > 8) {
      if (lanes > 8) row[i / 8 + 1] = static_cast<uint8_t>(bits >> 8);
    }
  } else {
    const int at = static_cast<int>(i % 8);
    row[i / 8] = static_cast<uint8_t>((at == 0 ? 0 : row[i / 8]) | bits << at);
  }
}

template <int kLanes>
PYOPS_HD uint32_t load_bits(const uint8_t* row, int64_t i, int lanes) {
  if constexpr (kLanes >= 8) {
    uint32_t bits = row[i / 8];
    if constexpr (kLanes > 8) {
      if (lanes > 8) bits |= uint32_t{row[i / 8 + 1]} << 8;
    }
    return bits;
  } else {
    return row[i / 8] >> (i % 8);
  }
}

// x where the lane's bit is set, otherwise 0.
template <class Acc>
PYOPS_HD Vec<Acc> where_bit(uint32_t bits, Vec<Acc> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Acc, float>) {
    return typename Vec<Acc>::Native(_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), x.v));
  } else {
    return typename Vec<Acc>::Native(_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), x.v));
  }
#else
  using Bits = typename Vec<Acc>::NativeInt;
  Bits lane;
  for (int l = 0; l < Vec<Acc>::kLanes; ++l) lane[l] = 1 << l;
  const Bits set = (Bits{} + static_cast<int32_t>(bits)) & lane;
  return typename Vec<Acc>::Native(set != 0 ? x.v : Vec<Acc>(Acc(0)).v);
#endif
}

}  // namespace pyops::cpu
