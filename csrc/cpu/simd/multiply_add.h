// a b + c of SIMD vectors, rounded once where the instruction set can (common/multiply_add.h).
#pragma once

#include "common/multiply_add.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

PYOPS_HD Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return Vec<float>::Native(_mm512_fmadd_ps(a.v, b.v, c.v));
#elif defined(__FMA__)
  return Vec<float>::Native(_mm256_fmadd_ps(a.v, b.v, c.v));
#else
  return a.v * b.v + c.v;
#endif
}
PYOPS_HD Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return Vec<double>::Native(_mm512_fmadd_pd(a.v, b.v, c.v));
#elif defined(__FMA__)
  return Vec<double>::Native(_mm256_fmadd_pd(a.v, b.v, c.v));
#else
  return a.v * b.v + c.v;
#endif
}

}  // namespace pyops::cpu
