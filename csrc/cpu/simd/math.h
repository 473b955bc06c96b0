// Elementary functions of SIMD vectors beyond exp (vec.h): branch-free, within 2 units in the last place.
#pragma once

#include "cpu/simd/normal.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

template <class T>
PYOPS_HD Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return a.v / b.v;
}
template <class T>
PYOPS_HD Vec<T> operator-(Vec<T> a) {
  return -a.v;
}

// 1 / x of a normal number, to more bits than 16-bit types hold: a division takes three times as long.
template <class T>
PYOPS_HD Vec<T> short_reciprocal(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const Vec<T> guess = typename Vec<T>::Native(_mm512_rcp14_ps(x.v));  // to 2^-14
    return guess * (Vec<T>(T(2)) - x * guess);
  }
#endif
  return Vec<T>(T(1)) / x;
}

// 2^x of x <= 0, to more bits than 16-bit types hold; what would be subnormal is 0, NaN stays.
PYOPS_HD Vec<float> short_exp2(Vec<float> x) {
  using V = Vec<float>;
  constexpr float kPolynomial[] = {0.00957010129f, 0.0559178603f, 0.240247448f, 0.693121815f, 0.999999261f};
  const PowerOfTwo<float> n = PowerOfTwo<float>::nearest(x);
  const V r = x - n.exponent;
  V p = kPolynomial[0];
  PYOPS_UNROLL
  for (int i = 1; i < 5; ++i) p = p * r + kPolynomial[i];
  return n.times(p, x, -126.0f);
}
PYOPS_HD Vec<double> short_exp2(Vec<double> x) { return exp(x * 0.69314718055994530942); }

// All bits but the sign.
template <class T>
struct SignMask;
template <>
struct SignMask<float> {
  static constexpr int32_t kMagnitude = 0x7fffffff;
};
template <>
struct SignMask<double> {
  static constexpr int64_t kMagnitude = 0x7fffffffffffffff;
};

template <class T>
PYOPS_HD Vec<T> abs(Vec<T> x) {
  using V = Vec<T>;
  return typename V::Native((typename V::NativeInt)x.v & SignMask<T>::kMagnitude);
}

template <class T>
PYOPS_HD Vec<T> with_sign_of(Vec<T> magnitude, Vec<T> sign) {
  using V = Vec<T>;
  using Bits = typename V::NativeInt;
  return typename V::Native((Bits)magnitude.v | ((Bits)sign.v & ~(Bits{} + SignMask<T>::kMagnitude)));
}

// Where exp(x) - 1 is -1 to the last bit.
template <class T>
struct Expm1Constants;
template <>
struct Expm1Constants<float> {
  static constexpr float kLowest = -20.0f;
  static constexpr int kBias = 127;
};
template <>
struct Expm1Constants<double> {
  static constexpr double kLowest = -45.0;
  static constexpr int kBias = 1023;
};

// x = n ln 2 + r: 2^n (halved, because it may overflow where the result does not) and exp(r) - 1.
template <class T>
struct ExpParts {
  Vec<T> half_power;
  Vec<T> fraction;

  static PYOPS_HD ExpParts of(Vec<T> x) {
    using K = ExpConstants<T>;
    using V = Vec<T>;
    using Bits = typename V::NativeInt;
    const V bounded = max(V(Expm1Constants<T>::kLowest), x);  // NaN stays
    const V n = (bounded * K::kLog2e + K::kRoundMagic) - K::kRoundMagic;
    const V r = (bounded - n * K::kLn2High) - n * K::kLn2Low;
    V p = K::kPolynomial[0];
    PYOPS_UNROLL
    for (size_t i = 1; i < sizeof(K::kPolynomial) / sizeof(T); ++i) p = p * r + K::kPolynomial[i];
    const Bits exponent = __builtin_convertvector(n.v, Bits) + (Expm1Constants<T>::kBias - 1);
    return {typename V::Native(exponent << K::kMantissaBits), p * (r * r) + r};
  }
};

// exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1).
template <class T>
PYOPS_HD Vec<T> expm1(Vec<T> x) {
  using V = Vec<T>;
  const auto [half_power, fraction] = ExpParts<T>::of(x);
  const V half = fraction * half_power + (half_power - T(0.5));
  return select_greater(x, V(ExpConstants<T>::kOverflow), V(math::infinity<T>()), half + half);
}

