// What the time loops of a recurrent layer, forward.h and backward.h, are made of: the rows of a step, chunks
// of sequences for the threads, prefetches.
//
// A step is a product of the sequences' states and the prepacked weights, and a pass over its result in which
// the cell's formula is applied. Sequences are independent of each other: threads share nothing and never
// wait, and the bits of a sequence do not depend on which others are beside it. State, gates and what is
// carried from step to step are kept in the accumulation type; a product by pairs (cpu/gemm/bf16) rounds the
// state to what the output holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "binding/recurrent.h"
#include "cpu/gemm/bf16/prepacked.h"
#include "cpu/gemm/prepacked.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

// The matrices of a layer: of bfloat16 in pairs where those are multiplied. Calls f(Packed<Matrix>{}).
template <class Matrix_>
struct Packed {
  using Matrix = Matrix_;
};
template <class T, class F>
void with_packed(const F& f) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (pair_kernels()) return f(Packed<PrepackedPairs>{});
  }
  f(Packed<PrepackedMatrix<acc_t<T>>>{});
}

// Weights that lie in the L2 cache and leave most of it to others, in elements.
constexpr int64_t kMostSmallWeights = 32 << 10;

// The rows of a step in [rows, ...] tensors: one for each of its sequences.
struct StepRows {
  int64_t first;
  int64_t count;

  // -1 for a sequence that has not begun, or is over.
  int64_t of(int64_t sequence) const { return sequence < count ? first + sequence : -1; }
};

// The direction of time: what is before and after a step, as the layer sees it.
struct Walk {
  const Sequences& sequences;
  bool reverse;  // of the layer

  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  StepRows rows(int64_t t) const {
    const int64_t count = sequences.count(t);
    return {count > 0 ? sequences.offset(t) : 0, count};
  }
};

// The rows of a sequence at a step, and before and after it; -1 where there is none.
struct StepRow {
  int64_t row;
  int64_t before;
  int64_t after;
};

// Sequences [begin, end) of each of at most `chunks` chunks, with about the same number of rows in each.
inline std::vector<int64_t> chunk_bounds(const Sequences& sequences, int64_t chunks) {
  const int64_t batch = sequences.batch();
  std::vector<int64_t> bounds{0};
  if (sequences.is_dense()) {
    for (int64_t i = 1; i <= chunks; ++i) bounds.push_back(batch * i / chunks);
    return bounds;
  }
  // The length of sequence b is the number of steps that have more than b.
  int64_t length = sequences.steps(), rows = 0;
  for (int64_t b = 0; b < batch; ++b) {
    while (length > 0 && sequences.count(length - 1) <= b) --length;
    rows += length;
    const int64_t done = static_cast<int64_t>(bounds.size());
    if (done < chunks && rows * chunks >= sequences.rows() * done) bounds.push_back(b + 1);
  }
  if (bounds.back() != batch) bounds.push_back(batch);
  return bounds;
}

// As many chunks as keep every thread busy. Long chunks reuse the weights more often; short ones keep their
// sums in the L1 cache.
inline int64_t chunks_for_threads(const Sequences& sequences) {
  constexpr int64_t kMostSequences = 4 * kMicroRows;
  const int64_t batch = sequences.batch(), threads = std::max<int64_t>(ThreadPool{}.threads(), 1);
  return std::min(batch, threads * ceil_div(batch, threads * kMostSequences));
}

// Calls loop(i, begin, end) for every chunk.
template <class Loop>
void run_chunks(const std::vector<int64_t>& bounds, const Loop& loop) {
  ThreadPool{}(static_cast<int64_t>(bounds.size()) - 1,
               [&](int64_t i) { loop(i, bounds[i], bounds[i + 1]); });
}

// At each step the loops begin to load what the next step touches: its rows lie far away, where the hardware
// does not look ahead, and a step of a small layer ends before memory could answer. They load into the L2
// cache, because the L1 cache holds the weights. Inlined by force: GCC removes a call that only prefetches.
template <class T>
PYOPS_HD void fetch(const T* from) {
  __builtin_prefetch(from, 0, 2);
}
template <class T>
PYOPS_HD void fetch_to_write(const T* to) {
  __builtin_prefetch(to, 1, 2);
}
template <class T>
PYOPS_HD void fetch_all(const T* from, int64_t count) {
  for (int64_t j = 0; j < count; j += 64 / sizeof(T)) fetch(from + j);
}

// The memory that packed rows of the step's products need, one product at a time.
template <class Matrix>
int64_t packed_rows_size(int64_t rows, const Matrix& weights, const Matrix* input_weights) {
  return std::max(weights.packed_rows_size(rows), input_weights ? input_weights->packed_rows_size(rows) : 0);
}

}  // namespace pyops::cpu
