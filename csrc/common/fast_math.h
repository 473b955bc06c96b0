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

// 1 / x of a normal number, to more bits than 16-bit types hold.
PYOPS_HD float short_reciprocal(float x) { return 1.0f / x; }
PYOPS_HD double short_reciprocal(double x) { return 1.0 / x; }
// 2^x of x <= 0, as exactly.
PYOPS_HD float short_exp2(float x) { return ::exp2f(x); }
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

}  // namespace pyops::math
