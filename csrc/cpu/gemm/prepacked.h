// Products of few rows with a matrix that is packed once: a time loop multiplies by the same weights at every
// step.
//
// A product packs only its rows (pack.h), or reads them where they lie if the matrix is narrow, and runs on
// the calling thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm/gemm.h"

namespace pyops::cpu {

// As micro_kernel(), of rows of `a` that are not packed: contiguous from row to row, or along the depth.
template <int rows, int vectors, bool along_rows, class Acc>
void micro_kernel_in_place(int64_t depth, const Acc* a, int64_t stride, const Acc* b, Acc* c, int64_t ldc,
                           Acc beta) {
  using Native = typename Vec<Acc>::Native;
  constexpr int n = Vec<Acc>::kLanes;
  Native sum[rows][vectors] = {};
  // Three rows share a pointer, from which the stride in one register reaches them: there are not enough
  // registers for a pointer each.
  const Acc* from[ceil_div(rows, 3)];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i += 3) from[i / 3] = a + i * (along_rows ? 1 : stride);
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k, b += vectors * n) {
    const auto* right = reinterpret_cast<const Native*>(b);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Native left = (along_rows ? a[i] : from[i / 3][i % 3 * stride]) - Native{};
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
    if (along_rows) {
      a += stride;
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < rows; i += 3) ++from[i / 3];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      Acc* to = c + i * ldc + j * n;
      if (beta != Acc(0)) sum[i][j] += beta * load<Acc>(to).v;
      store(to, Vec<Acc>(sum[i][j]));
    }
  }
}

template <int vectors, bool along_rows, class Acc, int... index>
auto micro_kernel_in_place_for(int64_t rows, std::integer_sequence<int, index...>) {
  using Kernel = void (*)(int64_t, const Acc*, int64_t, const Acc*, Acc*, int64_t, Acc);
  static constexpr Kernel kernels[] = {micro_kernel_in_place<index + 1, vectors, along_rows, Acc>...};
  return kernels[rows - 1];
}

// As sweep(), of rows of `a` that are not packed.
template <class Acc>
void sweep_in_place(const EvenSplit& row_panels, int64_t columns, int64_t depth, const Operand<Acc>& a,
                    const Acc* b, const Target<Acc, Acc>& c) {
  constexpr int wide = GemmBlocking<Acc>::kMicroColumns, narrow = Vec<Acc>::kLanes;
  constexpr auto heights = std::make_integer_sequence<int, kMicroRows>{};
  const bool along_rows = a.row_stride == 1;
  const Acc beta = c.first ? Acc(0) : Acc(1);
  alignas(kVectorBytes) Acc tile[kMicroRows * wide];
  for (int64_t column = 0; column < columns; column += wide) {
    const int64_t count = std::min<int64_t>(wide, columns - column);
    for (int64_t p = 0; p < row_panels.parts; ++p) {
      const int64_t row = row_panels.begin(p), rows = row_panels.size(p);
      const auto kernel =
          count > narrow ? along_rows ? micro_kernel_in_place_for<kMicroVectors, true, Acc>(rows, heights)
                                      : micro_kernel_in_place_for<kMicroVectors, false, Acc>(rows, heights)
          : along_rows   ? micro_kernel_in_place_for<1, true, Acc>(rows, heights)
                         : micro_kernel_in_place_for<1, false, Acc>(rows, heights);
      const Acc* const left = a.data + row * a.row_stride;
      const int64_t stride = along_rows ? a.depth_stride : a.row_stride;
      Acc* const out = c.out + row * c.ldc + column;
      if (count == wide || count == narrow) {
        kernel(depth, left, stride, b + column * depth, out, c.ldc, beta);
        continue;
      }
      kernel(depth, left, stride, b + column * depth, tile, wide, Acc(0));
      merge<Acc, Acc>(tile, rows, count, nullptr, 0, out, c.ldc, beta);
    }
  }
}

// The right operand of the products; whoever makes it gives it its memory.
template <class Acc>
class PrepackedMatrix {
 public:
  using Input = Acc;  // of the rows that are multiplied where they lie

  PrepackedMatrix(int64_t columns, int64_t depth) : columns_(columns), depth_(depth) {
    constexpr int n = Vec<Acc>::kLanes;
    block_ = round_up(ceil_div(depth, ceil_div(depth, GemmBlocking<Acc>::kDepth)), n);
    padded_ = round_up(columns, GemmBlocking<Acc>::kMicroColumns);
  }

  int64_t columns() const { return columns_; }
  int64_t depth() const { return depth_; }
  int64_t padded_columns() const { return padded_; }
  int64_t packed_size() const { return padded_ * depth_ + Vec<Acc>::kLanes; }
  // Numbers of memory that multiply() packs `rows` rows into.
  int64_t packed_rows_size(int64_t rows) const { return round_up(rows * block_, 16) + Vec<Acc>::kLanes; }

