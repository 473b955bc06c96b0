// Matrix multiplication for the CPU kernels: out[M, N] = a[M, K] @ b[K, N] + beta * out.
//
// The scheme is that of BLIS (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly
// Instantiating BLAS Functionality", 2015). From the outside in:
//
//   gemm          cuts the output into tiles and hands them to threads (grid.h)
//   multiply_tile walks one tile block by block over K, packing the operands as it goes
//   pack          copies a block into panels: what the micro-kernel reads next lies next
//   sweep         visits the micro-tiles of a packed block
//   micro_kernel  keeps a micro-tile of the output in registers
//
// Products of bfloat16 have kernels of their own on CPUs that multiply pairs (bf16/kernels.h), and so have
// those of float32 where they are asked for (bf16/parts.h).
//
// Threads never share an output element and K is always cut at the same places, so the result has
// the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/gemm/bf16/gemm.h"
#include "cpu/gemm/grid.h"
#include "cpu/gemm/pack.h"
#include "cpu/gemm/skinny.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// ---------------------------------------------------------------------------------------------
// Micro-kernel

// c[rows, vectors * kLanes] = a @ b + beta * c for one panel of a and one of b.
template <int rows, int vectors, class Acc>
void micro_kernel(int64_t depth, const Acc* a, const Acc* b, Acc* c, int64_t ldc, Acc beta) {
  using Native = typename Vec<Acc>::Native;
  constexpr int n = Vec<Acc>::kLanes;
  Native sum[rows][vectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    // c is needed after the loop, and will have come from memory by then.
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * n - 1, 1);
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k, a += rows, b += vectors * n) {
    // Not through load(): GCC would keep the copy in memory. Panels of b are aligned.
    const auto* right = reinterpret_cast<const Native*>(b);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Native left = a[i] - Native{};
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
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

template <class Acc>
using MicroKernel = void (*)(int64_t, const Acc*, const Acc*, Acc*, int64_t, Acc);

template <int vectors, class Acc, int... index>
MicroKernel<Acc> micro_kernel_for(int64_t rows, std::integer_sequence<int, index...>) {
  static constexpr MicroKernel<Acc> kernels[] = {micro_kernel<index + 1, vectors, Acc>...};
  return kernels[rows - 1];
}

// ---------------------------------------------------------------------------------------------
// Blocking

// Where the sums of one block of K go. A K block either ends in `out` or, when `out` is too narrow
// to hold partial sums and more blocks follow, in `partial`.
template <class Acc, class Out>
struct Target {
  Out* out;
  int64_t ldc;
  Acc* partial;
  int64_t partial_ld;
  Acc beta;
  bool first;
  bool last;
};

// Adds a micro-tile that could not be written in place: at the right edge, or to a 16-bit output.
// `partial`, if any, holds the sums of earlier K blocks and is padded to whole micro-tiles.
template <class Acc, class Out>
void merge(const Acc* sums, int64_t rows, int64_t columns, const Acc* partial, int64_t partial_ld, Out* out,
           int64_t ldc, Acc beta) {
  constexpr int n = Vec<Acc>::kLanes;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += n) {
      const int lanes = static_cast<int>(std::min<int64_t>(n, columns - j));
      Out* to = out + i * ldc + j;
      Vec<Acc> x = load<Acc>(sums + i * GemmBlocking<Acc>::kMicroColumns + j);
      if (partial != nullptr) x += load<Acc>(partial + i * partial_ld + j);
      if (lanes == n) {
        if (beta != Acc(0)) x.v += beta * load<Acc>(to).v;
        store(to, x);
      } else {
        if (beta != Acc(0)) x.v += beta * load_partial<Acc>(to, lanes, Acc(0)).v;
        store_partial(to, x, lanes);
      }
    }
  }
}

