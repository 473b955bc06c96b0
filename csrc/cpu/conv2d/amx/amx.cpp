// The convolution in bfloat16 by tiles of Intel's Advanced Matrix Extensions (cpu/simd/tiles.h).
#include "cpu/conv2d/algorithms.h"
#include "cpu/simd/features.h"

#if defined(__AVX512F__)
#include "cpu/conv2d/amx/correlation.h"
#include "cpu/conv2d/amx/weight_gradient.h"
#endif

namespace pyops::cpu {

template <class Problem>
bool Amx::can(const Problem&) {
#if defined(__AVX512F__)
  return std::is_same_v<typename Problem::Value, bfloat16> && has_tiles();
#else
  return false;
#endif
}

// Where tiles would be mostly padding, as those of depthwise convolutions, others are faster.
template <class Problem>
bool Amx::suits([[maybe_unused]] const Problem& p) {
#if defined(__AVX512F__)
  const int64_t inputs = p.weights.inputs, outputs = p.weights.outputs, taps = p.weights.taps();
  const int64_t unit = kIsCorrelation<Problem> ? kTileDepth : kTileRows;
  const int64_t terms =
      amx::folds(inputs, taps, unit) ? round_up(inputs * taps, unit) : round_up(inputs, unit) * taps;
  return amx::fills_tiles(inputs * taps * outputs, terms * round_up(outputs, kTileRows));
#else
  return false;
#endif
}

template <class Problem>
void Amx::run([[maybe_unused]] const Problem& p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Problem, CorrelationProblem<bfloat16>>) {
    with_tiles([&](auto tiles) { amx::Correlation<decltype(tiles)>(p).run(); });
  } else if constexpr (std::is_same_v<Problem, WeightGradientProblem<bfloat16>>) {
    const bool finite =
        with_tiles([&](auto tiles) { return amx::WeightGradient<decltype(tiles)>(p).run(p.weight, p.bias); });
    if (finite) return;
    Bf16Dot::can(p) ? Bf16Dot::run(p) : Direct::run(p);
  }
#endif
}

PYOPS_CONV2D_ALGORITHM(Amx)

}  // namespace pyops::cpu
