// The formats of 16 bits, f16 and bf16, held as uint16_t, and tf32, held in a float's 32 bits.
#pragma once

#include "floats.h"

namespace ptx::numbers {

// Rounds a float to a format of fewer mantissa bits, with a float's exponent range (Bias 127) or a smaller
// one. The result is the format's own code, its sign above the exponent; a NaN becomes the one of all ones.
template <int Mantissa, int Bias, Rounding R>
inline uint32_t shorten(float value) {
  constexpr uint32_t drop = 23 - Mantissa;
  constexpr uint32_t lowest = 128 - Bias;  // a float's exponent field at the format's least normal number
  constexpr uint32_t infinity = static_cast<uint32_t>(2 * Bias + 1) << Mantissa;
  constexpr int sign_bit = Mantissa + (Bias == 127 ? 8 : 5);
  const uint32_t magnitude = bits(value) & 0x7fffffffu;
  const uint32_t negative = bits(value) >> 31;
  const uint32_t exponent = magnitude >> 23;
  uint32_t word = magnitude - ((lowest - 1) << 23), shift = drop;
  if constexpr (lowest > 1) {  // a subnormal of the format: shift its significand into place
    const uint32_t significand = (magnitude & 0x7fffffu) | static_cast<uint32_t>(exponent != 0) << 23;
    const uint32_t distance = drop + lowest - exponent;
    const bool subnormal = exponent < lowest;
    const uint32_t bounded = distance < 25 ? distance : 25;  // beyond 25 all is below half of the last place
    word = subnormal ? significand : word;
    shift = subnormal ? bounded : drop;
  }
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rest = word & (2 * half - 1);
  uint32_t code = word >> shift;
  const bool away = negative ? R == Rounding::rm : R == Rounding::rp;
  const bool up = R == Rounding::rn    ? rest + (code & 1) > half
                  : R == Rounding::rna ? rest >= half
                                       : (rest != 0) & away;
  code += up;
  const uint32_t overflow = infinity - !(R == Rounding::rn || R == Rounding::rna || away);
  code = code >= infinity ? overflow : code;
  code = magnitude == 0x7f800000u ? infinity : code;
  code |= negative << sign_bit;
  return magnitude > 0x7f800000u ? infinity + (1u << Mantissa) - 1 : code;
}

// A double cut to float with the last bit set if anything was lost: rounding it further is rounding once.
inline float to_odd(double x) {
  const float cut = narrow<Rounding::rz>(x);
  const bool inexact = (static_cast<double>(cut) < x) | (static_cast<double>(cut) > x);
  return from_bits(bits(cut) | static_cast<uint32_t>(inexact));
}

// cvt.rn, .rz and .rna to tf32: the low 13 bits are zero.
template <Rounding R>
inline uint32_t tf32_from_f32(float x) {
  return shorten<10, 127, R>(x) << 13;
}

// What the tensor cores read of a tf32 operand: the low 13 bits have no effect.
inline float f32_from_tf32(uint32_t x) { return from_bits(x & 0xffffe000u); }

// The two types, for the templates below.
struct F16 {
  static constexpr uint16_t infinity = 0x7c00, one = 0x3c00;
  static float widen(uint16_t h) {
    const uint32_t magnitude = h & 0x7fffu, sign = (h & 0x8000u) << 16;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const float subnormal = from_bits((magnitude << 13) + (113u << 23)) - from_bits(113u << 23);
    const uint32_t small = magnitude < 0x400u ? bits(subnormal) : normal;
    const uint32_t number = (magnitude < 0x7c00u ? small : 0x7f800000u) | sign;
    return from_bits(magnitude > 0x7c00u ? 0x7fffffffu : number);
  }
  template <Rounding R>
  static uint16_t narrow(float x) {
    return static_cast<uint16_t>(shorten<10, 15, R>(x));
  }
};

struct BF16 {
  static constexpr uint16_t infinity = 0x7f80, one = 0x3f80;
  static float widen(uint16_t h) { return canonical(from_bits(static_cast<uint32_t>(h) << 16)); }
  template <Rounding R>
  static uint16_t narrow(float x) {
    return static_cast<uint16_t>(shorten<7, 127, R>(x));
  }
};

// cvt between a 16-bit type H and the others. To float and double it is exact.
template <class H>
inline float f32_from(uint16_t h) {
  return H::widen(h);
}
template <class H, Rounding R>
inline uint16_t half_from(float x) {
  return H::template narrow<R>(x);
}
template <class H, Rounding R>
inline uint16_t half_from(double x) {
  return H::template narrow<R>(to_odd(x));
}
template <class H, Rounding R, class I>
inline uint16_t half_from_integer(I x) {
  return half_from<H, R>(sum_to_odd(upper_part(x), lower_part(x)));
}

// cvt.f16x2.f32 and cvt.bf16x2.f32 d, a, b: a goes to the upper half, b to the lower.
template <class H, Rounding R>
inline uint32_t pair_from(float a, float b) {
  return static_cast<uint32_t>(half_from<H, R>(a)) << 16 | half_from<H, R>(b);
}

// .relu: what is negative becomes +0, a NaN stays (the functions above return the positive one).
inline uint16_t half_relu(uint16_t h) { return h & 0x8000u ? 0 : h; }

// .ftz and .sat of f16.
template <class H>
inline uint16_t half_flush(uint16_t h) {
  return (h & H::infinity) == 0 ? h & 0x8000u : h;
}
template <class H>
inline uint16_t half_saturate(uint16_t h) {
  const uint16_t below_one = h < H::one ? h : H::one;
  return h > H::infinity ? 0 : below_one;  // NaNs and negative numbers are above infinity
}

// Arithmetic in round to nearest even, the only mode there is. Exact in double, or rounded to odd.
template <class H>
inline uint16_t half_add(uint16_t a, uint16_t b) {
  return half_from<H, Rounding::rn>(sum_to_odd(H::widen(a), H::widen(b)));
}
template <class H>
inline uint16_t half_sub(uint16_t a, uint16_t b) {
  return half_from<H, Rounding::rn>(sum_to_odd(H::widen(a), -H::widen(b)));
}
template <class H>
inline uint16_t half_mul(uint16_t a, uint16_t b) {
  return half_from<H, Rounding::rn>(static_cast<double>(H::widen(a)) * H::widen(b));
}
template <class H>
inline uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
  return half_from<H, Rounding::rn>(sum_to_odd(static_cast<double>(H::widen(a)) * H::widen(b), H::widen(c)));
}
inline uint16_t half_abs(uint16_t h) { return h & 0x7fffu; }
inline uint16_t half_neg(uint16_t h) { return h ^ 0x8000u; }
template <class H>
inline uint16_t half_min(uint16_t a, uint16_t b) {
  return extremum<false, false, uint16_t>(a, b, H::infinity);
}
template <class H>
inline uint16_t half_max(uint16_t a, uint16_t b) {
  return extremum<true, false, uint16_t>(a, b, H::infinity);
}
template <class H>
inline uint16_t half_min_nan(uint16_t a, uint16_t b) {
  return extremum<false, true, uint16_t>(a, b, H::infinity);
}
template <class H>
inline uint16_t half_max_nan(uint16_t a, uint16_t b) {
  return extremum<true, true, uint16_t>(a, b, H::infinity);
}
template <class H, Compare C>
inline bool half_compare(uint16_t a, uint16_t b) {
  return compare<C>(H::widen(a), H::widen(b));
}

// Applies a function of halves to both halves of packed words: pairs(half_fma<F16>, a, b, c) is fma.rn.f16x2.
template <class F, class... Words>
inline uint32_t pairs(F function, Words... words) {
  const uint32_t low = function(static_cast<uint16_t>(words)...);
  const uint32_t high = function(static_cast<uint16_t>(words >> 16)...);
  return high << 16 | low;
}

}  // namespace ptx::numbers