// All micro-tiles of a packed block. The panel of b stays in L1 while those of a pass by.
template <class Acc, class Out>
void sweep(const EvenSplit& row_panels, int64_t columns, int64_t depth, const Acc* a, const Acc* b,
           const Target<Acc, Out>& c) {
  using Blocking = GemmBlocking<Acc>;
  constexpr int wide = Blocking::kMicroColumns, narrow = Vec<Acc>::kLanes;
  constexpr auto heights = std::make_integer_sequence<int, kMicroRows>{};
  constexpr bool same = std::is_same_v<Acc, Out>;
  alignas(kVectorBytes) Acc tile[kMicroRows * wide];
  for (int64_t column = 0; column < columns; column += wide) {
    const int64_t count = std::min<int64_t>(wide, columns - column);
    for (int64_t p = 0; p < row_panels.parts; ++p) {
      const int64_t row = row_panels.begin(p), rows = row_panels.size(p);
      const MicroKernel<Acc> kernel = count > narrow ? micro_kernel_for<kMicroVectors, Acc>(rows, heights)
                                                     : micro_kernel_for<1, Acc>(rows, heights);
      const Acc* left = a + row * depth;
      const Acc* right = b + column * depth;
      Out* out = c.out + row * c.ldc + column;
      Acc* partial = same ? nullptr : c.partial + row * c.partial_ld + column;
      if (!same && !c.last) {
        kernel(depth, left, right, partial, c.partial_ld, c.first ? Acc(0) : Acc(1));
        continue;
      }
      const Acc beta = same && !c.first ? Acc(1) : c.beta;
      if constexpr (same) {
        if (count == wide || count == narrow) {
          kernel(depth, left, right, out, c.ldc, beta);
          continue;
        }
      }
      kernel(depth, left, right, tile, wide, Acc(0));
      merge(tile, rows, count, c.first ? nullptr : partial, c.partial_ld, out, c.ldc, beta);
    }
  }
}

// One tile of the output by one thread. finished(row, rows) is called for rows whose sums are final, which
// are then still in cache.
template <class T, class Out, class Finished>
void multiply_tile(int64_t M, int64_t N, int64_t K, Operand<T> a, Operand<T> b, Out* out, int64_t ldc,
                   acc_t<T> beta, const Finished& finished) {
  using Acc = acc_t<T>;
  using Blocking = GemmBlocking<Acc>;
  constexpr int n = Vec<Acc>::kLanes;
  const int64_t depth_blocks = std::max<int64_t>(ceil_div(K, Blocking::kDepth), 1);
  const int64_t max_depth = round_up(ceil_div(K, depth_blocks), n);
  const EvenSplit row_blocks(ceil_div(M, kMicroRows), ceil_div(M, Blocking::kRows));
  const int64_t max_rows = std::min(M, (row_blocks.base + 1) * kMicroRows);
  const int64_t padded = round_up(N, Blocking::kMicroColumns);
  const bool spill = !std::is_same_v<Acc, Out> && depth_blocks > 1;

  Scratch scratch;  // GemmBlocking bounds how much
  Acc* const packed_a = scratch.take<Acc>(round_up(max_rows * max_depth + n, n));
  Acc* const packed_b = scratch.take<Acc>(padded * max_depth + n);
  Acc* const partial = spill ? scratch.take<Acc>(M * padded) : nullptr;

  int64_t k = 0;
  do {
    const int64_t depth = std::min(max_depth, K - k);
    pack_columns(Operand<T>{b.data + k * b.depth_stride, b.row_stride, b.depth_stride}, N, depth, packed_b);
    for (int64_t block = 0; block < row_blocks.parts; ++block) {
      const int64_t row = row_blocks.begin(block) * kMicroRows;
      const int64_t rows = std::min(row_blocks.size(block) * kMicroRows, M - row);
      const EvenSplit panels(rows, ceil_div(rows, kMicroRows));
      pack_rows(Operand<T>{a.data + row * a.row_stride + k * a.depth_stride, a.row_stride, a.depth_stride},
                panels, depth, packed_a);
      const Target<Acc, Out> target{
          out + row * ldc, ldc, partial + (spill ? row * padded : 0), padded, beta, k == 0, k + depth >= K};
      sweep(panels, N, depth, packed_a, packed_b, target);
      if (target.last) finished(row, rows);
    }
    k += max_depth;
  } while (k < K);
}

// The epilogue of a plain product.
struct NoEpilogue {
  void operator()(int64_t, int64_t, int64_t, int64_t) const {}
};