// With e = exp(-2 |x|): tanh |x| = (1 - e) / (1 + e), where 1 - e must not cancel, and for larger |x|
// 1 - 2 e / (1 + e), which rounds once: the derivative 1 - tanh^2 needs every bit there.
template <class T>
PYOPS_HD Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  const auto [half_power, fraction] = ExpParts<T>::of(abs(x) * T(-2));
  const V scaled = fraction * half_power;
  const V half_e = scaled + half_power;
  const V half_rest = (V(T(0.5)) - half_power) - scaled;
  const V numerator = select_greater(half_e, V(T(0.125)), half_rest, half_e + half_e);
  const V quotient = numerator / (half_e + T(0.5));
  return with_sign_of(select_greater(half_e, V(T(0.125)), quotient, V(T(1)) - quotient), x);
}

// log(m) of a mantissa m = 1 + f in [sqrt(1/2), sqrt(2)): with s = f / (2 + f),
// log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)), R from fdlibm's log and FreeBSD's logf.
template <class T>
struct LogConstants;
template <>
struct LogConstants<float> {
  static constexpr float kLn2High = 6.9313812256e-01f;
  static constexpr float kLn2Low = 9.0580006145e-06f;
  static constexpr uint32_t kSqrtHalf = 0x3f3504f3;  // its bits
  static constexpr uint32_t kSignAndExponent = 0xff800000;
  static constexpr float kSmallest = 1.17549435e-38f;
  static constexpr float kScale = 16777216.0f;  // 2^24 makes a subnormal number normal
  static constexpr float kScaleExponent = 24.0f;
  static constexpr float kPolynomial[] = {0.24279078841f, 0.28498786688f, 0.40000972152f, 0.66666662693f};
};
template <>
struct LogConstants<double> {
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr uint64_t kSignAndExponent = 0xfff0000000000000;
  static constexpr double kSmallest = 2.2250738585072014e-308;
  static constexpr double kScale = 18014398509481984.0;  // 2^54
  static constexpr double kScaleExponent = 54.0;
  static constexpr double kPolynomial[] = {
      1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
      2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01};
};

// log(x) of a positive, normal, finite x, plus `correction`, a small number added before the last rounding.
// Of any other x some number, which the callers replace.
template <class T>
PYOPS_HD Vec<T> log_of_normal(Vec<T> x, Vec<T> correction) {
  using K = LogConstants<T>;
  using V = Vec<T>;
  using Words = typename V::NativeWords;
  const Words bits = (Words)x.v - K::kSqrtHalf;
  const typename V::NativeInt exponent = (typename V::NativeInt)bits >> ExpConstants<T>::kMantissaBits;
  const V n = __builtin_convertvector(exponent, typename V::Native);
  const V m = typename V::Native((Words)x.v - (bits & K::kSignAndExponent));
  const V f = m - T(1);
  const V s = f / (f + T(2));
  const V z = s * s;
  V p = K::kPolynomial[0];
  PYOPS_UNROLL
  for (size_t i = 1; i < sizeof(K::kPolynomial) / sizeof(T); ++i) p = p * z + K::kPolynomial[i];
  const V half_square = f * f * T(0.5);
  const V small = s * (half_square + p * z) + (n * K::kLn2Low + correction);
  return n * K::kLn2High - ((half_square - small) - f);
}

template <class T>
PYOPS_HD Vec<T> log(Vec<T> x) {
  using K = LogConstants<T>;
  using V = Vec<T>;
  const V scaled = select_greater(V(K::kSmallest), x, x * K::kScale, x);
  const V offset = select_greater(V(K::kSmallest), x, V(K::kScaleExponent), V(T(0)));
  V y = log_of_normal(scaled, V(T(0))) - offset * T(0.69314718055994530942);
  // +inf and NaN are their own logarithms; 0 gives -inf and what is below 0 NaN.
  y = select_greater(V(math::infinity<T>()), x, y, x);
  y = select_greater(x, V(T(0)), y, V(math::quiet_nan<T>()));
  y = V(x.v == V(T(0)).v ? V(-math::infinity<T>()).v : y.v);
  return y;
}

// log(1 + x) = log(u) + (x - (u - 1)) / u with u = 1 + x rounded.
template <class T>
PYOPS_HD Vec<T> log1p(Vec<T> x) {
  using V = Vec<T>;
  const V u = x + T(1);
  // Beyond 1 the rounded-off part is 1 - (u - x): u - 1 would lose it.
  const V lost = select_greater(x, V(T(1)), V(T(1)) - (u - x), x - (u - T(1)));
  V y = log_of_normal(u, lost / u);
  y = select_greater(V(math::infinity<T>()), x, y, x);
  y = select_greater(u, V(T(0)), y, V(math::quiet_nan<T>()));
  return V(u.v == V(T(0)).v ? V(-math::infinity<T>()).v : y.v);
}

}  // namespace pyops::cpu
