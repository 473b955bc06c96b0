// The time loop of a recurrent layer on one thread, for some of the sequences; backward.h is the
// one backward.
//
// A step is a product of the sequences' states and the resident weights, and a pass over its result in which
// the cell's formula is applied. Sequences are independent of each other: threads share nothing and never
// wait, and the bits of a sequence do not depend on which others are beside it. State, gates and what is
// carried from step to step are kept in the accumulation type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "binding/recurrent.h"
#include "cpu/gemm/prepacked.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace pyops::cpu {

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

// As many chunks as keep every thread busy. More sequences at once reuse the weights more often, fewer keep
// their sums in the L1 cache.
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

// Loops begin to load at a step what the next one touches: its rows lie far from these, where the hardware
// does not look ahead, and steps of small layers are over before memory could answer. To the L2 cache: the L1
// cache holds the weights. Inlined by force, for GCC takes a call that only prefetches for one without
// effect.
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

// The calling thread's memory for what a chunk carries from step to step.
class LoopMemory;

template <class T>
struct ForwardTensors {
  // [rows, gates]: the input's share of the gates, without bias; or the input, [rows, I].
  const T* x;
  T* gates;      // [rows, gates]: activated, or null
  T* extra;      // [rows, H], or null
  T* output;     // [rows, H]
  T* h_n;        // [N, H]
  T* c_n;        // [N, H] of an LSTM
  const T* h_0;  // [N, H]
  const T* c_0;  // [N, H] of an LSTM
  const acc_t<T>*
      bias;  // [gates + H]: the sum of both, of a split one first the input's and then the state's
};

template <class T, class Cell>
class ForwardLoop {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

  // With `input_weights` the input's share is formed here, step by step, from the input itself.
  ForwardLoop(const ForwardTensors<T>& tensors, const ResidentMatrix<Acc>& weights,
              const ResidentMatrix<Acc>* input_weights, const Walk& walk, int64_t hidden)
      : at_(tensors), weights_(weights), input_weights_(input_weights), walk_(walk), hidden_(hidden) {}

  void operator()(int64_t, int64_t begin, int64_t end) const {
    const int64_t rows = end - begin, steps = walk_.sequences.steps(), columns = weights_.columns();
    const int64_t state = round_up(rows * hidden_, 16), sums = round_up(rows * columns, 16);
    int64_t scratch_size = weights_.scratch_size(rows);
    if (input_weights_) scratch_size = std::max(scratch_size, input_weights_->scratch_size(rows));
    scratch_size = round_up(scratch_size, 16);
    Acc* const h = static_cast<Acc*>(
        workspace<LoopMemory>((2 * state + (input_weights_ ? 2 : 1) * sums + scratch_size) * sizeof(Acc)));
    Acc *const c = h + state, *const scratch = c + state, *const sum = scratch + scratch_size;
    widen(at_.h_0 + begin * hidden_, rows * hidden_, h);
    if (Cell::kHasCell) widen(at_.c_0 + begin * hidden_, rows * hidden_, c);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = walk_.reverse ? steps - 1 - i : i;
      const StepRows now = walk_.rows(t), before = walk_.rows(walk_.before(t));
      const StepRows after = walk_.rows(walk_.after(t));
      const int64_t active = std::min(now.count - begin, rows);
      if (active <= 0) continue;
      weights_.multiply(active, Operand<Acc>{h, hidden_, 1}, sum, columns, scratch);
      const auto apply = [&](const auto* x) {
        for (int64_t b = 0; b < active; ++b) {
          const int64_t sequence = begin + b;
          const StepRow at{now.of(sequence), before.of(sequence), after.of(sequence)};
          step(at, sequence, x + b * columns, sum + b * columns, h + b * hidden_, c + b * hidden_);
        }
      };
      const int64_t first = now.first + begin;
      if (input_weights_) {
        const int64_t inputs = input_weights_->depth();
        const Operand<T> x{at_.x + first * inputs, inputs, 1};
        const int64_t next = after.of(begin);
        if (next >= 0) fetch_all(at_.x + next * inputs, active * inputs);
        input_weights_->multiply(active, x, sum + sums, columns, scratch);
        apply(sum + sums);
      } else {
        apply(at_.x + first * columns);
      }
    }
    if (!Cell::kHasCell) return;
    for_each_vector<Acc>(rows * hidden_, [&](int64_t j, int lanes) {
      store_lanes(at_.c_n + begin * hidden_ + j, load_lanes(c + j, lanes), lanes);
    });
  }

 private:
  static void widen(const T* from, int64_t count, Acc* to) {
    for_each_vector<Acc>(
        count, [&](int64_t j, int lanes) { store_lanes(to + j, load_lanes(from + j, lanes), lanes); });
  }

  // What the next step writes.
  PYOPS_HD void fetch_results(int64_t row, int64_t u) const {
    fetch_to_write(at_.output + row * hidden_ + u);
    if (!Cell::kSavesGates || at_.gates == nullptr) return;
    PYOPS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) fetch_to_write(at_.gates + (row * Cell::kGates + g) * hidden_ + u);
    fetch_to_write(at_.extra + row * hidden_ + u);
  }

  template <class X>
  void step(const StepRow& at, int64_t sequence, const X* from_input, const Acc* sums, Acc* h, Acc* c) const {
    constexpr int kGates = Cell::kGates;
    const int64_t columns = kGates * hidden_;
    for_each_vector<Acc>(hidden_, [&](int64_t u, int lanes) {
      V x[kGates], s[kGates];
      PYOPS_UNROLL
      for (int g = 0; g < kGates; ++g) {
        const int64_t column = g * hidden_ + u;
        x[g] = load_lanes(from_input + column, lanes) + load_lanes(at_.bias + column, lanes);
        s[g] = load_lanes(sums + column, lanes);
      }
      if (Cell::kSplitsBias) s[kGates - 1] += load_lanes(at_.bias + columns + u, lanes);
      const V c_before = Cell::kHasCell ? load_lanes(c + u, lanes) : V(Acc(0));
      if (at.after >= 0) fetch_results(at.after, u);
      const auto now = Cell::forward(x, s, load_lanes(h + u, lanes), c_before);
      store_lanes(h + u, now.h, lanes);
      if (Cell::kHasCell) store_lanes(c + u, now.extra, lanes);
      store_lanes(at_.output + at.row * hidden_ + u, now.h, lanes);
      if (at.after < 0) store_lanes(at_.h_n + sequence * hidden_ + u, now.h, lanes);
      if (!Cell::kSavesGates || at_.gates == nullptr) return;
      PYOPS_UNROLL
      for (int g = 0; g < kGates; ++g) {
        store_lanes(at_.gates + at.row * columns + g * hidden_ + u, now.gates_[g], lanes);
      }
      store_lanes(at_.extra + at.row * hidden_ + u, now.extra, lanes);
    });
  }

  const ForwardTensors<T> at_;
  const ResidentMatrix<Acc>& weights_;
  const ResidentMatrix<Acc>* const input_weights_;
  const Walk walk_;
  const int64_t hidden_;
};

}  // namespace pyops::cpu
