// The parts of activations that are compiled once for all ops.
#include "cpu/epilogue/activation.h"

#include "binding/activation.h"
#include "cpu/runtime/elementwise.h"

namespace pyops::cpu {

template <class Acc>
void AnyActivation<Acc>::forward(Acc* values, int64_t n) const {
  math::dispatch_activation<Acc>(params, [&](const auto& f) {
    transform(n, math::Forward<std::decay_t<decltype(f)>>{f}, values, values);
  });
}

template <class Acc>
void AnyActivation<Acc>::backward(const Acc* saved, bool saved_is_output, Acc* grad, int64_t n) const {
  math::dispatch_activation<Acc>(params, [&](const auto& f) {
    using Functor = std::decay_t<decltype(f)>;
    if (saved_is_output) {
      transform(n, math::FromOutput<Functor>{f}, grad, saved, grad);
    } else {
      transform(n, math::FromInput<Functor>{f}, grad, saved, grad);
    }
  });
}

template struct AnyActivation<float>;
template struct AnyActivation<double>;

void activation_gradient(const Tensor& grad, const Tensor& saved, const math::ActivationParams& params,
                         bool saved_is_output, const char* op, const Tensor& to) {
  dispatch_activation_derivative(saved.scalar_type(), params, saved_is_output, op,
                                 [&](auto tag, const auto& derivative) {
                                   using T = decltype(tag);
                                   elementwise(saved.numel(), activation_cost(params), derivative,
                                               mutable_data<T>(to), data<T>(saved), data<T>(grad));
                                 });
}

}  // namespace pyops::cpu
