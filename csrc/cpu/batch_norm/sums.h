// The sums over blocks of elements that runs.h and columns.h form.
#pragma once

#include <cstdint>

#include "math/batch_norm.h"

namespace pyops::cpu {

using math::Moments;

// The two sums of a gradient g, over g and over g (x - mean).
struct GradientSums {
  double grad = 0;
  double product = 0;  // over g (x - center), until what the mean has beyond center is taken off

  GradientSums& operator+=(const GradientSums& other) {
    grad += other.grad;
    product += other.product;
    return *this;
  }
};

// Moments of n values, formed in float64: for blocks of floats whose squares overflow.
template <class At>
Moments moments_in_double(int64_t n, const At& at) {
  double mean = 0, m2 = 0;
  for (int64_t i = 0; i < n; ++i) mean += at(i) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) m2 += (at(i) - mean) * (at(i) - mean);
  return {static_cast<double>(n), mean, m2};
}

}  // namespace pyops::cpu
