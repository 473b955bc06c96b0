// The direct algorithm for every dtype.
#include "cpu/conv2d/direct/direct.h"

#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/direct/weight_gradient.h"

namespace pyops::cpu {

template <class Problem>
bool Direct::can(const Problem&) {
  return true;
}

template <class Problem>
bool Direct::suits(const Problem&) {
  return true;
}

template <class Problem>
void Direct::run(const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (kIsCorrelation<Problem>) {
    DirectCorrelation<T, SingleTerms<T>>(p).run();
  } else {
    DirectWeightGradient<T, SingleGradientTerms<T>>(p).run(p.weight, p.bias);
  }
}

PYOPS_CONV2D_ALGORITHM(Direct)

}  // namespace pyops::cpu
