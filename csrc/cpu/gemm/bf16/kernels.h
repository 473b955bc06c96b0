// Products of bfloat16 by instructions that multiply pairs of terms: VDPBF16PS, or tiles (cpu/simd/tiles.h).
// Nothing is widened, and sums are float32.
//
// A pair is two neighbouring terms of one row in 4 bytes. Columns of b lie in panels of kPairColumns, pair by
// pair: panel[pair][column]. Both kinds of instruction read that. They take subnormal numbers for zeros;
// torch uses them as well.
#pragma once

#include <cstdint>

#include "cpu/gemm/pack.h"

namespace pyops::cpu {

inline constexpr int64_t kPairColumns = 32;  // of a panel

// Rows of a as the kernels read them: packed or, for tiles, where they lie.
struct PairRows {
  const void* data;
  int64_t row_bytes;   // from row to row; of packed rows that are not tiles 0
  int64_t step_bytes;  // to a tile's next terms
  int64_t tile_bytes;  // to the tile of the next rows
};

struct PairKernels {
  int64_t micro_rows;  // of the output, in registers
  int64_t row_unit;    // blocks of rows begin at multiples of it
  int64_t depth_unit;  // terms are padded with zeros to multiples of it
  int64_t most_depth;  // terms that the caches like in a block, a multiple of depth_unit

  // Whether rows() leaves rows where they lie, which then costs nothing.
  bool (*reads_in_place)(const Operand<bfloat16>& a, int64_t depth, int64_t columns);
  // Numbers of memory that rows() needs for a block.
  int64_t (*rows_size)(int64_t rows, int64_t depth);
  // `rows` rows of `depth` terms of a for products with `columns` columns; `packed` may be used for them.
  PairRows (*rows)(const Operand<bfloat16>& a, int64_t rows, int64_t depth, int64_t columns,
                   uint32_t* packed);
  // Panels of `columns` columns, each round_up(depth, depth_unit) / 2 * kPairColumns pairs.
  void (*pack_columns)(const Operand<bfloat16>& b, int64_t columns, int64_t depth, uint32_t* packed);
  // c[rows, columns] = a @ b, or added to c. `depth` as given to rows() and pack_columns().
  void (*multiply)(int64_t rows, int64_t columns, int64_t depth, const PairRows& a, const uint32_t* b,
                   float* c, int64_t ldc, bool adds);

  int64_t padded(int64_t depth) const { return round_up(depth, depth_unit); }
  // Pairs of packed columns.
  int64_t columns_size(int64_t columns, int64_t depth) const {
    return round_up(columns, kPairColumns) * padded(depth) / 2;
  }
};

// The best kernels that may be used here (cpu/simd/features.h), or null.
const PairKernels* pair_kernels();

}  // namespace pyops::cpu
