// The epilogue of row.h over the rows of a matrix [M, N] with one bias per column:
//
//   output = dropout(activation(z)), z = sums + bias,   dz = grad * mask * activation',   dbias = column sums
//
// Forward takes blocks, as an epilogue of cpu/gemm/gemm.h while they are in cache; backward all rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/integers.h"
#include "cpu/epilogue/row.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/math.h"
#include "math/activation.h"

namespace pyops::cpu {

// An epilogue of gemm() whose work is chosen at run time, so that gemm() is compiled once for all of them.
// The sums of the block are `ld` apart from row to row; they may lie in the output.
template <class Acc>
using MatrixEpilogue = std::function<void(const Acc* sums, int64_t ld, int64_t row, int64_t rows,
                                          int64_t column, int64_t columns)>;

template <class T, class Activation>
struct ForwardEpilogue {
  const acc_t<T>* bias;
  T* saved;  // z, if not null
  T* output;
  int64_t N;
  Activation activation;
  const int64_t* seed;  // null: no dropout
  double p;

  void operator()(const acc_t<T>* sums, int64_t ld, int64_t row, int64_t rows, int64_t column,
                  int64_t columns) const {
    using Acc = acc_t<T>;
    DropoutMask<Acc> mask(seed, p);
    const RowBias<Acc> shift = RowBias<Acc>::per_element(bias).from(column);
    const T* const no_residual = nullptr;
    for (int64_t i = row; i < row + rows; ++i) {
      const int64_t at = i * N + column;
      epilogue_forward(activation, mask, sums + (i - row) * ld, shift, no_residual, output + at,
                       saved ? saved + at : nullptr, columns, at);
    }
  }
};

// Calls add(begin, end, sums) for blocks of the rows of [M, N], which adds the rows to N sums, and writes the
// total. Blocks are cut by M and N alone and their sums merged in order. With `total` null there are no sums.
template <class T, class F>
void sum_rows(int64_t M, int64_t N, T* total, const F& add) {
  using Acc = acc_t<T>;
  constexpr int64_t kMinRows = 16, kMaxBlocks = 64;
  if (N == 0) return;
  const int64_t height = std::max({kMinRows, cost::kBlockElements / N, M / kMaxBlocks + 1});
  const int64_t blocks = ceil_div(M, height);
  std::vector<Acc> sums(total ? std::max<int64_t>(blocks, 1) * N : 0);
  parallel_for(blocks, height * N, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      add(b * height, std::min(M, (b + 1) * height), total ? sums.data() + b * N : nullptr);
    }
  });
  if (total == nullptr) return;
  for_each_vector<Acc>(N, [&](int64_t j, int lanes) {
    Vec<Acc> sum = load_lanes(sums.data() + j, lanes);
    for (int64_t b = 1; b < blocks; ++b) sum += load_lanes(sums.data() + b * N + j, lanes);
    store_lanes(total + j, sum, lanes);
  });
}

// The column sums of grad [M, N] alone.
template <class T>
void column_sums(const T* grad, int64_t M, int64_t N, T* total) {
  using Acc = acc_t<T>;
  sum_rows(M, N, total, [&](int64_t begin, int64_t end, Acc* sums) {
    for (const T* row = grad + begin * N; row < grad + end * N; row += N) {
      for_each_vector<Acc>(N, [&](int64_t j, int lanes) {
        store_lanes(sums + j, load_lanes(sums + j, lanes) + load_lanes(row + j, lanes), lanes);
      });
    }
  });
}

}  // namespace pyops::cpu
