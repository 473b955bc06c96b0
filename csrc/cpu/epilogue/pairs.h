// epilogue_forward() (row.h) on bfloat16 in memory, two vectors' worth at a time and parted (simd/vec.h).
// Widening, comparing the draws and rounding vector by vector take as long as making the draws.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/epilogue/row.h"
#include "cpu/simd/lanes.h"

namespace pyops::cpu {

// What two vectors' worth of elements are multiplied by, those at even and those at odd places: 0 or the
// scale.
PYOPS_HD TwoVectors<bfloat16> dropout_factors(const uint16_t* draws, const math::DropoutRate<float>& rate) {
  using V = Vec<float>;
  Words pairs;
  memcpy(&pairs, draws, sizeof(pairs));
  const auto factor = [&](Words draw) {
#if defined(__AVX512F__)
    const __mmask16 kept =
        _mm512_cmpge_epu32_mask((__m512i)draw, _mm512_set1_epi32(dropout_limit(rate.high)));
    return V(V::Native(_mm512_maskz_mov_ps(kept, V(rate.scale).v)));
#else
    const V::NativeInt threshold = V::NativeInt{} + dropout_limit(rate.high);
    return V((V::NativeInt)draw < threshold ? V(0.0f).v : V(rate.scale).v);
#endif
  };
  return {factor(pairs & 0xffffu), factor(pairs >> 16)};
}

// Rounds and stores sums and products of bfloat16. Their NaNs come of those, or of the CPU: the bits that are
// rounded off are zeros, and rounding cannot make another number of them. Numbers that need no rounding are
// `exact`.
template <bool exact>
PYOPS_HD void store_pairs(bfloat16* p, Vec<float> even, Vec<float> odd) {
  const auto rounded = [](Vec<float> x) {
    const Words bits = (Words)x.v;
    return exact ? bits : bits + (0x7fffu + ((bits >> 16) & 1u));
  };
  const Words pairs = rounded(even) >> 16 | (rounded(odd) & 0xffff0000u);
  memcpy(p, &pairs, sizeof(pairs));
}

template <bool exact, class Activation>
void epilogue_of_pairs(const Activation& activation, DropoutMask<float>& mask, const bfloat16* x,
                       const RowBias<float>& bias, const bfloat16* residual, bfloat16* y, int64_t n,
                       int64_t first) {
  using V = Vec<float>;
  using Pair = TwoVectors<bfloat16>;
  constexpr int64_t kPair = 2 * V::kLanes;
  const math::DropoutRate<float> rate = mask.rate();
  for (int64_t begin = 0; begin < n; begin += kDrawChunk) {
    const int64_t end = std::min(n, begin + kDrawChunk);
    const uint16_t* const draws = mask.draws(first + begin, end - begin);
    for (int64_t i = begin; i < end; i += kPair) {
      Pair v = Pair::load(x + i);
      if (bias.values) {
        const float* const b = bias.values + (i & bias.wrap);
        const V low = load<float>(b), high = load<float>(b + V::kLanes);
        v = {v.first + every_other<0>(low, high), v.second + every_other<1>(low, high)};
      }
      v = {activation.forward(v.first), activation.forward(v.second)};
      if (draws) {
        const Pair factor = dropout_factors(draws + (i - begin), rate);
        v = {v.first * factor.first, v.second * factor.second};
      }
      if (residual) {
        const Pair r = Pair::load(residual + i);
        v = {v.first + r.first, v.second + r.second};
      }
      store_pairs<exact>(y + i, v.first, v.second);
    }
  }
}

// epilogue_forward() without `activation_input`.
template <class Activation>
void epilogue_forward_in_pairs(const Activation& activation, DropoutMask<float>& mask, const bfloat16* x,
                               const RowBias<float>& bias, const bfloat16* residual, bfloat16* y, int64_t n,
                               int64_t first) {
  const int64_t pairs = n / (2 * Vec<float>::kLanes) * (2 * Vec<float>::kLanes);
  // A power of two changes no significand; the usual rate of 1/2 has one.
  int exponent;
  const bool keeps = !mask.active() || std::frexp(mask.rate().scale, &exponent) == 0.5f;
  constexpr bool kSelects = std::is_same_v<Activation, OneActivation<math::Identity<float>>> ||
                            std::is_same_v<Activation, OneActivation<math::Relu<float>>>;
  const bool exact = kSelects && keeps && !bias.values && !residual;
  exact ? epilogue_of_pairs<true>(activation, mask, x, bias, residual, y, pairs, first)
        : epilogue_of_pairs<false>(activation, mask, x, bias, residual, y, pairs, first);
  if (pairs == n) return;
  const bfloat16* const r = residual ? residual + pairs : nullptr;
  epilogue_forward<bfloat16, bfloat16>(activation, mask, x + pairs, bias.from(pairs), r, y + pairs, nullptr,
                                       n - pairs, first + pairs);
}

}  // namespace pyops::cpu
