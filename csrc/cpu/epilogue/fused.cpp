// The activations of fused.h that are chosen at run time.
#include "cpu/epilogue/fused.h"

#include "cpu/simd/loops.h"

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

}  // namespace pyops::cpu
