// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) and group normalisation (Wu and He 2018,
// arXiv:1803.08494): the map of one row to mean 0 and variance 1, with a weight and a bias, and its gradient.
#pragma once

#include "common/macros.h"
#include "common/multiply_add.h"

namespace pyops::math {

// What forward keeps of a row. The difference of x and a number near the mean is exact where cancellation
// would matter.
template <class V>
PYOPS_HD V standardized(V x, V mean, V rstd) {
  return (x - mean) * rstd;
}

// What the activation gets. Forward and backward both call this, so that the sign of what relu saw can be
// made again bit by bit.
template <class V>
PYOPS_HD V scaled(V standardized, V weight, V bias) {
  return multiply_add(standardized, weight, bias);
}

// Gradient of x from that of its standardized value; `mean_grad` and `mean_product` are the row's means of
// that gradient and of its product with the standardized value.
template <class V>
PYOPS_HD V row_gradient(V grad, V standardized, V mean_grad, V mean_product, V rstd) {
  return (grad - mean_grad - standardized * mean_product) * rstd;
}

}  // namespace pyops::math
