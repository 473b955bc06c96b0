// The time loop of a recurrent layer on one thread, for some of the sequences.
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

#include "../binding/recurrent.h"
#include "gemm_resident.h"
#include "parallel.h"
#include "rows.h"
#include "vec_math.h"

namespace pyops::cpu {

// What a sequence is at a step: its row in [rows, ...] tensors, and the rows before and after it in time.
struct StepRow {
  int64_t row;
  int64_t before;  // -1 at the beginning of the sequence
  bool is_last;    // of the sequence
};

// The direction of time: step i of the loop is time time(i).
struct Walk {
  const Sequences& sequences;
  bool reverse;  // of the layer

  StepRow at(int64_t t, int64_t b) const {
    const int64_t before = reverse ? t + 1 : t - 1, after = reverse ? t - 1 : t + 1;
    return {sequences.offset(t) + b, b < sequences.count(before) ? sequences.offset(before) + b : -1,
            b >= sequences.count(after)};
  }
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
      const int64_t active = std::min(walk_.sequences.count(t) - begin, rows);
      if (active <= 0) continue;
      weights_.multiply(active, h, hidden_, sum, columns, scratch);
      const auto apply = [&](const auto* x) {
        for (int64_t b = 0; b < active; ++b) {
          step(walk_.at(t, begin + b), begin + b, x + b * columns, sum + b * columns, h + b * hidden_,
               c + b * hidden_);
        }
      };
      const int64_t first = walk_.sequences.offset(t) + begin;
      if (input_weights_) {
        const int64_t inputs = input_weights_->depth();
        input_weights_->multiply(active, at_.x + first * inputs, inputs, sum + sums, columns, scratch);
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
      const auto now = Cell::forward(x, s, load_lanes(h + u, lanes), c_before);
      store_lanes(h + u, now.h, lanes);
      if (Cell::kHasCell) store_lanes(c + u, now.extra, lanes);
      store_lanes(at_.output + at.row * hidden_ + u, now.h, lanes);
      if (at.is_last) store_lanes(at_.h_n + sequence * hidden_ + u, now.h, lanes);
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

template <class T>
struct BackwardTensors {
  const T* grad_output;  // may be null, as the next two
  const T* grad_h_n;
  const T* grad_c_n;
  const T* gates;
  const T* extra;
  const T* output;
  const T* h_0;
  const T* c_0;
  T* grad_h_0;  // may be null, as the next
  T* grad_c_0;
};

template <class T, class Cell>
class BackwardLoop {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

  // `weights` are transposed: they multiply the gradients of the state's shares of the gates.
  BackwardLoop(const BackwardTensors<T>& tensors, const ResidentMatrix<Acc>& weights, const Walk& walk,
               int64_t hidden)
      : at_(tensors), weights_(weights), walk_(walk), hidden_(hidden) {}

  // Writes the gradients of the gates' arguments [*, gradients]: those of sequence `begin` at step t to row
  // first_row(t) of `d`, those of the sequences behind it to the rows below.
  template <class FirstRow>
  void run(int64_t begin, int64_t end, T* d, const FirstRow& first_row) const {
    const int64_t rows = end - begin, steps = walk_.sequences.steps(), columns = Cell::kGates * hidden_;
    const int64_t state = round_up(rows * hidden_, 16), all = round_up(rows * columns, 16);
    Acc* const now = static_cast<Acc*>(
        workspace<LoopMemory>((all + 2 * state + weights_.scratch_size(rows)) * sizeof(Acc)));
    Acc *const sum = now + all, *const carry = sum + state, *const scratch = carry + state;
    int64_t running = 0;  // sequences that have a gradient from the step after this one
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = walk_.reverse ? i : steps - 1 - i;
      const int64_t active = std::min(walk_.sequences.count(t) - begin, rows);
      if (active <= 0) continue;
      running = std::min(running, active);
      if (running > 0) weights_.multiply(running, now, columns, sum, hidden_, scratch);
      T* const to = d + first_row(t) * Cell::kGradients * hidden_;
      for (int64_t b = 0; b < active; ++b) {
        step(walk_.at(t, begin + b), begin + b, sum + b * hidden_, to + b * Cell::kGradients * hidden_,
             now + b * columns, carry + b * hidden_);
      }
      running = active;
    }
    if (at_.grad_h_0 == nullptr) return;
    weights_.multiply(rows, now, columns, sum, hidden_, scratch);
    for_each_vector<Acc>(rows * hidden_, [&](int64_t j, int lanes) {
      V dh = load_lanes(sum + j, lanes);
      if (kCarriesState) dh += load_lanes(carry + j, lanes);
      store_lanes(at_.grad_h_0 + begin * hidden_ + j, dh, lanes);
      if (Cell::kHasCell) {
        store_lanes(at_.grad_c_0 + begin * hidden_ + j, load_lanes(carry + j, lanes), lanes);
      }
    });
  }

 private:
  static constexpr bool kCarriesState = Cell::kSplitsBias;  // the GRU's h goes into the next one directly

  static V load_or_zero(const T* from, int64_t index, int lanes) {
    return from == nullptr ? V(Acc(0)) : load_lanes(from + index, lanes);
  }

  void step(const StepRow& at, int64_t sequence, const Acc* sums, T* d, Acc* now, Acc* carry) const {
    constexpr int kGates = Cell::kGates, kGradients = Cell::kGradients;
    const int64_t begin = sequence * hidden_;
    const T* const h_before = at.before < 0 ? at_.h_0 + begin : at_.output + at.before * hidden_;
    const T* c_before = nullptr;
    if (Cell::kHasCell) c_before = at.before < 0 ? at_.c_0 + begin : at_.extra + at.before * hidden_;
    for_each_vector<Acc>(hidden_, [&](int64_t u, int lanes) {
      V dh = load_or_zero(at_.grad_output, at.row * hidden_ + u, lanes), dc = Acc(0);
      if (at.is_last) {
        dh += load_or_zero(at_.grad_h_n, begin + u, lanes);
        if (Cell::kHasCell) dc = load_or_zero(at_.grad_c_n, begin + u, lanes);
      } else {
        dh += load_lanes(sums + u, lanes);
        if (kCarriesState) dh += load_lanes(carry + u, lanes);
        if (Cell::kHasCell) dc = load_lanes(carry + u, lanes);
      }
      V gates[kGates], extra = Acc(0);
      if (Cell::kSavesGates) {
        PYOPS_UNROLL
        for (int g = 0; g < kGates; ++g) {
          gates[g] = load_lanes(at_.gates + (at.row * kGates + g) * hidden_ + u, lanes);
        }
        extra = load_lanes(at_.extra + at.row * hidden_ + u, lanes);
      }
      const V c = Cell::kHasCell ? load_lanes(c_before + u, lanes) : V(Acc(0));
      const auto found = Cell::backward(dh, dc, gates, extra, load_lanes(h_before + u, lanes), c,
                                        load_lanes(at_.output + at.row * hidden_ + u, lanes));
      // The state's shares come first.
      PYOPS_UNROLL
      for (int g = 0; g < kGradients; ++g) store_lanes(d + g * hidden_ + u, found.d[g], lanes);
      PYOPS_UNROLL
      for (int g = 0; g < kGates; ++g) store_lanes(now + g * hidden_ + u, found.d[g], lanes);
      if (Cell::kHasCell) store_lanes(carry + u, found.dc, lanes);
      if (kCarriesState) store_lanes(carry + u, found.dh, lanes);
    });
  }

  const BackwardTensors<T> at_;
  const ResidentMatrix<Acc>& weights_;
  const Walk walk_;
  const int64_t hidden_;
};

// The states before step t of the sequences [begin, end), one after the other.
template <class T>
void gather_states(const Walk& walk, int64_t t, int64_t begin, int64_t end, const T* output, const T* h_0,
                   int64_t hidden, T* to) {
  for (int64_t b = begin; b < std::min(end, walk.sequences.count(t)); ++b, to += hidden) {
    const int64_t before = walk.at(t, b).before;
    memcpy(to, before < 0 ? h_0 + b * hidden : output + before * hidden, hidden * sizeof(T));
  }
}

}  // namespace pyops::cpu
