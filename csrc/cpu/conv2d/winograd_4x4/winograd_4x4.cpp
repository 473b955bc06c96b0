// Winograd's F(4 x 4, 3 x 3), for the dtypes of 16 bits.
#include <algorithm>
#include <type_traits>

#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/winograd_4x4/correlation.h"
#include "cpu/conv2d/winograd_4x4/weight_gradient.h"

namespace pyops::cpu {
namespace {

// Whether an axis has 3 taps and moves in steps of 1.
bool has_three_taps(const math::CorrelationAxis& axis) {
  return axis.taps.size() == 3 && axis.max_shift - axis.min_shift == 2 && axis.source_step == 1 &&
         axis.target_step == 1;
}

}  // namespace

template <class Problem>
bool Winograd4x4::can(const Problem& p) {
  using T = typename Problem::Value;
  return sizeof(T) == 2 && p.weights.groups == 1 && p.has_one_phase() && has_three_taps(p.longest_h()) &&
         has_three_taps(p.longest_w()) && p.images * p.pixels() > 0 &&
         ChannelPanels<acc_t<T>>(p.weights.outputs, winograd_4x4::n).vectors_along_channels;
}

// Enough tiles for the weights' transform, and channels for those of a tile, not too much of which hangs over
// the end of the image. Transformed weights stay in the L3 cache.
template <class Problem>
bool Winograd4x4::suits(const Problem& p) {
  constexpr int64_t kFewestTiles = 64, kFewestChannels = 32, kMostWeights = 4 << 20;
  const int64_t tiles = winograd_4x4::tiles_of(p.longest_h().count, p.longest_w().count);
  return p.images * tiles >= kFewestTiles && 5 * 16 * tiles <= 7 * p.pixels() &&
         std::min(p.weights.inputs, p.weights.outputs) >= kFewestChannels &&
         winograd_4x4::kPositions * p.weights.inputs * p.weights.outputs <= kMostWeights;
}

template <class Problem>
void Winograd4x4::run([[maybe_unused]] const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (sizeof(T) == 2) {
    // Where an infinity or a NaN has spread, the sums are formed again.
    const auto run_directly = [](const Problem& q) { Bf16Dot::can(q) ? Bf16Dot::run(q) : Direct::run(q); };
    if constexpr (kIsCorrelation<Problem>) {
      if (!winograd_4x4::Correlation<T>(p).run()) run_directly(p);
    } else {
      if (winograd_4x4::WeightGradient<T>(p).run(p.weight, p.bias)) return;
      Problem without_bias = p;
      without_bias.bias = nullptr;
      run_directly(without_bias);
    }
  }
}

PYOPS_CONV2D_ALGORITHM(Winograd4x4)

}  // namespace pyops::cpu
