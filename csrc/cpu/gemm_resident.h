// Products of few rows with one matrix that stays: a time loop multiplies by the same weights at every step.
//
// The matrix is packed once (gemm_pack.h); a product then packs only its rows and runs on the calling thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm.h"

namespace pyops::cpu {

template <class Acc>
class ResidentMatrix {
 public:
  ResidentMatrix(int64_t columns, int64_t depth) : columns_(columns), depth_(depth) {
    constexpr int n = Vec<Acc>::kLanes;
    block_ = round_up(ceil_div(depth, ceil_div(depth, GemmBlocking<Acc>::kDepth)), n);
    padded_ = round_up(columns, GemmBlocking<Acc>::kMicroColumns);
  }

  int64_t columns() const { return columns_; }
  int64_t depth() const { return depth_; }
  int64_t packed_size() const { return padded_ * depth_ + Vec<Acc>::kLanes; }
  int64_t scratch_size(int64_t rows) const { return round_up(rows * block_, 16) + Vec<Acc>::kLanes; }

  // b has its rows along the columns of this matrix, as in gemm(). `packed` is aligned to kVectorBytes.
  template <class T, class Parallel>
  void pack(const Operand<T>& b, Acc* packed, const Parallel& parallel) {
    constexpr int64_t wide = GemmBlocking<Acc>::kMicroColumns;
    packed_ = packed;
    parallel(ceil_div(columns_, wide), [&](int64_t panel) {
      const int64_t column = panel * wide, count = std::min(wide, columns_ - column);
      for (int64_t k = 0; k < depth_; k += block_) {
        const int64_t depth = std::min(block_, depth_ - k);
        const Operand<T> from{b.data + column * b.row_stride + k * b.depth_stride, b.row_stride,
                              b.depth_stride};
        pack_columns(from, count, depth, packed + k * padded_ + column * depth);
      }
    });
  }

  // out[rows, columns] = a[rows, depth] @ b, with scratch_size(rows) numbers of scratch.
  template <class T>
  void multiply(int64_t rows, const T* a, int64_t lda, Acc* out, int64_t ldc, Acc* scratch) const {
    const EvenSplit panels(rows, ceil_div(rows, kMicroRows));
    for (int64_t k = 0; k < depth_; k += block_) {
      const int64_t depth = std::min(block_, depth_ - k);
      pack_rows(Operand<T>{a + k, lda, 1}, panels, depth, scratch);
      const Target<Acc, Acc> target{out, ldc, nullptr, 0, Acc(0), k == 0, k + depth >= depth_};
      sweep(panels, columns_, depth, scratch, packed_ + k * padded_, target);
    }
  }

 private:
  int64_t columns_;
  int64_t depth_;
  int64_t block_;   // depth that is multiplied at a time
  int64_t padded_;  // columns, in whole micro-tiles
  const Acc* packed_ = nullptr;
};

}  // namespace pyops::cpu
