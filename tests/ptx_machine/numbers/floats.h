// float and double: arithmetic in every rounding mode, conversions, comparisons, minimum and maximum.
//
// A float result in a directed mode is computed in double, where a product of floats is exact and the error
// of a sum is known, and is then rounded once. The processor's own rounding mode stays untouched.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx::numbers {

// rna (ties away from zero) is for conversions to tf32 only.
enum class Rounding { rn, rz, rm, rp, rna };

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline uint32_t bits(float x) { return bit_cast<uint32_t>(x); }
inline uint64_t bits(double x) { return bit_cast<uint64_t>(x); }
inline float from_bits(uint32_t x) { return bit_cast<float>(x); }
inline double from_bits(uint64_t x) { return bit_cast<double>(x); }

// The NaN that single precision instructions return. The manual leaves it open; this is what hardware does.
// Doubles keep their payload, as the manual says.
inline float canonical(float x) { return x == x ? x : from_bits(0x7fffffffu); }
inline double canonical(double x) { return x; }

// .ftz: a subnormal becomes a zero of its sign.
inline float flush(float x) {
  const uint32_t b = bits(x);
  return from_bits((b & 0x7f800000u) == 0 ? b & 0x80000000u : b);
}

// .sat: into [0, 1]; NaN and -0 become +0.
template <class F>
inline F saturate(F x) {
  const F below_one = x < F(1) ? x : F(1);
  return x > F(0) ? below_one : F(0);
}

// Moves one step from a value on the wrong side of the exact one towards where R rounds.
template <Rounding R, class U>
inline U step_back(U x, bool wrong_side) {
  static_assert(R == Rounding::rz || R == Rounding::rm || R == Rounding::rp, "a directed mode");
  const bool negative = x >> (8 * sizeof(U) - 1) != 0;
  const bool grows = R != Rounding::rz && (R == Rounding::rm) == negative;
  const U stepped = grows ? x + 1 : x - 1;
  return wrong_side ? stepped : x;
}

// Rounds a double to float.
template <Rounding R>
inline float narrow(double x) {
  const float nearest = static_cast<float>(x);
  if constexpr (R == Rounding::rn) {
    return canonical(nearest);
  } else {
    const double back = nearest;
    const bool wrong = R == Rounding::rz   ? std::fabs(back) > std::fabs(x)
                       : R == Rounding::rm ? back > x
                                           : back < x;
    return canonical(from_bits(step_back<R>(bits(nearest), wrong)));
  }
}

