// Activation functions and their derivatives.
//
// Each is a functor with the parameters as members: forward(x), and backward(saved, grad), where saved is the
// output if kFromOutput (nothing but the output has to be kept, and an in-place forward can be differentiated)
// and the input otherwise. V is a number, or a vector of numbers on the CPU. Boundary values and NaN are
// treated as torch does.
#pragma once

#include <cstdint>

#include "../common/fast_math.h"
#include "../common/macros.h"

namespace pyops::math {

// The numbers are part of the raw ops' contract; pyops/ops/activation.py and triton_kernels/activation.py
// have the same.
enum class ActivationKind : int64_t {
  kIdentity = 0,
  kRelu = 1,
  kLeakyRelu = 2,  // a: slope below 0
  kSigmoid = 3,
  kTanh = 4,
  kSelu = 5,
  kSoftplus = 6,  // a: beta, b: threshold
  kElu = 7,       // a: alpha
  kGelu = 8,
  kGeluTanh = 9,
  kSilu = 10,
  kHardswish = 11,
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

template <class T>
struct Relu {
  static constexpr bool kFromOutput = true;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return select_at_most(x, V(0), V(0), x);
  }
  template <class V>
  PYOPS_HD V backward(V y, V grad) const {
    return select_at_most(y, V(0), V(0), grad);
  }
};

// Calls f(functor) with the activation that kind, a and b describe; false when there is no such kind.
template <class T, class F>
bool dispatch_activation(int64_t kind, double a, double b, const F& f) {
  (void)a;
  (void)b;
  switch (static_cast<ActivationKind>(kind)) {
    case ActivationKind::kIdentity:
      return f(Identity<T>{}), true;
    case ActivationKind::kRelu:
      return f(Relu<T>{}), true;
    default:
      return false;
  }
}

}  // namespace pyops::math
