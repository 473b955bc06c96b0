// Negative log-likelihood of one row: loss = -w_y log p_y, and its only non-zero derivative, -w_y.
#pragma once

#include "common/macros.h"

namespace pyops::math {

template <class T>
PYOPS_HD T nll_loss(T log_probability, T weight) {
  return -weight * log_probability;
}

template <class T>
PYOPS_HD T nll_gradient(T grad, T weight) {
  return -weight * grad;
}

}  // namespace pyops::math
