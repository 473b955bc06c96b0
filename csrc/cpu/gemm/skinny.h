// Skinny products for gemm.h: few rows in the output, or few terms in its sums. Packing would take longer
// than the multiplication, so operands are read where they lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/gemm/pack.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

// Rows of the output, or terms of its sums, up to which a product is skinny. Measured on AVX-512, one thread,
// [M, 1024] @ [1024, 4096] in float32: packing takes 4 times as long for M = 1 and 3 times for M = 4.
inline constexpr int kSkinny = 4;

// Elements of b's shorter side that one task takes.
inline constexpr int64_t kSkinnyTask = 256;

// out[i, j] = sum_k a[i, k] b[j, k] for `rows` rows of a and `columns` of b, both contiguous along k.
template <int rows, int columns, class T, class Out>
void dot_rows(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, Out* out,
              int64_t ldc, acc_t<T> beta) {
  using Acc = acc_t<T>;
  Vec<Acc> sum[rows][columns];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) sum[i][j] = Acc(0);
  }
  for_each_vector<Acc>(depth, [&](int64_t k, int lanes) {
    Vec<Acc> right[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) right[j] = load_lanes(b + j * b_stride + k, lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vec<Acc> left = load_lanes(a + i * a_stride + k, lanes);
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  });
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      Out* to = out + i * ldc + j;
      const Acc total = horizontal_sum(sum[i][j]);
      *to = from_acc<Out>(beta == Acc(0) ? total : total + beta * to_acc(*to));
    }
  }
}

// out[i, j] = sum_k a[i, k] b[k, j] for `rows` rows and `vectors` vectors of contiguous columns, of which the
// last has `lanes` lanes.
template <int rows, int vectors, class T, class Out>
void add_rows(int64_t depth, const Operand<T>& a, const Operand<T>& b, Out* out, int64_t ldc, int lanes,
              acc_t<T> beta) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  Vec<Acc> sum[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = Acc(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<Acc> right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      right[j] = load_lanes(b.data + k * b.depth_stride + j * n, j == vectors - 1 ? lanes : n);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vec<Acc> left = to_acc(a.data[i * a.row_stride + k * a.depth_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      Out* to = out + i * ldc + j * n;
      const int count = j == vectors - 1 ? lanes : n;
      Vec<Acc> x = sum[i][j];
      if (beta != Acc(0)) x += load_lanes(to, count) * beta;
      store_lanes(to, x, count);
    }
  }
}

// Calls f(std::integral_constant<int, rows>) for 1 <= rows <= kSkinny.
template <class F>
void with_skinny_rows(int64_t rows, const F& f) {
  switch (rows) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    default:
      return f(std::integral_constant<int, kSkinny>{});
  }
}

// Columns [begin, end) of few rows whose operands are contiguous along k.
template <class T, class Out>
void dot_columns(int64_t M, int64_t K, const Operand<T>& a, const Operand<T>& b, Out* out, int64_t ldc,
                 acc_t<T> beta, int64_t begin, int64_t end) {
  constexpr int kColumns = 4;
  with_skinny_rows(M, [&](auto rows) {
    int64_t j = begin;
    for (; j + kColumns <= end; j += kColumns) {
      dot_rows<rows, kColumns>(K, a.data, a.row_stride, b.data + j * b.row_stride, b.row_stride, out + j, ldc,
                               beta);
    }
    for (; j < end; ++j) {
      dot_rows<rows, 1>(K, a.data, a.row_stride, b.data + j * b.row_stride, b.row_stride, out + j, ldc, beta);
    }
  });
}

// Columns [begin, end) of up to kSkinny rows of the output, b being contiguous along its columns.
template <class T, class Out>
void add_columns(int64_t M, int64_t K, const Operand<T>& a, const Operand<T>& b, Out* out, int64_t ldc,
                 acc_t<T> beta, int64_t begin, int64_t end) {
  constexpr int kVectors = 4, n = Vec<acc_t<T>>::kLanes;
  with_skinny_rows(M, [&](auto rows) {
    int64_t j = begin;
    for (; j + kVectors * n <= end; j += kVectors * n) {
      add_rows<rows, kVectors>(K, a, {b.data + j, b.row_stride, b.depth_stride}, out + j, ldc, n, beta);
    }
    for (; j < end; j += n) {
      add_rows<rows, 1>(K, a, {b.data + j, b.row_stride, b.depth_stride}, out + j, ldc,
                        static_cast<int>(std::min<int64_t>(n, end - j)), beta);
    }
  });
}

// Whether skinny_gemm() does the work.
template <class T>
bool is_skinny(int64_t M, int64_t K, const Operand<T>& a, const Operand<T>& b) {
  if (b.row_stride == 1) return M <= kSkinny || K <= kSkinny;
  return M <= kSkinny && a.depth_stride == 1 && b.depth_stride == 1;
}

// Does gemm()'s work for skinny products and returns true; for all others it does nothing and returns false.
// Every sum is formed in the same order wherever the tasks begin.
template <class T, class Out, class Parallel, class Epilogue>
bool skinny_gemm(int64_t M, int64_t N, int64_t K, const Operand<T>& a, const Operand<T>& b, Out* out,
                 int64_t ldc, acc_t<T> beta, const Parallel& parallel, const Epilogue& epilogue) {
  const auto for_tasks = [&](int64_t count, const auto& body) {
    const auto task = [&](int64_t i) { body(i * kSkinnyTask, std::min(count, (i + 1) * kSkinnyTask)); };
    parallel(ceil_div(count, kSkinnyTask), task);
  };
  if (!is_skinny(M, K, a, b)) return false;
  if (b.row_stride != 1) {
    for_tasks(N, [&](int64_t begin, int64_t end) {
      dot_columns(M, K, a, b, out, ldc, beta, begin, end);
      epilogue(0, M, begin, end - begin);
    });
    return true;
  }
  if (M <= kSkinny) {
    for_tasks(N, [&](int64_t begin, int64_t end) {
      add_columns(M, K, a, b, out, ldc, beta, begin, end);
      epilogue(0, M, begin, end - begin);
    });
    return true;
  }
  for_tasks(M, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kSkinny) {
      const Operand<T> left{a.data + i * a.row_stride, a.row_stride, a.depth_stride};
      add_columns(std::min<int64_t>(kSkinny, end - i), K, left, b, out + i * ldc, ldc, beta, 0, N);
    }
    epilogue(begin, end - begin, 0, N);
  });
  return true;
}

}  // namespace pyops::cpu
