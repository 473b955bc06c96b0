// a b + c in one operation, for results that must be the same bits wherever they are formed: what the
// compiler makes of the two operators may differ from one place to the next.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace pyops::math {

#if defined(__CUDACC__) || defined(__FMA__)
PYOPS_HD float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
PYOPS_HD double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
#else  // two roundings: there is no such instruction, and nothing for the compiler to choose from
PYOPS_HD float multiply_add(float a, float b, float c) { return a * b + c; }
PYOPS_HD double multiply_add(double a, double b, double c) { return a * b + c; }
#endif

}  // namespace pyops::math
