// 16-bit storage types, their conversions, and the type each dtype accumulates in.
//
// The library computes in float32 (float64 for double) and touches 16-bit values only in memory,
// so these types hold bits and convert; they have no arithmetic on purpose.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyops {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

template <class To, class From>
PYOPS_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulate<T>::type;

PYOPS_HD double to_acc(double x) { return x; }
PYOPS_HD float to_acc(float x) { return x; }
PYOPS_HD float to_acc(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

PYOPS_HD float to_acc(float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x.bits));
#else
  // A subnormal half becomes a normal float by letting the FPU renormalise it: both the exponent
  // re-bias and the subnormal case fall out of one multiplication by 2^112.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return bit_cast<float>(sign | magnitude | 0x7f800000u);
  const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u);
  return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
#endif
}

// Rounds to nearest, ties to even. NaN stays NaN (quiet), overflow becomes infinity.
template <class T, class Acc>
PYOPS_HD T from_acc(Acc x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__CUDA_ARCH__)
    return bfloat16{bit_cast<uint16_t>(__float2bfloat16_rn(static_cast<float>(x)))};
#else
    const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(x));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bfloat16{static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
#endif
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__CUDA_ARCH__)
    return float16{bit_cast<uint16_t>(__float2half_rn(static_cast<float>(x)))};
#else
    const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(x));
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the subnormal's last bit
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return float16{static_cast<uint16_t>(sign | half)};
#endif
  } else {
    return static_cast<T>(x);
  }
}

// Two of them as they lie in memory, `low` first; a GPU rounds both by one instruction.
template <class T>
PYOPS_HD uint32_t pair_from_acc(float low, float high) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, bfloat16>) return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
  if constexpr (std::is_same_v<T, float16>) return bit_cast<uint32_t>(__floats2half2_rn(low, high));
#endif
  return static_cast<uint32_t>(from_acc<T>(low).bits) | static_cast<uint32_t>(from_acc<T>(high).bits) << 16;
}

}  // namespace pyops
