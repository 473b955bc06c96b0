// Products of few rows of bfloat16 with a matrix that is packed once, by the kernels of kernels.h: the
// counterpart of cpu/gemm/prepacked.h, whose interface it has.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm/bf16/kernels.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// Only where there are pair_kernels(). Its memory is counted in floats, each of which holds a pair.
class PrepackedPairs {
 public:
  using Input = bfloat16;  // of the rows

  PrepackedPairs(int64_t columns, int64_t depth)
      : kernels_(*pair_kernels()), columns_(columns), depth_(depth) {
    const int64_t blocks = std::max<int64_t>(ceil_div(depth, kernels_.most_depth), 1);
    block_ = std::max(kernels_.padded(ceil_div(depth, blocks)), kernels_.depth_unit);
  }

  int64_t columns() const { return columns_; }
  int64_t depth() const { return depth_; }
  int64_t packed_size() const { return kernels_.columns_size(columns_, depth_); }
  int64_t packed_rows_size(int64_t rows) const { return kernels_.rows_size(rows, block_); }

  // Where the matrix lies, aligned to kVectorBytes. Terms behind the last are zeros from now on.
  void place(float* packed) {
    packed_ = reinterpret_cast<uint32_t*>(packed);
    for (int64_t k = depth_ / 2 * 2; k < kernels_.padded(depth_); k += 2) {
      for (int64_t column = 0; column < columns_; column += kPairColumns) {
        std::fill_n(at(k, column), kPairColumns, 0);
      }
    }
  }

  // b has its rows along the columns of this matrix, as in gemm(); term k here is b's term
  // (first + k) % depth.
  template <class Parallel>
  void pack(const Operand<bfloat16>& b, int64_t first, const Parallel& parallel) {
    parallel(ceil_div(columns_, kPairColumns), [&](int64_t panel) {
      const int64_t column = panel * kPairColumns, count = std::min(kPairColumns, columns_ - column);
      Scratch scratch;
      Operand<bfloat16> from{b.data + column * b.row_stride, b.row_stride, b.depth_stride};
      if (first != 0) {  // the last term and the first one may be a pair
        bfloat16* const turned = scratch.take<bfloat16>(depth_ * kPairColumns);
        for (int64_t k = 0; k < depth_; ++k) {
          const bfloat16* const term = from.data + (first + k) % depth_ * from.depth_stride;
          for (int64_t j = 0; j < count; ++j) turned[k * kPairColumns + j] = term[j * from.row_stride];
        }
        from = {turned, 1, kPairColumns};
      }
      for (int64_t k = 0; k < depth_; k += block_) {
        kernels_.pack_columns({from.data + k * from.depth_stride, from.row_stride, from.depth_stride}, count,
                              std::min(block_, depth_ - k), at(k, column));
      }
    });
  }

  // Sets terms [k, k + count) of the columns [column, column + columns), both multiples of a vector: one row
  // of `from` [count, numbers], which are ld apart, for each term, and `fill` behind it. Threads may set
  // different terms at a time.
  void put_rows(int64_t k, int64_t count, int64_t column, int64_t columns, const bfloat16* from, int64_t ld,
                int64_t numbers, float fill) {
    const bfloat16 behind = from_acc<bfloat16>(fill);
    for (int64_t i = 0; i < count;) {
      const int64_t terms = (k + i) % 2 == 0 && i + 1 < count ? 2 : 1;
      for (int64_t j = 0; j < columns; j += kVector) {
        uint32_t* const to =
            at(k + i, (column + j) / kPairColumns * kPairColumns) + (column + j) % kPairColumns;
        const bfloat16* row = from + i * ld + j;
        bfloat16 values[2][kVector];
        for (int64_t term = 0; term < terms; ++term, row += ld) {
          const int64_t some = std::clamp<int64_t>(numbers - j, 0, kVector);
          std::copy_n(row, some, values[term]);
          std::fill(values[term] + some, values[term] + kVector, behind);
        }
        if (terms == 2) {
          for (int64_t c = 0; c < kVector; ++c) to[c] = values[0][c].bits | uint32_t(values[1][c].bits) << 16;
        } else {  // the other half may be another thread's
          bfloat16* const half = reinterpret_cast<bfloat16*>(to) + (k + i) % 2;
          for (int64_t c = 0; c < kVector; ++c) half[2 * c] = values[0][c];
        }
      }
      i += terms;
    }
  }

  // out[rows, columns] = a[rows, depth] @ b; `packed_rows` has packed_rows_size(rows) numbers.
  void multiply(int64_t rows, const Operand<bfloat16>& a, float* out, int64_t ldc, float* packed_rows) const {
    multiply_from(0, rows, a, out, ldc, false, packed_rows);
  }

  // Adds to `out`, or stores in it, the product's columns from `column` on, a multiple of kPairColumns.
  void multiply_from(int64_t column, int64_t rows, const Operand<bfloat16>& a, float* out, int64_t ldc,
                     bool adds, float* packed_rows) const {
    const int64_t columns = columns_ - column;
    for (int64_t k = 0; k < depth_; k += block_) {
      const int64_t depth = std::min(block_, depth_ - k);
      const PairRows left = kernels_.rows({a.data + k * a.depth_stride, a.row_stride, a.depth_stride}, rows,
                                          depth, columns, reinterpret_cast<uint32_t*>(packed_rows));
      kernels_.multiply(rows, columns, depth, left, at(k, column), out + column, ldc, adds || k > 0);
    }
  }

 private:
  static constexpr int64_t kVector = kPairColumns / 2;

  // The pair that term k is of, in the panel that begins at `column`.
  uint32_t* at(int64_t k, int64_t column) const {
    const int64_t begin = k / block_ * block_, depth = std::min(block_, depth_ - begin);
    return packed_ + kernels_.columns_size(columns_, begin) + kernels_.columns_size(column, depth) +
           (k - begin) / 2 * kPairColumns;
  }

  const PairKernels& kernels_;
  int64_t columns_;
  int64_t depth_;
  int64_t block_;  // depth that is multiplied at a time
  uint32_t* packed_ = nullptr;
};

}  // namespace pyops::cpu
