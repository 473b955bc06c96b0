// Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167): statistics, the normalising map and its
// gradient.
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "common/fast_math.h"
#include "common/macros.h"
#include "common/multiply_add.h"

namespace pyops::math {

// Mean of `count` values and the sum of their squared deviations from it. In float64, whatever the values
// are: there are few of them, and where the mean is large beside the deviation, a float would not hold it.
struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;

  // From sums over values x of x - shift and of their squares. With a shift from among the values nothing
  // cancels, however far from 0 they are.
  static PYOPS_HD Moments of(double count, double shift, double sum, double sum_of_squares) {
    const double offset = sum / count, m2 = sum_of_squares - sum * offset;
    return {count, shift + offset, m2 < 0 ? 0 : m2};  // keeps a NaN
  }

  double variance() const { return m2 / count; }
};

// Chan, Golub and LeVeque 1979. Not associative in the last bits: callers merge in a fixed order.
PYOPS_HD Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double count = a.count + b.count, delta = b.mean - a.mean, part = b.count / count;
  return {count, a.mean + delta * part, a.m2 + b.m2 + delta * delta * a.count * part};
}

// 1 / sqrt(var + eps); `variance` is the biased one.
PYOPS_HD double reciprocal_deviation(double variance, double eps) { return 1.0 / sqrt(variance + eps); }

PYOPS_HD double moved_average(double running, double value, double momentum) {
  return (1.0 - momentum) * running + momentum * value;
}

PYOPS_HD double unbiased(double variance, double count) { return variance * (count / (count - 1.0)); }

// (x - mean) rstd weight + bias as (x - center) scale + shift. The difference of x and a number near the mean
// is exact where cancellation would matter; what the mean has beyond T is part of the shift.
template <class T>
struct NormMap {
  T center;
  T scale;
  T shift;

  static PYOPS_HD NormMap of(double mean, T rstd, T weight, T bias) {
    const T center = static_cast<T>(mean), scale = rstd * weight;
    const double rest = mean - static_cast<double>(center);
    return {center, scale, static_cast<T>(static_cast<double>(bias) - rest * static_cast<double>(scale))};
  }
};

// Forward and backward both call this, so that the sign of what relu saw can be made again bit by bit.
template <class V>
PYOPS_HD V normalized(V x_less_center, V scale, V shift) {
  return multiply_add(x_less_center, scale, shift);
}

// The largest number that becomes 0 when stored as T: relu's output tells whether a gradient passes, as in
// torch, and a smaller one is stored as 0.
template <class T>
PYOPS_HD constexpr acc_t<T> largest_stored_as_zero() {
  if constexpr (std::is_same_v<T, float16>) return acc_t<T>(2.98023223876953125e-8);     // 2^-25
  if constexpr (std::is_same_v<T, bfloat16>) return acc_t<T>(4.591774807899560578e-41);  // 2^-134
  return acc_t<T>(0);
}

// Gradient of the input from that of the normalised value, g: scale (g - mean(g) - xhat mean(g xhat)), where
// xhat = (x - mean) rstd, as scale g + (x - center) slope + offset. Running statistics have no gradient:
// slope and offset are 0.
template <class T>
struct NormGradient {
  T scale;
  T slope;
  T offset;

  // The means over the batch of g and of g (x - mean).
  static PYOPS_HD NormGradient of(double mean, T rstd, T weight, double mean_grad, double mean_product) {
    const T scale = rstd * weight;
    const double s = static_cast<double>(scale), r = static_cast<double>(rstd);
    const double slope = -s * r * r * mean_product;
    const double rest = mean - static_cast<double>(static_cast<T>(mean));
    return {scale, static_cast<T>(slope), static_cast<T>(-s * mean_grad - slope * rest)};
  }
};

template <class V>
PYOPS_HD V input_gradient(V g, V x_less_center, V scale, V slope, V offset) {
  return multiply_add(g, scale, multiply_add(x_less_center, slope, offset));
}

}  // namespace pyops::math