// a + b, and what its rounding lost: their sum is exact. NaN or infinity when a, b or the sum are not finite.
struct Sum {
  double value, error;
};
inline Sum exact_sum(double a, double b) {
  const double s = a + b;
  const double t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

// a + b rounded to odd: cut off, with the last bit set if anything was lost. Rounding that to a format of 51
// bits or less gives what rounding the exact sum would.
inline double sum_to_odd(double a, double b) {
  const Sum s = exact_sum(a, b);
  const bool inexact = (s.error < 0) | (s.error > 0);
  const bool too_far = (s.error < 0) != (s.value < 0);
  return from_bits((bits(s.value) - (inexact & too_far)) | static_cast<uint64_t>(inexact));
}

// Rounds a + b to float.
template <Rounding R>
inline float round_sum(double a, double b) {
  double s = sum_to_odd(a, b);
  if constexpr (R == Rounding::rm) {  // x - x is -0 in this mode alone
    const double zero = from_bits((bits(a) | bits(b)) & 0x8000000000000000u);
    s = s == 0 ? zero : s;
  }
  return narrow<R>(s);
}

template <Rounding R>
inline float add(float a, float b) {
  if constexpr (R == Rounding::rn) return canonical(a + b);
  return round_sum<R>(a, b);
}

template <Rounding R>
inline float sub(float a, float b) {
  return add<R>(a, -b);
}

template <Rounding R>
inline float mul(float a, float b) {
  if constexpr (R == Rounding::rn) return canonical(a * b);
  return narrow<R>(static_cast<double>(a) * b);
}

template <Rounding R>
inline float fma(float a, float b, float c) {
  if constexpr (R == Rounding::rn) return canonical(std::fma(a, b, c));
  return round_sum<R>(static_cast<double>(a) * b, c);
}

// A quotient or root of floats that no float holds differs from every float by more than a double's rounding
// error, so that rounding twice is rounding once.
template <Rounding R>
inline float div(float a, float b) {
  if constexpr (R == Rounding::rn) return canonical(a / b);
  return narrow<R>(static_cast<double>(a) / b);
}

template <Rounding R>
inline float sqrt(float a) {
  if constexpr (R == Rounding::rn) return canonical(std::sqrt(a));
  return narrow<R>(std::sqrt(static_cast<double>(a)));
}

// Doubles in directed modes are rare: the processor rounds them, its mode set for this one operation.
template <Rounding R, class Operation>
__attribute__((noinline)) double in_mode(Operation operation, double a, double b, double c) {
  static_assert(R != Rounding::rna, "not a mode of arithmetic");
  const int before = std::fegetround();
  std::fesetround(R == Rounding::rz ? FE_TOWARDZERO : R == Rounding::rm ? FE_DOWNWARD : FE_UPWARD);
  volatile double x = a, y = b, z = c;  // keep the compiler from computing early or late
  volatile double result = operation(x, y, z);
  std::fesetround(before);
  return result;
}

template <Rounding R>
inline double add(double a, double b) {
  if constexpr (R == Rounding::rn) return a + b;
  return in_mode<R>([](double x, double y, double) { return x + y; }, a, b, 0);
}

template <Rounding R>
inline double sub(double a, double b) {
  if constexpr (R == Rounding::rn) return a - b;
  return in_mode<R>([](double x, double y, double) { return x - y; }, a, b, 0);
}

template <Rounding R>
inline double mul(double a, double b) {
  if constexpr (R == Rounding::rn) return a * b;
  return in_mode<R>([](double x, double y, double) { return x * y; }, a, b, 0);
}

template <Rounding R>
inline double fma(double a, double b, double c) {
  if constexpr (R == Rounding::rn) return std::fma(a, b, c);
  return in_mode<R>([](double x, double y, double z) { return std::fma(x, y, z); }, a, b, c);
}

template <Rounding R>
inline double div(double a, double b) {
  if constexpr (R == Rounding::rn) return a / b;
  return in_mode<R>([](double x, double y, double) { return x / y; }, a, b, 0);
}

template <Rounding R>
inline double sqrt(double a) {
  if constexpr (R == Rounding::rn) return std::sqrt(a);
  return in_mode<R>([](double x, double, double) { return std::sqrt(x); }, a, 0, 0);
}

// rcp.rn and its like.
template <Rounding R, class F>
inline F rcp(F a) {
  return div<R>(F(1), a);
}

// Sign bits of a NaN may change too; PTX leaves that open.
inline float abs(float x) { return from_bits(bits(x) & 0x7fffffffu); }
inline double abs(double x) { return from_bits(bits(x) & 0x7fffffffffffffffu); }
inline float neg(float x) { return from_bits(bits(x) ^ 0x80000000u); }
inline double neg(double x) { return from_bits(bits(x) ^ 0x8000000000000000u); }

// copysign d, sign, magnitude: PTX names the sign first.
template <class F>
inline F copysign(F sign, F magnitude) {
  return std::copysign(magnitude, sign);
}

// cvt.rni, .rzi, .rmi and .rpi from a float type to itself (rn stands for rni and so on).
template <Rounding R, class F>
inline F integral(F x) {
  static_assert(R != Rounding::rna, "not a mode of this conversion");
  return canonical(R == Rounding::rn   ? std::rint(x)
                   : R == Rounding::rz ? std::trunc(x)
                   : R == Rounding::rm ? std::floor(x)
                                       : std::ceil(x));
}

// cvt from float or double to an integer type: what lies outside its range becomes the nearest end of it.
// NaN becomes 0, or the integer's top bit alone where float source or integer have 64 bits.
template <class I, Rounding R, class F>
inline I to_integer(F x) {
  constexpr bool is_signed = std::is_signed<I>::value;
  constexpr I least = std::numeric_limits<I>::min(), most = std::numeric_limits<I>::max();
  constexpr bool wide = sizeof(F) == 8 || sizeof(I) == 8;
  constexpr I of_nan = wide ? static_cast<I>(static_cast<uint64_t>(1) << (8 * sizeof(I) - 1)) : I(0);
  constexpr F half_range = static_cast<F>(static_cast<uint64_t>(1) << (8 * sizeof(I) - 1));
  constexpr F end = is_signed ? half_range : 2 * half_range;
  constexpr F begin = is_signed ? -half_range : F(0);
  const F whole = integral<R>(x);
  const bool inside = (whole >= begin) & (whole < end);
  const I value = static_cast<I>(inside ? whole : F(0));
  const I outside = whole < begin ? least : most;
  const I number = inside ? value : outside;
  return x == x ? number : of_nan;
}

// The two halves of an integer as doubles: their sum is its exact value.
template <class I>
inline double upper_part(I x) {
  return sizeof(I) == 8 ? static_cast<double>(static_cast<I>(x >> (sizeof(I) * 4))) * 4294967296.0 : 0.0;
}
template <class I>
inline double lower_part(I x) {
  return sizeof(I) == 8 ? static_cast<double>(static_cast<uint32_t>(x)) : static_cast<double>(x);
}

// cvt from an integer type to float or double.
template <class F, Rounding R, class I>
inline F from_integer(I x) {
  if constexpr (R == Rounding::rn) {
    return static_cast<F>(x);
  } else if constexpr (sizeof(F) == 4) {
    return narrow<R>(sum_to_odd(upper_part(x), lower_part(x)));
  } else {
    const Sum s = exact_sum(upper_part(x), lower_part(x));
    const bool too_far = (s.error < 0) != (s.value < 0);
    const bool wrong = R == Rounding::rz   ? (s.error != 0) & too_far
                       : R == Rounding::rm ? s.error < 0
                                           : s.error > 0;
    return from_bits(step_back<R>(bits(s.value), wrong));
  }
}

// The lesser or greater of two floating-point numbers given by their bits: -0 < +0. A lone NaN loses against
// the number, or wins with `KeepNan` (.NaN); the NaN returned is the canonical one. U may have 16 bits.
template <bool Greater, bool KeepNan, class U>
inline U extremum(U a, U b, U infinity) {
  using S = std::make_signed_t<U>;
  constexpr U magnitude = static_cast<U>(static_cast<U>(~U(0)) >> 1);
  const U over_a = static_cast<U>(static_cast<S>(a) >> (8 * sizeof(U) - 1));
  const U over_b = static_cast<U>(static_cast<S>(b) >> (8 * sizeof(U) - 1));
  const S key_a = static_cast<S>(a ^ (over_a & magnitude)), key_b = static_cast<S>(b ^ (over_b & magnitude));
  const bool nan_a = (a & magnitude) > infinity, nan_b = (b & magnitude) > infinity;
  const U number = (Greater ? key_a > key_b : key_a < key_b) ? a : b;
  const U with_b = nan_b ? a : number;
  const U with_both = nan_a ? b : with_b;
  return (KeepNan ? nan_a | nan_b : nan_a & nan_b) ? magnitude : with_both;
}

template <bool Greater, bool KeepNan>
inline float extremum(float a, float b) {
  return from_bits(extremum<Greater, KeepNan>(bits(a), bits(b), 0x7f800000u));
}
template <bool Greater, bool KeepNan>
inline double extremum(double a, double b) {
  return from_bits(extremum<Greater, KeepNan, uint64_t>(bits(a), bits(b), 0x7ff0000000000000u));
}

// min, max, min.NaN and max.NaN of floats and doubles.
template <class F>
inline F min(F a, F b) {
  return extremum<false, false>(a, b);
}
template <class F>
inline F max(F a, F b) {
  return extremum<true, false>(a, b);
}
template <class F>
inline F min_nan(F a, F b) {
  return extremum<false, true>(a, b);
}
template <class F>
inline F max_nan(F a, F b) {
  return extremum<true, true>(a, b);
}

// The comparisons of set, setp and slct. Unsigned integers' lo, ls, hi and hs are lt, le, gt and ge of an
// unsigned type. Those ending in u hold as well when an operand is NaN; num holds when none is.
enum class Compare { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Compare C, class T>
inline bool compare(T a, T b) {
  const bool ordered = (a == a) & (b == b);
  switch (C) {
    case Compare::eq:
      return a == b;
    case Compare::ne:
      return (a != b) & ordered;
    case Compare::lt:
      return a < b;
    case Compare::le:
      return a <= b;
    case Compare::gt:
      return a > b;
    case Compare::ge:
      return a >= b;
    case Compare::equ:
      return (a == b) | !ordered;
    case Compare::neu:
      return a != b;
    case Compare::ltu:
      return (a < b) | !ordered;
    case Compare::leu:
      return (a <= b) | !ordered;
    case Compare::gtu:
      return (a > b) | !ordered;
    case Compare::geu:
      return (a >= b) | !ordered;
    case Compare::num:
      return ordered;
    case Compare::nan:
      return !ordered;
  }
  return false;
}

}  // namespace ptx::numbers
