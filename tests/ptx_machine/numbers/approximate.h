// The instructions with .approx or .full. The manual bounds their error and fixes their special cases; these
// functions return the exactly rounded value (but for the last bits' rounding of the host's own double
// functions) and the manual's special cases. The modifier .ftz is flush() of operand and result.
#pragma once

#include "halves.h"

namespace ptx::numbers {

// 2^x for a double, to about 1e-15: a Taylor series about the nearest whole number. Beyond what a float can
// tell from 0 and infinity, x is cut off.
inline double exp2_double(double x) {
  const double bounded = x > 200 ? 200 : (x < -200 ? -200 : x);
  const double whole = std::rint(bounded);
  const double step = (bounded - whole) * 0.69314718055994530942;
  double sum = 1;
  for (int k = 13; k > 0; --k) sum = sum * step / k + 1;
  const double safe = whole == whole ? whole : 0;
  return sum * from_bits(static_cast<uint64_t>(static_cast<int64_t>(safe) + 1023) << 52);
}

inline float ex2_approx(float x) { return narrow<Rounding::rn>(exp2_double(x)); }
inline float lg2_approx(float x) { return narrow<Rounding::rn>(std::log2(static_cast<double>(x))); }
inline float rcp_approx(float x) { return rcp<Rounding::rn>(x); }
inline float sqrt_approx(float x) { return sqrt<Rounding::rn>(x); }
inline float rsqrt_approx(float x) { return narrow<Rounding::rn>(1 / std::sqrt(static_cast<double>(x))); }
inline float sin_approx(float x) { return narrow<Rounding::rn>(std::sin(static_cast<double>(x))); }
inline float cos_approx(float x) { return narrow<Rounding::rn>(std::cos(static_cast<double>(x))); }
inline float tanh_approx(float x) { return narrow<Rounding::rn>(std::tanh(static_cast<double>(x))); }
inline double rsqrt_approx(double x) {
  return static_cast<double>(1 / std::sqrt(static_cast<long double>(x)));
}

// Computed as a * (1 / b): a zero, or NaN for an infinite a, where |b| is in (2^126, 2^128); infinity or NaN
// where 1 / b overflows, though a / b may not.
inline float div_approx(float a, float b) {
  const float size = abs(b);
  const float quotient = a / b;
  const float of_large = a * copysign(b, 0.0f);
  const float of_small = a * (1 / b);
  const bool large = (size > 0x1p126f) & (size < std::numeric_limits<float>::infinity());
  const float normal = size < 0x1p-126f ? of_small : quotient;
  return canonical(large ? of_large : normal);
}

inline float div_full(float a, float b) { return div<Rounding::rn>(a, b); }

// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 read and write the upper 32 bits of a double alone.
inline double upper_word_operand(double x) {
  const uint64_t word = bits(x) & 0xffffffff00000000u;
  return from_bits((word & 0x7ff0000000000000u) == 0 ? word & 0x8000000000000000u : word);
}
inline double upper_word_result(double x) {
  const uint64_t word = bits(x);
  const uint64_t rounded = (word + 0x7fffffffu + (word >> 32 & 1)) & 0xffffffff00000000u;
  const uint64_t flushed = (rounded & 0x7ff0000000000000u) == 0 ? rounded & 0x8000000000000000u : rounded;
  return from_bits(x == x ? flushed : 0x7fffffff00000000u);
}
inline double rcp_approx_ftz(double x) { return upper_word_result(1 / upper_word_operand(x)); }
inline double rsqrt_approx_ftz(double x) { return upper_word_result(1 / std::sqrt(upper_word_operand(x))); }

// tanh.approx and ex2.approx of 16-bit types (ex2 of bf16 exists with .ftz only: half_flush both ways).
template <class H>
inline uint16_t half_tanh(uint16_t h) {
  return half_from<H, Rounding::rn>(std::tanh(static_cast<double>(H::widen(h))));
}
template <class H>
inline uint16_t half_ex2(uint16_t h) {
  return half_from<H, Rounding::rn>(exp2_double(H::widen(h)));
}

}  // namespace ptx::numbers
