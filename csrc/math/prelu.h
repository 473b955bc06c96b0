// PReLU: one learnt slope below 0 per channel (He et al. 2015, arXiv:1502.01852). V is a number, or a vector
// of numbers on the CPU. Where x is NaN, the slope's side is taken, as torch does.
#pragma once

#include "common/fast_math.h"
#include "common/macros.h"

namespace pyops::math {

template <class V>
PYOPS_HD V prelu(V x, V slope) {
  return select_greater(x, V(0), x, x * slope);
}
template <class V>
PYOPS_HD V prelu_input_gradient(V x, V slope, V grad) {
  return select_greater(x, V(0), grad, grad * slope);
}
// What the element adds to the gradient of its channel's slope.
template <class V>
PYOPS_HD V prelu_slope_gradient(V x, V grad) {
  return select_greater(x, V(0), V(0), x * grad);
}

}  // namespace pyops::math