  // Where the matrix lies, aligned to kVectorBytes.
  void place(Acc* packed) { packed_ = packed; }

  // b has its rows along the columns of this matrix, as in gemm(); term k here is b's term
  // (first + k) % depth.
  template <class T, class Parallel>
  void pack(const Operand<T>& b, int64_t first, const Parallel& parallel) {
    parallel(ceil_div(columns_, kWide), [&](int64_t panel) {
      const int64_t column = panel * kWide, count = std::min(kWide, columns_ - column);
      for (int64_t k = 0; k < depth_;) {
        const int64_t term = (first + k) % depth_;
        const int64_t run = std::min({depth_ - term, depth_ - k, block_ - k % block_});
        const Operand<T> from{b.data + column * b.row_stride + term * b.depth_stride, b.row_stride,
                              b.depth_stride};
        pack_columns(from, count, run, at(k, column));
        k += run;
      }
    });
  }

  // Sets terms [k, k + count) of the columns [column, column + columns), both multiples of a vector: one row
  // of `from` [count, numbers], which are ld apart, for each term, and `fill` behind it.
  template <class T>
  void put_rows(int64_t k, int64_t count, int64_t column, int64_t columns, const T* from, int64_t ld,
                int64_t numbers, Acc fill) {
    constexpr int n = Vec<Acc>::kLanes;
    for (int64_t row = 0; row < count;) {
      const int64_t run = std::min(count - row, block_ - (k + row) % block_);
      for (int64_t j = 0; j < columns; j += n) {
        const int64_t panel = (column + j) / kWide * kWide;
        const int lanes = static_cast<int>(std::clamp<int64_t>(numbers - j, 0, n));
        Acc* const to = at(k + row, panel) + (column + j - panel);
        for (int64_t i = 0; i < run; ++i) {
          store(to + i * panel_width(panel), load_lanes(from + (row + i) * ld + j, lanes, fill));
        }
      }
      row += run;
    }
  }

  // out[rows, columns] = a[rows, depth] @ b; `packed_rows` has packed_rows_size(rows) numbers.
  template <class T>
  void multiply(int64_t rows, const Operand<T>& a, Acc* out, int64_t ldc, Acc* packed_rows) const {
    multiply_from(0, rows, a, out, ldc, false, packed_rows);
  }

  // Adds to `out`, or stores in it, the product's columns from `column` on, a multiple of kMicroColumns.
  template <class T>
  void multiply_from(int64_t column, int64_t rows, const Operand<T>& a, Acc* out, int64_t ldc, bool adds,
                     Acc* packed_rows) const {
    const EvenSplit panels(rows, ceil_div(rows, kMicroRows));
    for (int64_t k = 0; k < depth_; k += block_) {
      const int64_t depth = std::min(block_, depth_ - k);
      const Operand<T> block{a.data + k * a.depth_stride, a.row_stride, a.depth_stride};
      const bool begins = k == 0 && !adds;
      const Target<Acc, Acc> target{out + column, ldc, nullptr, 0, Acc(0), begins, k + depth >= depth_};
      const Acc* const right = packed_ + k * padded_ + column * depth;
      if constexpr (std::is_same_v<T, Acc>) {
        if (columns_ - column <= kInPlaceColumns && (a.row_stride == 1 || a.depth_stride == 1)) {
          sweep_in_place(panels, columns_ - column, depth, block, right, target);
          continue;
        }
      }
      pack_rows(block, panels, depth, packed_rows);
      sweep(panels, columns_ - column, depth, packed_rows, right, target);
    }
  }

 private:
  static constexpr int64_t kWide = GemmBlocking<Acc>::kMicroColumns;
  static constexpr int64_t kInPlaceColumns = 4 * kWide;  // of a narrow matrix: packing rows does not pay

  // Columns of the panel that begins at `column`: pack_columns() says so.
  int64_t panel_width(int64_t column) const {
    return columns_ - column > Vec<Acc>::kLanes ? kWide : Vec<Acc>::kLanes;
  }

  // Term k of the panel that begins at `column`.
  Acc* at(int64_t k, int64_t column) const {
    const int64_t begin = k / block_ * block_, depth = std::min(block_, depth_ - begin);
    return packed_ + begin * padded_ + column * depth + (k - begin) * panel_width(column);
  }

  int64_t columns_;
  int64_t depth_;
  int64_t block_;   // depth that is multiplied at a time
  int64_t padded_;  // columns, in whole micro-tiles
  Acc* packed_ = nullptr;
};

}  // namespace pyops::cpu
