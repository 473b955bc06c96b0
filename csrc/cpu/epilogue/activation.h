// The activations of the ops that fuse one.
#pragma once

#include <cstdint>

#include "binding/tensor.h"
#include "common/macros.h"
#include "math/activation.h"

namespace pyops::cpu {

// An element's work beside a copy's: exp and a division take as long as three.
inline int64_t activation_cost(const math::ActivationParams& params) {
  switch (static_cast<math::ActivationKind>(params.kind)) {
    case math::ActivationKind::kIdentity:
    case math::ActivationKind::kRelu:
    case math::ActivationKind::kLeakyRelu:
    case math::ActivationKind::kHardswish:
    case math::ActivationKind::kHardtanh:
    case math::ActivationKind::kHardsigmoid:
      return 1;
    default:
      return 3;
  }
}

// An activation chosen at run time: it works on pieces in the L1 cache by functions that are compiled once
// (activation.cpp).
template <class Acc>
struct AnyActivation {
  static constexpr bool kOnPieces = true;
  math::ActivationParams params;
  void forward(Acc* values, int64_t n) const;
  void backward(const Acc* saved, bool saved_is_output, Acc* grad, int64_t n) const;
};

// An activation known at compile time: for the commonest, whose own loops are worth their code.
template <class Functor>
struct OneActivation {
  static constexpr bool kOnPieces = false;
  template <class V>
  PYOPS_HD V forward(V x) const {
    return Functor{}.forward(x);
  }
  template <class V>
  PYOPS_HD V backward(V saved, bool saved_is_output, V grad) const {
    const Functor f{};
    return saved_is_output ? f.backward(saved, grad) : math::FromInput<Functor>{f}(saved, grad);
  }
};

// Calls f(activation) with either; the kind must be known.
template <class Acc, class F>
void with_activation(const math::ActivationParams& params, const F& f) {
  switch (static_cast<math::ActivationKind>(params.kind)) {
    case math::ActivationKind::kIdentity:
      return f(OneActivation<math::Identity<Acc>>{});
    case math::ActivationKind::kRelu:
      return f(OneActivation<math::Relu<Acc>>{});
    default:
      return f(AnyActivation<Acc>{params});
  }
}

// The gradient of an activation's input for whole tensors, in the order of memory that they share.
void activation_gradient(const Tensor& grad, const Tensor& saved, const math::ActivationParams& params,
                         bool saved_is_output, const char* op, const Tensor& to);

}  // namespace pyops::cpu
