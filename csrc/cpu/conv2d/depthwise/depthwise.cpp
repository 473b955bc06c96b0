// The depthwise convolution: groups of one input and one output channel.
#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/depthwise/correlation.h"
#include "cpu/conv2d/depthwise/planes.h"
#include "cpu/conv2d/depthwise/weight_gradient.h"

namespace pyops::cpu {

template <class Problem>
bool Depthwise::can(const Problem& p) {
  return p.weights.inputs == 1 && p.weights.outputs == 1 && p.images * p.pixels() > 0;
}

// Enough channels: a vector of them, or planes whose packing is shared by few taps.
template <class Problem>
bool Depthwise::suits(const Problem& p) {
  return p.weights.groups >= Vec<acc_t<typename Problem::Value>>::kLanes / 2;
}

template <class Problem>
void Depthwise::run(const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (kHasDepthwisePlanes && std::is_same_v<acc_t<T>, float>) {
    using Planes =
        std::conditional_t<kIsCorrelation<Problem>, DepthwisePlanes<T>, DepthwisePlanesGradient<T>>;
    if (Planes::serves(p)) return Planes(p).run();
  }
  if constexpr (kIsCorrelation<Problem>) {
    DepthwiseCorrelation<T>(p).run();
  } else {
    DepthwiseWeightGradient<T>(p).run();
  }
}

PYOPS_CONV2D_ALGORITHM(Depthwise)

}  // namespace pyops::cpu
