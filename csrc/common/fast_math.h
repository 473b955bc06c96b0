// Scalar math for host and device under one set of names.
//
// The formulas in csrc/math call these unqualified; csrc/cpu/simd/vec.h and cpu/simd/math.h add overloads for
// SIMD vectors, which argument-dependent lookup finds, so that one formula serves a CUDA thread, a scalar
// loop and a vector.
#pragma once

#include <cmath>
#include <limits>

#include "common/macros.h"

namespace pyops::math {

template <class T>
PYOPS_HD constexpr T infinity() {
  return std::numeric_limits<T>::infinity();
}

template <class T>
PYOPS_HD constexpr T quiet_nan() {
  return std::numeric_limits<T>::quiet_NaN();
}

// a > b ? if_greater : otherwise, lane by lane for vectors.
PYOPS_HD float select_greater(float a, float b, float if_greater, float otherwise) {
  return a > b ? if_greater : otherwise;
}
PYOPS_HD double select_greater(double a, double b, double if_greater, double otherwise) {
  return a > b ? if_greater : otherwise;
}

// a <= b ? if_at_most : otherwise. Not the negation of select_greater: they differ where a or b is NaN.
PYOPS_HD float select_at_most(float a, float b, float if_at_most, float otherwise) {
  return a <= b ? if_at_most : otherwise;
}
PYOPS_HD double select_at_most(double a, double b, double if_at_most, double otherwise) {
  return a <= b ? if_at_most : otherwise;
}

// 1 / x of a normal number, to more bits than 16-bit types hold; a GPU's result below 2^-126 is 0.
PYOPS_HD float short_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
PYOPS_HD double short_reciprocal(double x) { return 1.0 / x; }
// 2^x, as exactly; the CPU's vectors know it of x <= 0 alone.
PYOPS_HD float short_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}
PYOPS_HD double short_exp2(double x) { return ::exp2(x); }

PYOPS_HD float exp(float x) { return ::expf(x); }
PYOPS_HD double exp(double x) { return ::exp(x); }
PYOPS_HD float expm1(float x) { return ::expm1f(x); }
PYOPS_HD double expm1(double x) { return ::expm1(x); }
PYOPS_HD float log(float x) { return ::logf(x); }
PYOPS_HD double log(double x) { return ::log(x); }
PYOPS_HD float log1p(float x) { return ::log1pf(x); }
PYOPS_HD double log1p(double x) { return ::log1p(x); }
PYOPS_HD float tanh(float x) { return ::tanhf(x); }
PYOPS_HD double tanh(double x) { return ::tanh(x); }
PYOPS_HD float abs(float x) { return ::fabsf(x); }
PYOPS_HD double abs(double x) { return ::fabs(x); }

// What follows is for results that are stored as Storage. Where it has 16 bits, GPUs have short forms to more
// bits than those; a CPU, whose vectors have no instruction for 2^x of any x, has the plain functions.

// A sum of such terms keeps its own precision: terms far below the largest are what the short form rounds.
template <class Storage, class V>
PYOPS_HD V exp_as(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2) return short_exp2(x * V(1.44269504088896340736));
#endif
  return exp(x);
}

// a / x for x >= 1.
template <class Storage, class V>
PYOPS_HD V divide_as(V a, V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2) return a * short_reciprocal(x);
#endif
  return a / x;
}

template <class Storage, class V>
PYOPS_HD V expm1_as(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2) {
    const V series = x * (x * (x * V(1.0 / 6) + V(0.5)) + V(1));  // where the difference cancels
    return select_greater(abs(x), V(0.0625), exp_as<Storage>(x) - V(1), series);
  }
#endif
  return expm1(x);
}

// log(1 + x) for x in [0, 1].
template <class Storage, class V>
PYOPS_HD V log1p_as(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2) {  // the polynomial of least relative error, 8e-6
    constexpr float kPolynomial[] = {-0.0238691252f, 0.101222217f,  -0.210048631f,
                                     0.325206667f,   -0.499361366f, 0.999991596f};
    V p = V(kPolynomial[0]);
    PYOPS_UNROLL
    for (int i = 1; i < 6; ++i) p = p * x + V(kPolynomial[i]);
    return p * x;
  }
#endif
  return log1p(x);
}

// The larger of two numbers; b where a is NaN.
template <class T>
PYOPS_HD T larger_number(T a, T b) {
#if defined(__CUDA_ARCH__)
  return fmax(a, b);
#else
  return select_greater(a, b, a, b);
#endif
}

}  // namespace pyops::math
