// What the op needs from torch on every device: checks, and the formula for the tensor's dtype.
#pragma once

#include "binding/tensor.h"
#include "math/toy_scale.h"

namespace pyops {

// Calls f(tag, formula).
template <class F>
void dispatch_toy_scale(const Tensor& input, double factor, const char* op, const F& f) {
  check_packed(input, op, "input", input);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using Acc = acc_t<decltype(tag)>;
    f(tag, math::ToyScale<Acc>{static_cast<Acc>(factor)});
  });
}

}  // namespace pyops
