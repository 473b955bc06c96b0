// Activation functions and their derivatives.
//
// Each is a functor with the parameters as members: forward(x), and backward(saved, grad), where saved is the
// output if kFromOutput (nothing but the output has to be kept, and an in-place forward can be
// differentiated) and the input otherwise. V is a number, or a vector of numbers on the CPU. Boundary values
// and NaN are treated as torch does.
#pragma once

#include <cstdint>

#include "common/fast_math.h"
#include "common/macros.h"
#include "math/normal.h"

namespace pyops::math {

// The numbers are part of the raw ops' contract, and those of pyops/kinds.py.
enum class ActivationKind : int64_t {
  kIdentity = 0,
  kRelu = 1,
  kLeakyRelu = 2,  // alpha: slope below 0
  kSigmoid = 3,
  kTanh = 4,
  kSelu = 5,
  kSoftplus = 6,  // alpha: torch's beta; beta: torch's threshold
  kElu = 7,       // alpha
  kGelu = 8,
  kGeluTanh = 9,
  kSilu = 10,
  kHardswish = 11,
  kHardtanh = 12,  // alpha: least value; beta: greatest
  kHardsigmoid = 13,
};

// Which activation, as callers pass it: any number may come, and dispatch_activation says whether it is one.
struct ActivationParams {
  int64_t kind;
  double alpha;
  double beta;

  PYOPS_HD bool is(ActivationKind other) const { return kind == static_cast<int64_t>(other); }
};

template <class T>
struct Identity {
  static constexpr bool kFromOutput = true;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return x;
  }
  template <class V>
  PYOPS_HD V backward(V, V grad) const {
    return grad;
  }
};

// The comparisons are torch's: -0 stays -0, and the gradient passes at NaN.
template <class T>
struct Relu {
  static constexpr bool kFromOutput = true;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return select_greater(V(T(0)), x, V(T(0)), x);
  }
  template <class V>
  PYOPS_HD V backward(V y, V grad) const {
    return select_at_most(y, V(T(0)), V(T(0)), grad);
  }
};

// kOutput: backward sees the output, which has the input's sign if the slope is not negative.
template <class T, bool kOutput>
struct LeakyRelu {
  static constexpr bool kFromOutput = kOutput;
  T slope;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return select_greater(x, V(T(0)), x, x * slope);
  }
  template <class V>
  PYOPS_HD V backward(V saved, V grad) const {
    return select_greater(saved, V(T(0)), grad, grad * slope);
  }
};

template <class T, class Storage = T, class V>
PYOPS_HD V logistic(V x) {
  return divide_as<Storage>(V(T(1)), exp_as<Storage>(-x) + V(T(1)));
}

template <class T, class Storage = T>
struct Sigmoid {
  static constexpr bool kFromOutput = true;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return logistic<T, Storage>(x);
  }
  template <class V>
  PYOPS_HD V backward(V y, V grad) const {
    return grad * (V(T(1)) - y) * y;
  }
};

template <class T>
struct Tanh {
  static constexpr bool kFromOutput = true;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return tanh(x);
  }
  template <class V>
  PYOPS_HD V backward(V y, V grad) const {
    return grad * (V(T(1)) - y * y);
  }
};

// scale * x above 0, scale * alpha * (exp(x) - 1) below; the slope below is scale * alpha * exp(x), which is
// output + scale * alpha. Clevert et al. 2015 (arXiv:1511.07289); SELU: Klambauer et al. 2017 (1706.02515).
template <class T, bool kOutput, class Storage = T>
struct Elu {
  static constexpr bool kFromOutput = kOutput;
  T scale;
  T saturation;  // scale * alpha
  template <class V>
  PYOPS_HD V forward(V x) const {
    return select_greater(V(T(0)), x, expm1_as<Storage>(x) * saturation, x * scale);
  }
  template <class V>
  PYOPS_HD V backward(V saved, V grad) const {
    const V below = kOutput ? saved + V(saturation) : exp_as<Storage>(saved) * saturation;
    return select_at_most(saved, V(T(0)), grad * below, grad * scale);
  }
};

// log(1 + exp(beta x)) / beta. Neither exp overflows. Above the threshold it is x, and the slope 1.
template <class T, class Storage = T>
struct Softplus {
  static constexpr bool kFromOutput = false;
  T beta;
  T threshold;
  template <class V>
  PYOPS_HD V forward(V x) const {
    const V t = x * beta;
    const V above = select_greater(t, V(T(0)), t, V(T(0)));
    const V smooth = (above + log1p_as<Storage>(exp_as<Storage>(-abs(t)))) / V(beta);
    return select_greater(t, V(threshold), x, smooth);
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const V t = x * beta;
    return select_greater(t, V(threshold), grad, grad * logistic<T, Storage>(t));
  }
};

// x P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016, arXiv:1606.08415).
template <class T, class Storage = T>
struct Gelu {
  static constexpr bool kFromOutput = false;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return times_normal_cdf<T, Storage>(x);
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const Normal<T, V, Storage> normal = Normal<T, V, Storage>::of(x);
    return grad * (normal.cdf + x * (normal.exponential * T(0.39894228040143267794)));
  }
};

// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written as x s(2 u) with the logistic s: the
// sum would cancel for negative x.
template <class T, class Storage = T>
struct GeluTanh {
  static constexpr bool kFromOutput = false;
  static constexpr T kScale = T(1.5957691216057307117);  // 2 sqrt(2 / pi)
  static constexpr T kCubic = T(0.044715);
  template <class V>
  PYOPS_HD V forward(V x) const {
    return x * logistic<T, Storage>(x * (x * x * kCubic + V(T(1))) * kScale);
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const V square = x * x;
    const V s = logistic<T, Storage>(x * (square * kCubic + V(T(1))) * kScale);
    const V slope = (square * (T(3) * kCubic) + V(T(1))) * kScale;
    return grad * (s + x * (s * (V(T(1)) - s)) * slope);
  }
};

