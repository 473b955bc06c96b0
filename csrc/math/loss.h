// Elementwise losses of an input x and a target y, and their derivatives by x.
//
// Each is a functor with its parameter as a member. V is a number, or a vector of numbers on the CPU. With
// d = x - y, value and slope at the borders |d| = 0, delta, beta, at NaN and at infinity are torch's.
#pragma once

#include <cstdint>

#include "common/fast_math.h"
#include "common/macros.h"

namespace pyops::math {

// The numbers are part of the raw ops' contract, and those of pyops/kinds.py.
enum class LossKind : int64_t {
  kMse = 0,
  kL1 = 1,
  kHuber = 2,     // parameter: delta
  kSmoothL1 = 3,  // parameter: beta
  kBceWithLogits = 4,
};

inline bool is_loss_kind(int64_t kind) { return kind >= 0 && kind <= 4; }

inline bool has_positive_parameter(LossKind kind) {
  return kind == LossKind::kHuber || kind == LossKind::kSmoothL1;
}

// A weighted mean divides by the sum of the weights or, like an unweighted one, by the number of elements.
// torch has it both ways.
inline bool mean_divides_by_weight(LossKind kind) { return kind == LossKind::kMse || kind == LossKind::kL1; }

template <class V>
struct LossTerm {
  V value;
  V slope;
};

template <class T>
struct MseLoss {
  static constexpr bool kHasPosWeight = false;
  template <class V>
  PYOPS_HD LossTerm<V> operator()(V x, V y, V) const {
    const V d = x - y;
    return {d * d, d + d};
  }
};

template <class T>
struct L1Loss {
  static constexpr bool kHasPosWeight = false;
  template <class V>
  PYOPS_HD LossTerm<V> operator()(V x, V y, V) const {
    const V d = x - y;
    const V sign_if_not_positive = select_greater(V(T(0)), d, V(T(-1)), V(T(0)));
    return {abs(d), select_greater(d, V(T(0)), V(T(1)), sign_if_not_positive)};
  }
};

// d within [-limit, limit]; NaN stays.
template <class V, class T>
PYOPS_HD V clamp_magnitude(V d, T limit) {
  const V capped = select_greater(d, V(limit), V(limit), d);
  return select_greater(V(-limit), capped, V(-limit), capped);
}

// d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) elsewhere: with c = d within [-delta, delta] both are
// c (d - c / 2), and the slope is c.
template <class T>
struct HuberLoss {
  static constexpr bool kHasPosWeight = false;
  T delta;
  template <class V>
  PYOPS_HD LossTerm<V> operator()(V x, V y, V) const {
    const V d = x - y;
    const V c = clamp_magnitude(d, delta);
    return {c * (d - c * T(0.5)), c};
  }
};

// The Huber loss divided by beta. Dividing c first neither overflows nor loses a tiny beta.
template <class T>
struct SmoothL1Loss {
  static constexpr bool kHasPosWeight = false;
  T beta;
  template <class V>
  PYOPS_HD LossTerm<V> operator()(V x, V y, V) const {
    const V d = x - y;
    const V c = clamp_magnitude(d, beta);
    const V slope = c / V(beta);
    return {slope * (d - c * T(0.5)), slope};
  }
};

// (1 - y) x - (1 + (p - 1) y) log sigmoid(x), p the positive weight; in these terms, as torch has it, because
// only they give its values at infinity.
template <class T, bool kPosWeight>
struct BceWithLogitsLoss {
  static constexpr bool kHasPosWeight = kPosWeight;
  template <class V>
  PYOPS_HD LossTerm<V> operator()(V x, V y, V pos_weight) const {
    const V one = V(T(1)), zero = V(T(0));
    const V e = exp(zero - abs(x));
    const V log_sigmoid = select_greater(x, zero, zero, x) - log1p(e);
    const V sigmoid = select_greater(zero, x, e, one) / (one + e);
    if constexpr (kPosWeight) {
      const V positive = pos_weight * y;
      const V log_weight = (pos_weight - one) * y + one;
      return {(one - y) * x - log_weight * log_sigmoid, (positive + one - y) * sigmoid - positive};
    } else {
      return {(one - y) * x - log_sigmoid, sigmoid - y};
    }
  }
};

// Calls f(functor) with the loss that kind and parameter describe.
template <class T, class F>
void dispatch_loss(LossKind kind, double parameter, bool has_pos_weight, const F& f) {
  switch (kind) {
    case LossKind::kMse:
      return f(MseLoss<T>{});
    case LossKind::kL1:
      return f(L1Loss<T>{});
    case LossKind::kHuber:
      return f(HuberLoss<T>{static_cast<T>(parameter)});
    case LossKind::kSmoothL1:
      return f(SmoothL1Loss<T>{static_cast<T>(parameter)});
    case LossKind::kBceWithLogits:
      return has_pos_weight ? f(BceWithLogitsLoss<T, true>{}) : f(BceWithLogitsLoss<T, false>{});
  }
}

}  // namespace pyops::math
