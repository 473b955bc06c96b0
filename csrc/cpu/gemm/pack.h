// Packing for gemm.h: blocks of an operand copied into panels, so that the micro-kernel reads one contiguous
// stream whatever the operand's strides. 16-bit elements are widened on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/dtypes.h"
#include "common/integers.h"
#include "common/macros.h"
#include "cpu/simd/lanes.h"

namespace pyops::cpu {

// Accumulators take two columns of vectors; what is left of the register file holds one row of b,
// one broadcast element of a and, without FMA, a product.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kMicroRows = 14;
#else
inline constexpr int kMicroRows = 6;
#endif
inline constexpr int kMicroVectors = 2;

// One operand as the packing routines see it: `rows` is M for a and N for b, element (row, k) lies
// at data[row * row_stride + k * depth_stride]. Fast when either stride is 1.
template <class T>
struct Operand {
  const T* data;
  int64_t row_stride;
  int64_t depth_stride;
};

template <class Acc>
struct GemmBlocking {
  static constexpr int kMicroColumns = kMicroVectors * Vec<Acc>::kLanes;
  // A panel of b (kDepth x kMicroColumns) should stay in the L1 cache together with a panel of a,
  // a packed block of a (kRows x kDepth) in L2, and one of b in L3.
  static constexpr int64_t kDepth = 256;
  static constexpr int64_t kRows = 32 * kMicroRows;
  // Largest output tile. The smaller one bounds the buffer of partial sums that a 16-bit output
  // needs when K takes several blocks.
  template <class Out>
  static constexpr int64_t kTileRows = std::is_same_v<Acc, Out> ? 1024 : 512;
  template <class Out>
  static constexpr int64_t kTileColumns = std::is_same_v<Acc, Out> ? 2048 : 1024;
};

// ---------------------------------------------------------------------------------------------
// Packing

// A panel holds `width` rows of an operand, k by k: panel[k * width + row]. Rows from `count` on
// are zero. `x` points at the first element; up to one vector behind the panel is overwritten.
template <int width, class T>
void pack_panel(const Operand<T>& x, int64_t count, int64_t depth, acc_t<T>* panel) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  int64_t k = 0;
  if (x.row_stride == 1 && count < width && width % n == 0) {
    for (; k < depth; ++k) {
      const T* from = x.data + k * x.depth_stride;
#pragma GCC unroll 4
      for (int row = 0; row < width; row += n) {
        const int lanes = static_cast<int>(std::clamp<int64_t>(count - row, 0, n));
        store(panel + k * width + row, load_partial<Acc>(from + row, lanes, Acc(0)));
      }
    }
  } else if (x.row_stride == 1 && count == width) {
    for (; k < depth; ++k) {
      const T* from = x.data + k * x.depth_stride;
      Acc* to = panel + k * width;
      int row = 0;
#pragma GCC unroll 4
      for (; row + n <= width; row += n) store(to + row, load<Acc>(from + row));
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<T, Acc>) {  // by masks, in one instruction each
        if (row < width) {
          store_partial(to + row, load_partial<Acc>(from + row, width - row, Acc(0)), width - row);
        }
        continue;
      }
#endif
#pragma GCC unroll 16
      for (; row < width; ++row) to[row] = to_acc(from[row]);
    }
  } else if (x.depth_stride == 1) {
    // The last square overlaps the one before it where depth is no multiple of its side.
    for (int64_t end = n; depth >= n && k < depth; end += n) {
      k = std::min(end, depth) - n;
      // From the last group of rows to the first: a group that sticks out of the panel writes
      // into the next k, which is then written over.
      for (int group = (width - 1) / n * n; group >= 0; group -= n) {
        const T* from = x.data + group * x.row_stride + k;
        Vec<Acc> square[n];
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) {
          const bool exists = group + i < width && group + i < count;
          square[i] = exists ? load<Acc>(from + i * x.row_stride) : Vec<Acc>(Acc(0));
        }
        transpose<Acc>(square);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) store(panel + (k + i) * width + group, square[i]);
      }
      k += n;
    }
  }
  for (; k < depth; ++k) {
    for (int row = 0; row < width; ++row) {
      const T* from = x.data + row * x.row_stride + k * x.depth_stride;
      panel[k * width + row] = row < count ? to_acc(*from) : Acc(0);
    }
  }
}

template <class T, int... index>
auto panel_packer(int width, std::integer_sequence<int, index...>) {
  using Packer = void (*)(const Operand<T>&, int64_t, int64_t, acc_t<T>*);
  static constexpr Packer packers[] = {pack_panel<index + 1, T>...};
  return packers[width - 1];
}

// Rows are contiguous and successive k may lie pages apart: a few k at a time across all panels
// reads whole cache lines and touches few pages at once. Otherwise a panel is packed in one go.
template <class T>
int64_t packing_depth(const Operand<T>& x, int64_t depth) {
  return x.row_stride == 1 ? std::min<int64_t>(depth, 32) : depth;
}

// Rows of a block of `a` as panels of at most kMicroRows rows, as even as can be.
template <class T>
void pack_rows(const Operand<T>& a, const EvenSplit& panels, int64_t depth, acc_t<T>* packed) {
  const int64_t step = std::max<int64_t>(packing_depth(a, depth), 1);
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t span = std::min(step, depth - k);
    for (int64_t p = 0; p < panels.parts; ++p) {
      const int64_t row = panels.begin(p), width = panels.size(p);
      const Operand<T> from{a.data + row * a.row_stride + k * a.depth_stride, a.row_stride, a.depth_stride};
      panel_packer<T>(static_cast<int>(width), std::make_integer_sequence<int, kMicroRows>{})(
          from, width, span, packed + row * depth + k * width);
    }
  }
}

// Columns of a block of `b` as panels of kMicroColumns; the last is one vector wide if that is enough.
template <class T>
void pack_columns(const Operand<T>& b, int64_t columns, int64_t depth, acc_t<T>* packed) {
  using Blocking = GemmBlocking<acc_t<T>>;
  constexpr int wide = Blocking::kMicroColumns, narrow = Vec<acc_t<T>>::kLanes;
  const int64_t step = std::max<int64_t>(packing_depth(b, depth), 1);
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t span = std::min(step, depth - k);
    for (int64_t column = 0; column < columns; column += wide) {
      const int64_t count = std::min<int64_t>(wide, columns - column);
      const Operand<T> from{b.data + column * b.row_stride + k * b.depth_stride, b.row_stride,
                            b.depth_stride};
      if (count > narrow) {
        pack_panel<wide>(from, count, span, packed + column * depth + k * wide);
      } else {
        pack_panel<narrow>(from, count, span, packed + column * depth + k * narrow);
      }
    }
  }
}

}  // namespace pyops::cpu
