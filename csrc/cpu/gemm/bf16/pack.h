// Squares of pairs: what panels of columns and tiles of rows are packed by. For CPUs with AVX-512.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm/bf16/kernels.h"
#include "cpu/simd/lanes.h"

#if defined(__AVX512F__)

namespace pyops::cpu {

inline constexpr int kSquare = 16;                    // rows, and pairs of each
inline constexpr int64_t kSquareTerms = 2 * kSquare;  // terms of each row

// Sixteen rows of sixteen pairs, or sixteen pairs of sixteen rows.
struct PairSquare {
  Vec<float> lines[kSquare];

  void store_line(int i, uint32_t* to) const { store(reinterpret_cast<float*>(to), lines[i]); }
  void store_line(int i, uint32_t* to, __mmask16 lanes) const {
    _mm512_mask_storeu_ps(to, lanes, lines[i].v);
  }
};

inline __mmask16 pair_lanes(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << std::max<int64_t>(count, 0)) - 1u);
}

inline __mmask32 term_lanes(int64_t count) {
  return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << std::max<int64_t>(count, 0)) - 1u;
}

inline __m512i joined_pairs(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// The first `rows` rows and `terms` terms at x, zeros behind them: line by line a pair of all rows (by_pairs)
// or a row of all pairs.
template <bool by_pairs>
inline void load_square(const Operand<bfloat16>& x, int64_t rows, int64_t terms, PairSquare& square) {
  alignas(64) bfloat16 copied[kSquare][kSquareTerms];
  Operand<bfloat16> from = x;
  if (x.depth_stride != 1 && x.row_stride != 1) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < terms; ++k) copied[i][k] = x.data[i * x.row_stride + k * x.depth_stride];
    }
    from = {copied[0], kSquareTerms, 1};
  }
  if (from.depth_stride == 1) {
    const __mmask32 lanes = term_lanes(terms);
#pragma GCC unroll 16
    for (int i = 0; i < kSquare; ++i) {
      __m512i line = _mm512_setzero_si512();
      if (i < rows) line = _mm512_maskz_loadu_epi16(lanes, from.data + i * from.row_stride);
      square.lines[i] = typename Vec<float>::Native(_mm512_castsi512_ps(line));
    }
    if (by_pairs) transpose<float>(square.lines);
  } else {
    const __mmask16 lanes = pair_lanes(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kSquare; ++i) {
      const bfloat16* const first = from.data + 2 * i * from.depth_stride;
      __m256i terms_of[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      if (2 * i < terms) terms_of[0] = _mm256_maskz_loadu_epi16(lanes, first);
      if (2 * i + 1 < terms) terms_of[1] = _mm256_maskz_loadu_epi16(lanes, first + from.depth_stride);
      square.lines[i] =
          typename Vec<float>::Native(_mm512_castsi512_ps(joined_pairs(terms_of[0], terms_of[1])));
    }
    if (!by_pairs) transpose<float>(square.lines);
  }
}

// PairKernels::pack_columns() of kernels whose panels have `padded` terms.
void pack_pair_columns(const Operand<bfloat16>& b, int64_t columns, int64_t depth, int64_t padded,
                       uint32_t* packed);

// The kernels by VDPBF16PS, and those by tiles.
const PairKernels& vector_pair_kernels();
const PairKernels& tile_pair_kernels();

}  // namespace pyops::cpu

#endif
