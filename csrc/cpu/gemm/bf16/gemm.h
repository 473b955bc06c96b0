// gemm() of bfloat16, or of float32 in parts (parts.h), by the kernels of kernels.h, blocked as in
// cpu/gemm/gemm.h, but all sums are formed in scratch memory of the thread, from where `finish` takes them
// while they are in cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/gemm/bf16/kernels.h"
#include "cpu/gemm/bf16/parts.h"
#include "cpu/gemm/grid.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

// Largest tile of the output, and the columns whose sums are finished together.
inline constexpr int64_t kPairTileRows = 512, kPairTileColumns = 1024, kPairChunk = 128;
// Elements of a packed block of a, and its rows: beside it the L2 cache holds the sums of a chunk.
inline constexpr int64_t kPairBlock = 128 << 10, kMostPairRows = 256;

// Ends a product in out[M, N], as gemm() does.
template <class Out, class Epilogue>
struct StoreSums {
  Out* out;
  int64_t ldc;
  float beta;
  const Epilogue& epilogue;

  void operator()(const float* sums, int64_t ld, int64_t row, int64_t rows, int64_t column,
                  int64_t columns) const {
    for (int64_t i = 0; i < rows; ++i) {
      Out* const to = out + (row + i) * ldc + column;
      for_each_vector<float>(columns, [&](int64_t j, int lanes) {
        Vec<float> x = load_lanes(sums + i * ld + j, lanes);
        if (beta != 0.0f) x += load_lanes(to + j, lanes) * beta;
        store_lanes(to + j, x, lanes);
      });
    }
    epilogue(row, rows, column, columns);
  }
};

// to += from, [rows, columns].
inline void add_sums(const float* from, int64_t ld_from, int64_t rows, int64_t columns, float* to,
                     int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i) {
    for_each_vector<float>(columns, [&](int64_t j, int lanes) {
      float* const at = to + i * ld_to + j;
      store_lanes(at, load_lanes(at, lanes) + load_lanes(from + i * ld_from + j, lanes), lanes);
    });
  }
}

// One tile by one thread.
template <class T, class Finish>
void multiply_pair_tile(const PairKernels& kernels, int64_t M, int64_t N, int64_t K, const Operand<T>& a,
                        const Operand<T>& b, const Finish& finish) {
  constexpr int kParts = PartsOf<T>::kCount;
  const int64_t depth_blocks = std::max<int64_t>(ceil_div(K, kernels.most_depth), 1);
  const int64_t most_depth = round_up(ceil_div(K, depth_blocks), kernels.depth_unit);
  const int64_t block_rows = std::min(kMostPairRows, kPairBlock / kParts / std::max<int64_t>(most_depth, 1));
  const EvenSplit blocks(ceil_div(M, kernels.row_unit), ceil_div(M, block_rows));
  const int64_t most_rows = std::min(M, (blocks.base + 1) * kernels.row_unit);
  // With one block of terms the sums are finished chunk by chunk; else they wait for the last block.
  const bool waits = depth_blocks > 1;
  const int64_t ld = waits ? round_up(N, kPairColumns) : std::min(kPairChunk, round_up(N, kPairColumns));

  // Columns are packed when the first block of rows meets them, and kept for the next ones.
  const auto kept = [&](int64_t columns) {
    return blocks.parts > 1 ? kParts * kernels.columns_size(columns, most_depth) : 0;
  };
  const int64_t most_columns = std::min(N, kPairChunk);
  const int64_t rows_size = kernels.rows_size(most_rows, most_depth);

  Scratch scratch;
  uint32_t* const packed_a = scratch.take<uint32_t>(kParts * rows_size);
  uint32_t* const packed_b =
      scratch.take<uint32_t>(std::max(kept(N), kParts * kernels.columns_size(most_columns, most_depth)));
  float* const sums = scratch.take<float>((waits ? M : most_rows) * ld);
  // Of many products of parts: those of later blocks are added up by themselves, so that fewer are rounded to
  // what the whole sum holds.
  float* const block_sums = scratch.take<float>(kParts > 1 && waits ? most_rows * kPairChunk : 0);
  PartsOf<T> left_parts(scratch, most_rows * most_depth), right_parts(scratch, most_columns * most_depth);
  int64_t k = 0;
  do {
    const int64_t depth = std::min(most_depth, K - k);
    for (int64_t block = 0; block < blocks.parts; ++block) {
      const int64_t row = blocks.begin(block) * kernels.row_unit;
      const int64_t rows = std::min(blocks.size(block) * kernels.row_unit, M - row);
      left_parts.set({a.data + row * a.row_stride + k * a.depth_stride, a.row_stride, a.depth_stride}, rows,
                     depth);
      PairRows left[kParts];
      for (int p = 0; p < kParts; ++p) {
        left[p] = kernels.rows(left_parts[p], rows, depth, N, packed_a + p * rows_size);
      }
      for (int64_t column = 0; column < N; column += kPairChunk) {
        const int64_t columns = std::min(kPairChunk, N - column);
        uint32_t* const packed = packed_b + kept(column);
        const int64_t columns_size = kernels.columns_size(columns, most_depth);  // of a part
        if (block == 0) {
          right_parts.set({b.data + column * b.row_stride + k * b.depth_stride, b.row_stride, b.depth_stride},
                          columns, depth);
          for (int p = 0; p < kParts; ++p) {
            kernels.pack_columns(right_parts[p], columns, depth, packed + p * columns_size);
          }
        }
        float* const to = waits ? sums + row * ld + column : sums;
        const bool apart = kParts > 1 && k > 0;
        bool adds = k > 0 && !apart;
        for (const PartProduct& product : PartsOf<T>::kProducts) {
          kernels.multiply(rows, columns, depth, left[product.a], packed + product.b * columns_size,
                           apart ? block_sums : to, apart ? kPairChunk : ld, adds);
          adds = true;
        }
        if (apart) add_sums(block_sums, kPairChunk, rows, columns, to, ld);
        if (k + depth >= K) finish(to, ld, row, rows, column, columns);
      }
    }
    k += most_depth;
  } while (k < K);
}

// finish(sums, ld, row, rows, column, columns) for blocks of a[M, K] @ b[K, N], each element once, on the
// thread that formed the sums and concurrently with other blocks; it may overwrite them.
template <class T, class Parallel, class Finish>
void pair_gemm(const PairKernels& kernels, int64_t M, int64_t N, int64_t K, const Operand<T>& a,
               const Operand<T>& b, const Parallel& parallel, const Finish& finish) {
  if (M == 0 || N == 0) return;
  const auto tile = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    multiply_pair_tile(kernels, rows, columns, K,
                       Operand<T>{a.data + row * a.row_stride, a.row_stride, a.depth_stride},
                       Operand<T>{b.data + column * b.row_stride, b.row_stride, b.depth_stride},
                       [&](float* sums, int64_t ld, int64_t i, int64_t height, int64_t j, int64_t width) {
                         finish(sums, ld, row + i, height, column + j, width);
                       });
  };
  // Multiplications that packing an element costs.
  constexpr int64_t kPackingCost = 8 * PartsOf<T>::kCount;
  int64_t row_cost = kPackingCost;
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (kernels.reads_in_place(a, K, std::min(N, kPairTileColumns))) row_cost = 0;
  }
  const TileLimits limits{kPairTileRows,    kPairTileColumns, kernels.micro_rows, kPairColumns,
                          kernels.row_unit, row_cost,         kPackingCost};
  for_each_tile(M, N, K, limits, parallel, tile);
}

}  // namespace pyops::cpu