// out[M, N] = a[M, K] @ b[K, N] + beta * out, accumulated in acc_t<T>.
//
// The operand a has its rows along M, b along N. out is row-major with leading dimension ldc and
// must not overlap a or b; for beta == 0 it is not read. Out is T or acc_t<T>.
// parallel.threads() says how many threads there are, parallel(count, body) calls body(i) for
// every i in [0, count), in any order and concurrency.
//
// epilogue(row, rows, column, columns) is called once for every element of the output, as part of some block
// [row, row + rows) x [column, column + columns), when its sum has just been written. It runs on the thread
// that wrote the block, concurrently with calls for other blocks, and may overwrite the block; whether blocks
// are the same for every number of threads is not promised.
template <class T, class Out, class Parallel, class Epilogue = NoEpilogue>
void gemm(int64_t M, int64_t N, int64_t K, Operand<T> a, Operand<T> b, Out* out, int64_t ldc, acc_t<T> beta,
          const Parallel& parallel, const Epilogue& epilogue = {}) {
  using Blocking = GemmBlocking<acc_t<T>>;
  if (M == 0 || N == 0) return;
  const bool serial = is_serial(M, N, K);
  if (serial ? skinny_gemm(M, N, K, a, b, out, ldc, beta, Serial{}, epilogue)
             : skinny_gemm(M, N, K, a, b, out, ldc, beta, parallel, epilogue)) {
    return;
  }
  if constexpr (std::is_same_v<T, bfloat16> || std::is_same_v<T, float>) {
    if (const PairKernels* const kernels = pair_kernels();
        kernels && multiplies_parts(M, N, K, a, b, parallel)) {
      return pair_gemm(*kernels, M, N, K, a, b, parallel, StoreSums<Out, Epilogue>{out, ldc, beta, epilogue});
    }
  }
  constexpr int64_t kPackingCost = 16;
  const TileLimits limits{Blocking::template kTileRows<Out>,
                          Blocking::template kTileColumns<Out>,
                          kMicroRows,
                          Blocking::kMicroColumns,
                          1,
                          kPackingCost,
                          kPackingCost};
  for_each_tile(M, N, K, limits, parallel, [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
    multiply_tile(rows, columns, K, Operand<T>{a.data + i * a.row_stride, a.row_stride, a.depth_stride},
                  Operand<T>{b.data + j * b.row_stride, b.row_stride, b.depth_stride}, out + i * ldc + j, ldc,
                  beta, [&](int64_t row, int64_t height) { epilogue(i + row, height, j, columns); });
  });
}

// What does not depend on the epilogue or the threads is compiled once, in gemm.cpp.
#define PYOPS_GEMM_OPERAND(linkage, T)                                                      \
  linkage template void pack_rows(const Operand<T>&, const EvenSplit&, int64_t, acc_t<T>*); \
  linkage template void pack_columns(const Operand<T>&, int64_t, int64_t, acc_t<T>*);
#define PYOPS_GEMM_OUTPUT(linkage, T, Out)                                                                 \
  linkage template void dot_columns(int64_t, int64_t, const Operand<T>&, const Operand<T>&, Out*, int64_t, \
                                    acc_t<T>, int64_t, int64_t);                                           \
  linkage template void add_columns(int64_t, int64_t, const Operand<T>&, const Operand<T>&, Out*, int64_t, \
                                    acc_t<T>, int64_t, int64_t);
#define PYOPS_GEMM_SWEEP(linkage, Acc, Out)                                               \
  linkage template void sweep(const EvenSplit&, int64_t, int64_t, const Acc*, const Acc*, \
                              const Target<Acc, Out>&);
#define PYOPS_GEMM_PARTS(linkage)                \
  PYOPS_GEMM_OPERAND(linkage, float)             \
  PYOPS_GEMM_OPERAND(linkage, double)            \
  PYOPS_GEMM_OPERAND(linkage, bfloat16)          \
  PYOPS_GEMM_OPERAND(linkage, float16)           \
  PYOPS_GEMM_OUTPUT(linkage, float, float)       \
  PYOPS_GEMM_OUTPUT(linkage, double, double)     \
  PYOPS_GEMM_OUTPUT(linkage, bfloat16, bfloat16) \
  PYOPS_GEMM_OUTPUT(linkage, bfloat16, float)    \
  PYOPS_GEMM_OUTPUT(linkage, float16, float16)   \
  PYOPS_GEMM_OUTPUT(linkage, float16, float)     \
  PYOPS_GEMM_SWEEP(linkage, float, float)        \
  PYOPS_GEMM_SWEEP(linkage, double, double)      \
  PYOPS_GEMM_SWEEP(linkage, float, bfloat16)     \
  PYOPS_GEMM_SWEEP(linkage, float, float16)
PYOPS_GEMM_PARTS(extern)

}  // namespace pyops::cpu
