// The standard normal distribution's cumulative function, from one exp that its density shares.
//
// With t = |x| / sqrt(2): P(X <= -|x|) = erfc(t) / 2 = exp(-x^2 / 2) R(t) / 2, where R(t) = exp(t^2) erfc(t)
// falls smoothly from 1 to 0. (1 + 2 t) R(t) is a polynomial of q = (t - K) / (t + K), which maps t >= 0 to
// [-1, 1) (the form is Shepherd and Laframboise's, Math. Comp. 36, 1981; the coefficients are interpolated at
// Chebyshev nodes in 50 digits). The lower tail keeps its relative accuracy, which (1 + erf) / 2 does not.
#pragma once

#include <cstddef>

#include "common/fast_math.h"
#include "common/macros.h"

namespace pyops::math {

template <class T>
struct ScaledErfc;

// Relative error 1e-8 up to t = 9.5, where exp(-t^2) is 0.
template <>
struct ScaledErfc<float> {
  static constexpr float kPivot = 2.0f;
  static constexpr float kLargest = 9.5f;
  static constexpr int kDegree = 10;
  static PYOPS_HD constexpr float coefficient(int i) {
    constexpr float kValues[kDegree + 1] = {1.3261175e-5f,  -0.000391060979f, -0.00125499963f, 0.00129642471f,
                                            0.00864618511f, -0.00805136593f,  -0.0542076967f,  0.164053926f,
                                            -0.16603113f,   -0.0927639223f,   1.27697839f};
    return kValues[i];
  }
};

// Relative error 3e-17 up to t = 27.
template <>
struct ScaledErfc<double> {
  static constexpr double kPivot = 3.0;
  static constexpr double kLargest = 27.0;
  static constexpr int kDegree = 22;
  static PYOPS_HD constexpr double coefficient(int i) {
    constexpr double kValues[kDegree + 1] = {
        -4.152865388901344e-09,  -8.3612181608824266e-09, 3.2825163006176683e-08, 9.1423199313184733e-08,
        -1.3116132294448009e-07, -6.0441248819344101e-07, 3.4920430828377254e-07, 3.4635525785808633e-06,
        -7.2780443966720484e-07, -2.0096426869541815e-05, 4.9482622997916771e-06, 0.00012509809287280239,
        -0.00010515952561216177, -0.00077983202731480141, 0.0018886903184454165,  0.0025293917871075681,
        -0.02377051491489925,    0.068308027345875363,    -0.11927366341549393,   0.12964515870270349,
        -0.047562294353447068,   -0.13562110612458067,    1.2530080582697296};
    return kValues[i];
  }
};

// P(X <= -|x|) / exp(-x^2 / 2) as a polynomial of q = (|x| - K) / (|x| + K), for results that are rounded to
// 16 bits: relative error 8e-6.
struct ShortTail {
  static constexpr float kPivot = 2.5f;
  static constexpr float kLargest = 13.5f;
  static constexpr int kDegree = 6;
  static PYOPS_HD constexpr float coefficient(int i) {
    constexpr float kValues[kDegree + 1] = {0.000699585827f, 0.00258638597f, -0.0050873556f, -0.024434352f,
                                            0.113125463f,    -0.22807858f,   0.141331916f};
    return kValues[i];
  }
};

// P(X <= x) and exp(-x^2 / 2). V is T or a vector of T; what is made of them is stored as Storage.
template <class T, class V, class Storage = T>
struct Normal {
  V cdf;
  V exponential;

  static PYOPS_HD Normal of(V x) {
    const Normal tail = sizeof(Storage) == 2 ? short_tail(x) : long_tail(x);
    return {select_greater(x, V(T(0)), V(T(1)) - tail.cdf, tail.cdf), tail.exponential};
  }

 private:
  // At -|x|.
  static PYOPS_HD Normal long_tail(V x) {
    using K = ScaledErfc<T>;
    const V exponential = exp(x * x * T(-0.5));
    V t = abs(x) * T(0.70710678118654752440);
    t = select_greater(t, V(K::kLargest), V(K::kLargest), t);
    const V sum = t + V(K::kPivot);
    const V slope = t * T(2) + V(T(1));
    const V inverse = V(T(1)) / (sum * slope);
    const V q = (t - V(K::kPivot)) * (slope * inverse);
    return {(exponential * T(0.5)) * (polynomial<K>(q) * (sum * inverse)), exponential};
  }

  static PYOPS_HD Normal short_tail(V x) {
    using K = ShortTail;
    const V exponential = short_exp2(x * x * T(-0.72134752044448170368));  // log2(e) / 2
    V t = abs(x);
    t = select_greater(t, V(T(K::kLargest)), V(T(K::kLargest)), t);
    const V q = V(T(1)) - short_reciprocal(t + V(T(K::kPivot))) * T(2 * K::kPivot);
    return {exponential * polynomial<K>(q), exponential};
  }

  template <class K>
  static PYOPS_HD V polynomial(V q) {
    V p = V(T(K::coefficient(0)));
    PYOPS_UNROLL
    for (int i = 1; i <= K::kDegree; ++i) p = p * q + V(T(K::coefficient(i)));
    return p;
  }
};

// x P(X <= x); a CPU with tables in registers has its own (cpu/simd/normal.h).
template <class T, class Storage, class V>
PYOPS_HD V times_normal_cdf(V x) {
  return x * Normal<T, V, Storage>::of(x).cdf;
}

}  // namespace pyops::math
