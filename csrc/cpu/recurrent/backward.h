// The time loop of a recurrent layer backward, on one thread, for some of the sequences.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/recurrent/steps.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace pyops::cpu {

// The columns of a row of gate gradients d, in blocks of H: the state's shares lie at [0, kGates), the
// input's at [kShift, kShift + kGates), so both are operands of one product. They differ in the GRU, whose
// last gate has two gradients; its blocks are n of the state, r, z, n of the input.
template <class Cell>
struct GradientBlocks {
  static constexpr int kShift = Cell::kGradients - Cell::kGates;
  // The block of derivative g in the cell's order, which has the state's shares first.
  static constexpr int of(int g) { return g < Cell::kGates ? (g + kShift) % Cell::kGates : g; }
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
  T* grad_input;  // may be null, as the next two
  T* grad_h_0;
  T* grad_c_0;
};

template <class T, class Cell, class Matrix>
class BackwardLoop {
 public:
  using Acc = acc_t<T>;
  using Input = typename Matrix::Input;
  using V = Vec<Acc>;
  using Blocks = GradientBlocks<Cell>;

  // `weights` [gates, H] multiply the state's shares of the gates' gradients; with `input_weights` [gates, I]
  // the gradient of the input is formed here, step by step.
  BackwardLoop(const BackwardTensors<T>& tensors, const Matrix& weights, const Matrix* input_weights,
               const Walk& walk, int64_t hidden)
      : at_(tensors), weights_(weights), input_weights_(input_weights), walk_(walk), hidden_(hidden) {}

