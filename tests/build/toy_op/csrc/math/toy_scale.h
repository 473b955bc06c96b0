// A tensor times a number.
#pragma once

#include "common/macros.h"

namespace pyops::math {

template <class Acc>
struct ToyScale {
  Acc factor;

  template <class V>
  PYOPS_HD V operator()(V x) const {
    return x * V(factor);
  }
};

}  // namespace pyops::math
