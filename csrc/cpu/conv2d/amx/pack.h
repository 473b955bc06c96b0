// What the convolution by tiles packs beside the pairs and single elements of bf16/pack.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/conv2d/bf16/pack.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/simd/tiles.h"

#if defined(__AVX512F__)

namespace pyops::cpu::amx {

// A tile of 32 terms and 16 outputs from term(i), a row of 16 widened weights or null: rows of pairs of
// terms, or `outputs_are_rows`.
template <class Term>
void pack_tile_of_weights(const Term& term, bool outputs_are_rows, float* tile) {
  for (int pair = 0; pair < kTileRows; ++pair) {
    const float* const first = term(2 * pair);
    if (first == nullptr) {
      std::fill_n(tile + pair * kTileRows, kTileRows, 0.0f);
    } else {
      bf16_pack::join_weights(first, term(2 * pair + 1), kTileRows, tile + pair * kTileRows);
    }
  }
  if (!outputs_are_rows) return;
  Vec<float> square[kTileRows];
  for (int i = 0; i < kTileRows; ++i) square[i] = load<float>(tile + i * kTileRows);
  transpose<float>(square);
  for (int i = 0; i < kTileRows; ++i) store(tile + i * kTileRows, square[i]);
}

// to[pair of terms][pixel], `line` pixels apart, from single elements: term i's begin at from + terms[i].
// Zeros in the pairs up to `pairs` that have no terms.
inline void fold_pairs(const bfloat16* from, const std::vector<int64_t>& terms, int64_t pixels, int64_t pairs,
                       int64_t line, float* to) {
  const int64_t count = static_cast<int64_t>(terms.size());
  for (int64_t pair = 0; pair < pairs; ++pair, to += line) {
    if (2 * pair >= count) {
      std::fill_n(to, round_up(pixels, kTileRows), 0.0f);
      continue;
    }
    const bfloat16* const first = from + terms[2 * pair];
    const bfloat16* const second = 2 * pair + 1 < count ? from + terms[2 * pair + 1] : nullptr;
    for (int64_t p = 0; p < pixels; p += kTileRows) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first + p));
      const __m256i high = second == nullptr
                               ? _mm256_setzero_si256()
                               : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second + p));
      _mm512_storeu_si512(to + p, bf16_pack::joined(low, high));
    }
  }
}

// The same of `count` single terms: to[term][pixel], `pixels` being a multiple of 32.
inline void fold_singles(const bfloat16* from, const int64_t* terms, int64_t count, int64_t pixels,
                         int64_t line, bfloat16* to) {
  for (int64_t term = 0; term < count; ++term, to += line) {
    for (int64_t p = 0; p < pixels; p += kTileDepth)
      _mm512_storeu_si512(to + p, _mm512_loadu_si512(from + terms[term] + p));
  }
}

}  // namespace pyops::cpu::amx

#endif
