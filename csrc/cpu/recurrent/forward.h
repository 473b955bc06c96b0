// The time loop of a recurrent layer forward, on one thread, for some of the sequences.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/recurrent/steps.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace pyops::cpu {

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
  // [gates + H]: the sum of both biases; where the last gate's are apart, the input's and then the state's.
  const acc_t<T>* bias;
};

template <class T, class Cell, class Matrix>
class ForwardLoop {
 public:
  using Acc = acc_t<T>;
  using Input = typename Matrix::Input;
  using V = Vec<Acc>;

  // With `input_weights` the input's share is formed here, step by step, from the input itself.
  ForwardLoop(const ForwardTensors<T>& tensors, const Matrix& weights, const Matrix* input_weights,
              const Walk& walk, int64_t hidden)
      : at_(tensors), weights_(weights), input_weights_(input_weights), walk_(walk), hidden_(hidden) {}

  void operator()(int64_t, int64_t begin, int64_t end) const {
    const int64_t rows = end - begin, steps = walk_.sequences.steps(), columns = weights_.columns();
    Scratch scratch;
    Acc* const h = scratch.take<Acc>(rows * hidden_);
    Acc* const c = scratch.take<Acc>(rows * hidden_);
    Acc* const packed = scratch.take<Acc>(packed_rows_size(rows, weights_, input_weights_));
    Acc* const from_state = scratch.take<Acc>(rows * columns);
    Acc* const from_input = input_weights_ ? scratch.take<Acc>(rows * columns) : nullptr;
    widen(at_.h_0 + begin * hidden_, rows * hidden_, h);
    // What the product reads: the state, or the state rounded, with rows that begin at a cache line.
    const int64_t stride = kRounds ? round_up(hidden_, 64 / sizeof(Input)) : hidden_;
    Input* const rounded = scratch.take<Input>(kRounds ? rows * stride : 0);
    const Input* state = rounded;
    if constexpr (kRounds) {
      for (int64_t b = 0; b < rows; ++b) {
        std::copy_n(at_.h_0 + (begin + b) * hidden_, hidden_, rounded + b * stride);
      }
    } else {
      state = h;
    }
    if (Cell::kHasCell) widen(at_.c_0 + begin * hidden_, rows * hidden_, c);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = walk_.reverse ? steps - 1 - i : i;
      const StepRows now = walk_.rows(t), before = walk_.rows(walk_.before(t));
      const StepRows after = walk_.rows(walk_.after(t));
      const int64_t active = std::min(now.count - begin, rows);
      if (active <= 0) continue;
      weights_.multiply(active, Operand<Input>{state, stride, 1}, from_state, columns, packed);
      const auto apply = [&](const auto* x) {
        for (int64_t b = 0; b < active; ++b) {
          const int64_t sequence = begin + b;
          const StepRow at{now.of(sequence), before.of(sequence), after.of(sequence)};
          step(at, sequence, x + b * columns, from_state + b * columns, h + b * hidden_, rounded + b * stride,
               c + b * hidden_);
        }
      };
      const int64_t first = now.first + begin;
      if (input_weights_) {
        const int64_t inputs = input_weights_->depth();
        const Operand<T> x{at_.x + first * inputs, inputs, 1};
        const int64_t next = after.of(begin);
        if (next >= 0) fetch_all(at_.x + next * inputs, active * inputs);
        input_weights_->multiply(active, x, from_input, columns, packed);
        apply(from_input);
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
  static constexpr bool kRounds = !std::is_same_v<Input, Acc>;

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
  void step(const StepRow& at, int64_t sequence, const X* from_input, const Acc* sums, Acc* h, Input* rounded,
            Acc* c) const {
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
      if constexpr (kRounds) store_lanes(rounded + u, now.h, lanes);
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
  const Matrix& weights_;
  const Matrix* const input_weights_;
  const Walk walk_;
  const int64_t hidden_;
};

}  // namespace pyops::cpu