// x s(x) with the logistic s (Elfwing et al. 2017, arXiv:1702.03118).
template <class T, class Storage = T>
struct Silu {
  static constexpr bool kFromOutput = false;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return divide_as<Storage>(x, exp_as<Storage>(-x) + V(T(1)));
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const V s = logistic<T, Storage>(x);
    return grad * s * (x * (V(T(1)) - s) + V(T(1)));
  }
};

// min(max(x, least), greatest); ReLU6 is that of 0 and 6. The slope is 0 at both ends, and 1 at NaN.
template <class T>
struct Hardtanh {
  static constexpr bool kFromOutput = true;
  T least;
  T greatest;
  template <class V>
  PYOPS_HD V forward(V x) const {
    const V above = select_greater(V(least), x, V(least), x);
    return select_greater(above, V(greatest), V(greatest), above);
  }
  template <class V>
  PYOPS_HD V backward(V y, V grad) const {
    const V above = select_at_most(y, V(least), V(T(0)), grad);
    return select_at_most(V(greatest), y, V(T(0)), above);
  }
};

// min(max(x + 3, 0), 6): six times hardsigmoid.
template <class T, class V>
PYOPS_HD V hard_gate(V x) {
  return Hardtanh<T>{T(0), T(6)}.forward(x + V(T(3)));
}

// min(max(x + 3, 0), 6) / 6 (Courbariaux et al. 2015, arXiv:1511.00363, with another slope). The slope is 0
// at both ends and at NaN. Rounding takes outputs to an end before inputs are there: backward needs the
// input.
template <class T>
struct Hardsigmoid {
  static constexpr bool kFromOutput = false;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return hard_gate<T>(x) * T(1.0 / 6);
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const V below = select_greater(V(T(3)), x, grad * T(1.0 / 6), V(T(0)));
    return select_greater(x, V(T(-3)), below, V(T(0)));
  }
};

// x min(max(x + 3, 0), 6) / 6 (Howard et al. 2019, arXiv:1905.02244). At -3 the slope is that of the left, at
// 3 that of the right.
template <class T>
struct Hardswish {
  static constexpr bool kFromOutput = false;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return x * hard_gate<T>(x) * T(1.0 / 6);
  }
  template <class V>
  PYOPS_HD V backward(V x, V grad) const {
    const V inside = grad * (x * T(1.0 / 3) + V(T(0.5)));
    const V right = select_greater(V(T(3)), x, inside, grad);
    return select_at_most(x, V(T(-3)), V(T(0)), right);
  }
};

// The functions that a loop over elements applies.
template <class Functor>
struct Forward {
  Functor f;
  template <class V>
  PYOPS_HD V operator()(V x) const {
    return f.forward(x);
  }
};

template <class Functor>
struct FromOutput {
  Functor f;
  template <class V>
  PYOPS_HD V operator()(V y, V grad) const {
    return f.backward(y, grad);
  }
};

// The input was kept; a functor that wants the output forms it again. In 16 bits a kept output may have lost
// what the derivative needs.
template <class Functor>
struct FromInput {
  Functor f;
  template <class V>
  PYOPS_HD V operator()(V x, V grad) const {
    return f.backward(Functor::kFromOutput ? f.forward(x) : x, grad);
  }
};

// Calls f(functor) with the activation that params describe, for results that are stored as Storage; false
// when there is no such kind. On host and device, with an f for either.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class T, class Storage = T, class F>
PYOPS_HD bool dispatch_activation(const ActivationParams& params, const F& f) {
  constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
  constexpr double kSeluScale = 1.0507009873554804934193349852946;
  const auto [kind, alpha, beta] = params;
  switch (static_cast<ActivationKind>(kind)) {
    case ActivationKind::kIdentity:
      return f(Identity<T>{}), true;
    case ActivationKind::kRelu:
      return f(Relu<T>{}), true;
    case ActivationKind::kLeakyRelu:
      alpha >= 0 ? f(LeakyRelu<T, true>{T(alpha)}) : f(LeakyRelu<T, false>{T(alpha)});
      return true;
    case ActivationKind::kSigmoid:
      return f(Sigmoid<T, Storage>{}), true;
    case ActivationKind::kTanh:
      return f(Tanh<T>{}), true;
    case ActivationKind::kSelu:
      return f(Elu<T, true, Storage>{T(kSeluScale), T(kSeluScale * kSeluAlpha)}), true;
    case ActivationKind::kSoftplus:
      return f(Softplus<T, Storage>{T(alpha), T(beta)}), true;
    case ActivationKind::kElu:
      alpha >= 0 ? f(Elu<T, true, Storage>{T(1), T(alpha)}) : f(Elu<T, false, Storage>{T(1), T(alpha)});
      return true;
    case ActivationKind::kGelu:
      return f(Gelu<T, Storage>{}), true;
    case ActivationKind::kGeluTanh:
      return f(GeluTanh<T, Storage>{}), true;
    case ActivationKind::kSilu:
      return f(Silu<T, Storage>{}), true;
    case ActivationKind::kHardswish:
      return f(Hardswish<T>{}), true;
    case ActivationKind::kHardtanh:
      return f(Hardtanh<T>{T(alpha), T(beta)}), true;
    case ActivationKind::kHardsigmoid:
      return f(Hardsigmoid<T>{}), true;
    default:
      return false;
  }
}

}  // namespace pyops::math
