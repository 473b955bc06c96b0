// Checks of the activation ops that hold on every device.
#pragma once

#include <type_traits>

#include "binding/tensor.h"
#include "math/activation.h"

namespace pyops {

inline void check_activation_kind(const math::ActivationParams& params, const char* op) {
  PYOPS_CHECK(math::dispatch_activation<float>(params, [](auto) {}), op, ": there is no activation of kind ",
              params.kind);
}

inline void check_activation_backward(const Tensor& grad_output, const Tensor& saved, const char* op) {
  check_packed(saved, op, "saved", saved);
  check_packed(grad_output, op, "grad_output", saved);
  check_type(grad_output, op, "grad_output", saved.scalar_type());
  check_shape(grad_output, op, "grad_output", shape_of(saved));
  check_same_order(grad_output, op, "grad_output", saved);
}

// Calls f(tag, functor) for the tensor's dtype and the activation.
template <class F>
void dispatch_typed_activation(ScalarType type, const math::ActivationParams& params, const char* op,
                               const F& f) {
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    const bool known =
        math::dispatch_activation<acc_t<T>, T>(params, [&](const auto& functor) { f(tag, functor); });
    PYOPS_CHECK(known, op, ": kind must be in [0, 13], got ", params.kind);
  });
}

// Calls f(tag, derivative) with derivative(saved, grad) for a saved output or input.
template <class F>
void dispatch_activation_derivative(ScalarType type, const math::ActivationParams& params,
                                    bool saved_is_output, const char* op, const F& f) {
  dispatch_typed_activation(type, params, op, [&](auto tag, const auto& functor) {
    using Functor = std::decay_t<decltype(functor)>;
    if (!saved_is_output) return f(tag, math::FromInput<Functor>{functor});
    if constexpr (Functor::kFromOutput) {
      f(tag, math::FromOutput<Functor>{functor});
    } else {
      PYOPS_CHECK(false, op, ": the derivative of kind ", params.kind, " needs the input, not the output");
    }
  });
}

}  // namespace pyops