  // Writes the gradients of the gates' arguments [active, gradients] of the sequences from `begin` on that
  // are active at step t to rows_for(t, active). These rows must stay until the next call.
  template <class RowsFor>
  void run(int64_t begin, int64_t end, const RowsFor& rows_for) const {
    const int64_t rows = end - begin, steps = walk_.sequences.steps(), width = Cell::kGradients * hidden_;
    const Memory memory(*this, rows);
    // The state's shares at the step after this one, of the sequences that have one.
    Operand<Input> latest{memory.latest, Cell::kGates * hidden_, 1};
    int64_t running = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = walk_.reverse ? i : steps - 1 - i;
      const StepRows now = walk_.rows(t), before = walk_.rows(walk_.before(t));
      const StepRows after = walk_.rows(walk_.after(t));
      const StepRows twice_before = walk_.rows(walk_.before(walk_.before(t)));
      const int64_t active = std::min(now.count - begin, rows);
      if (active <= 0) continue;
      if (running > 0) weights_.multiply(running, latest, memory.sum, hidden_, memory.packed);
      // Going back through a reversed layer, the longest sequences begin last.
      if (active < running) store_state_gradients(begin, active, running, memory);
      T* const to = rows_for(t, active);
      T* grad_input = nullptr;
      if (input_weights_) {
        grad_input = at_.grad_input + (now.first + begin) * input_weights_->columns();
        fetch_all(grad_input, active * input_weights_->columns());
      }
      for (int64_t b = 0; b < active; ++b) {
        const int64_t sequence = begin + b;
        const StepRow at{now.of(sequence), before.of(sequence), after.of(sequence)};
        step(at, twice_before.of(sequence), sequence, memory.sum + b * hidden_, to + b * width,
             memory.latest + b * Cell::kGates * hidden_, memory.carry + b * hidden_);
      }
      if constexpr (kDirect) latest = {to, width, 1};
      running = active;
      if (input_weights_) input_gradient(active, to, grad_input, memory);
    }
    if (at_.grad_h_0 == nullptr) return;
    weights_.multiply(running, latest, memory.sum, hidden_, memory.packed);
    store_state_gradients(begin, 0, running, memory);
  }

 private:
  static constexpr bool kCarriesState = Cell::kSplitsBias;   // the GRU's h goes into the next one directly
  static constexpr bool kDirect = std::is_same_v<T, Input>;  // d itself goes into the next product
  static constexpr bool kSame = std::is_same_v<T, Acc>;

  // What the loop carries from step to step.
  struct Memory {
    Memory(const BackwardLoop& loop, int64_t rows) {
      const int64_t inputs = loop.input_weights_ ? loop.input_weights_->columns() : 0;
      latest = scratch.take<Input>(kDirect ? 0 : rows * Cell::kGates * loop.hidden_);
      sum = scratch.take<Acc>(rows * loop.hidden_);
      carry = scratch.take<Acc>(rows * loop.hidden_);
      dx = scratch.take<Acc>(kSame ? 0 : rows * inputs);
      packed = scratch.take<Acc>(packed_rows_size(rows, loop.weights_, loop.input_weights_));
    }

    Scratch scratch;
    Input* latest;  // the state's shares, where d is narrower
    Acc* sum;
    Acc* carry;
    Acc* dx;      // of the input, where that is narrower
    Acc* packed;  // rows of a product
  };

  // Of the sequences [begin + first, begin + last): the latest step was their first.
  void store_state_gradients(int64_t begin, int64_t first, int64_t last, const Memory& memory) const {
    if (at_.grad_h_0 == nullptr) return;
    const int64_t from = first * hidden_, to = (begin + first) * hidden_;
    for_each_vector<Acc>((last - first) * hidden_, [&](int64_t j, int lanes) {
      V dh = load_lanes(memory.sum + from + j, lanes);
      if (kCarriesState) dh += load_lanes(memory.carry + from + j, lanes);
      store_lanes(at_.grad_h_0 + to + j, dh, lanes);
      if (Cell::kHasCell) {
        store_lanes(at_.grad_c_0 + to + j, load_lanes(memory.carry + from + j, lanes), lanes);
      }
    });
  }

  // What the next step, `row`, reads for the first time; `before` is the row before it in time, or -1.
  PYOPS_HD void fetch_step(int64_t row, int64_t before, int64_t u) const {
    if (at_.grad_output) fetch(at_.grad_output + row * hidden_ + u);
    if (!Cell::kSavesGates) return fetch(at_.output + row * hidden_ + u);
    PYOPS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) fetch(at_.gates + (row * Cell::kGates + g) * hidden_ + u);
    if (!Cell::kHasCell) fetch(at_.extra + row * hidden_ + u);
    if (before < 0) return;
    fetch(at_.output + before * hidden_ + u);
    if (Cell::kHasCell) fetch(at_.extra + before * hidden_ + u);
  }

  static V load_or_zero(const T* from, int64_t index, int lanes) {
    return from == nullptr ? V(Acc(0)) : load_lanes(from + index, lanes);
  }

  // [rows, I] = the input's shares of d @ weight_ih.
  void input_gradient(int64_t rows, const T* d, T* to, const Memory& memory) const {
    const Operand<T> shares{d + Blocks::kShift * hidden_, Cell::kGradients * hidden_, 1};
    const int64_t inputs = input_weights_->columns();
    if constexpr (kSame) {
      input_weights_->multiply(rows, shares, to, inputs, memory.packed);
    } else {
      input_weights_->multiply(rows, shares, memory.dx, inputs, memory.packed);
      for_each_vector<Acc>(rows * inputs, [&](int64_t j, int lanes) {
        store_lanes(to + j, load_lanes(memory.dx + j, lanes), lanes);
      });
    }
  }

  // `twice_before`: the row before the one before, or -1.
  void step(const StepRow& at, int64_t twice_before, int64_t sequence, const Acc* sums, T* d, Input* latest,
            Acc* carry) const {
    constexpr int kGates = Cell::kGates, kGradients = Cell::kGradients;
    const int64_t begin = sequence * hidden_;
    const T* const h_before = at.before < 0 ? at_.h_0 + begin : at_.output + at.before * hidden_;
    const T* c_before = nullptr;
    if (Cell::kHasCell) c_before = at.before < 0 ? at_.c_0 + begin : at_.extra + at.before * hidden_;
    for_each_vector<Acc>(hidden_, [&](int64_t u, int lanes) {
      V dh = load_or_zero(at_.grad_output, at.row * hidden_ + u, lanes), dc = Acc(0);
      if (at.after < 0) {
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
      if (at.before >= 0) fetch_step(at.before, twice_before, u);
      const auto found = Cell::backward(dh, dc, gates, extra, load_lanes(h_before + u, lanes), c,
                                        load_lanes(at_.output + at.row * hidden_ + u, lanes));
      PYOPS_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        store_lanes(d + Blocks::of(g) * hidden_ + u, found.d[g], lanes);
        if (!kDirect && g < kGates) store_lanes(latest + Blocks::of(g) * hidden_ + u, found.d[g], lanes);
      }
      if (Cell::kHasCell) store_lanes(carry + u, found.dc, lanes);
      if (kCarriesState) store_lanes(carry + u, found.dh, lanes);
    });
  }

  const BackwardTensors<T> at_;
  const Matrix& weights_;
  const Matrix* const input_weights_;  // null: no gradient of the input here
  const Walk walk_;
  const int64_t hidden_;
};

}  // namespace pyops::cpu
