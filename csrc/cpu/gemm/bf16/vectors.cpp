// The kernels by VDPBF16PS: they alone are compiled for it, and run only on CPUs that have it.
#include "cpu/gemm/bf16/pack.h"

#if defined(__AVX512F__)

#include <utility>

#define PYOPS_PAIRS __attribute__((target("avx512bf16")))

namespace pyops::cpu {
namespace {

// Of a micro-tile, beside which the registers hold one pair of b's columns and one of a.
constexpr int kRows = 14, kVectors = 2;

PYOPS_PAIRS inline __m512 multiply_add(__m512 sum, __m512 left, __m512 right) {
  return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
}

inline __m512 broadcast(const void* pair) {
  float value;
  __builtin_memcpy(&value, pair, sizeof(value));
  return _mm512_set1_ps(value);
}

// c[rows, vectors * 16] of one panel of a, or of rows that lie `stride` bytes apart, and one of b; `lanes`:
// of the last vector.
template <int rows, int vectors, bool in_place>
PYOPS_PAIRS void micro_kernel(int64_t pairs, const char* a, int64_t stride, const uint32_t* b, float* c,
                              int64_t ldc, __mmask16 lanes, bool adds) {
  constexpr int kShare = in_place ? 4 : rows;  // rows that share a pointer: too few registers for one each
  __m512 sum[rows][vectors] = {};
  const char* from[(rows + kShare - 1) / kShare];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i += kShare) from[i / kShare] = a + i * stride;
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * 16 - 1, 1);
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < pairs; ++k, b += kPairColumns) {
    __m512 right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = _mm512_load_ps(b + j * 16);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const __m512 left = broadcast(from[i / kShare] + i % kShare * (in_place ? stride : 4));
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], left, right[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i += kShare) from[i / kShare] += in_place ? 4 : rows * 4;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* const to = c + i * ldc + j * 16;
      const __mmask16 some = j == vectors - 1 ? lanes : __mmask16(0xffff);
      if (adds) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(some, to));
      _mm512_mask_storeu_ps(to, some, sum[i][j]);
    }
  }
}

using MicroKernel = void (*)(int64_t, const char*, int64_t, const uint32_t*, float*, int64_t, __mmask16,
                             bool);

template <int vectors, bool in_place, int... i>
MicroKernel micro_kernel_of(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr MicroKernel kernels[] = {micro_kernel<i + 1, vectors, in_place>...};
  return kernels[rows - 1];
}

MicroKernel micro_kernel_of(int64_t rows, bool wide, bool in_place) {
  constexpr auto all = std::make_integer_sequence<int, kRows>{};
  if (wide) {
    return in_place ? micro_kernel_of<kVectors, true>(rows, all)
                    : micro_kernel_of<kVectors, false>(rows, all);
  }
  return in_place ? micro_kernel_of<1, true>(rows, all) : micro_kernel_of<1, false>(rows, all);
}

EvenSplit panels_of(int64_t rows) { return {rows, std::max<int64_t>(ceil_div(rows, kRows), 1)}; }

int64_t rows_size(int64_t rows, int64_t depth) { return rows * ceil_div(depth, 2); }

// Rows whose pairs are whole are read where they lie. Not where they meet in few sets of the L1 cache.
bool reads_in_place(const Operand<bfloat16>& a, int64_t depth, int64_t columns) {
  constexpr int64_t kMostColumns = 512, kAlias = 512;
  return a.depth_stride == 1 && depth % 2 == 0 && columns <= kMostColumns && a.row_stride % kAlias != 0;
}

// Panels of rows, as even as can be, pair by pair: panel[pair][row].
PairRows rows_of_pairs(const Operand<bfloat16>& a, int64_t rows, int64_t depth, int64_t columns,
                       uint32_t* packed) {
  if (reads_in_place(a, depth, columns)) {
    return {a.data, a.row_stride * static_cast<int64_t>(sizeof(bfloat16)), 0, 0};
  }
  const EvenSplit panels = panels_of(rows);
  const int64_t all_pairs = ceil_div(depth, 2);
  const auto pack = [&](int64_t panel, int64_t k) {
    const int64_t row = panels.begin(panel), width = panels.size(panel);
    const __mmask16 lanes = pair_lanes(width);
    PairSquare square;
    load_square<true>({a.data + row * a.row_stride + k * a.depth_stride, a.row_stride, a.depth_stride}, width,
                      std::min(depth - k, kSquareTerms), square);
    uint32_t* const to = packed + row * all_pairs + k / 2 * width;
    const int pairs = static_cast<int>(std::min<int64_t>(all_pairs - k / 2, kSquare));
    for (int i = 0; i < pairs; ++i) square.store_line(i, to + i * width, lanes);
  };
  if (a.row_stride == 1) {
    for (int64_t k = 0; k < depth; k += kSquareTerms) {
      for (int64_t p = 0; p < panels.parts; ++p) pack(p, k);
    }
  } else {
    for (int64_t p = 0; p < panels.parts; ++p) {
      for (int64_t k = 0; k < depth; k += kSquareTerms) pack(p, k);
    }
  }
  return {packed, 0, 0, 0};
}

void pack_columns(const Operand<bfloat16>& b, int64_t columns, int64_t depth, uint32_t* packed) {
  pack_pair_columns(b, columns, depth, round_up(depth, 2), packed);
}

// The panel of b stays in the cache while those of a pass by.
void multiply(int64_t rows, int64_t columns, int64_t depth, const PairRows& a, const uint32_t* b, float* c,
              int64_t ldc, bool adds) {
  const EvenSplit panels = panels_of(rows);
  const int64_t pairs = ceil_div(depth, 2);
  const bool in_place = a.row_bytes != 0;
  const int64_t stride = in_place ? a.row_bytes : pairs * static_cast<int64_t>(sizeof(uint32_t));
  const char* const left = static_cast<const char*>(a.data);
  for (int64_t column = 0; column < columns; column += kPairColumns, b += pairs * kPairColumns) {
    const int64_t count = std::min(kPairColumns, columns - column);
    const bool wide = count > 16;
    const __mmask16 lanes = pair_lanes(wide ? count - 16 : count);
    for (int64_t p = 0; p < panels.parts; ++p) {
      const int64_t row = panels.begin(p);
      const MicroKernel kernel = micro_kernel_of(panels.size(p), wide, in_place);
      kernel(pairs, left + row * stride, stride, b, c + row * ldc + column, ldc, lanes, adds);
    }
  }
}

}  // namespace

const PairKernels& vector_pair_kernels() {
  static constexpr PairKernels kernels{
      kRows, 1, 2, 1024, reads_in_place, rows_size, rows_of_pairs, pack_columns, multiply};
  return kernels;
}

}  // namespace pyops::cpu

#endif
