// What follows the time loop backward: gradients of parameters and input, from the gradients of the gates'
// arguments, d [rows, gradients].
//
// Of a GRU the columns of d are r, z, n as the state has its share in them, then n as the input has; of other
// cells the shares are the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "recurrent_steps.h"

namespace pyops::cpu {

// One product for the columns of d that input and state share, one for the input's own.
template <class F>
void for_input_columns(const RecurrentShape& s, const F& f) {
  const int64_t joint = s.gradients > s.gates ? s.gates - s.hidden : s.gates;
  f(0, 0, joint);
  if (joint < s.gates) f(joint, s.gates, s.hidden);
}

// [rows, I] = the input's columns of d @ weight_ih [gates, I].
template <class T, class Parallel>
void input_gradient(const RecurrentShape& s, int64_t rows, const T* d, const T* weight_ih, T* to,
                    const Parallel& parallel) {
  for_input_columns(s, [&](int64_t gate, int64_t column, int64_t count) {
    gemm(rows, s.inputs, count, Operand<T>{d + column, s.gradients, 1},
         Operand<T>{weight_ih + gate * s.inputs, 1, s.inputs}, to, s.inputs, acc_t<T>(gate == 0 ? 0 : 1),
         parallel);
  });
}

// [gates, I] and [gates, H]: d.t() @ input and d.t() @ states.
template <class T, class Out, class Parallel>
void weight_gradients(const RecurrentShape& s, int64_t rows, const T* d, const T* input, const T* states,
                      Out* weight_ih, Out* weight_hh, const Parallel& parallel) {
  for_input_columns(s, [&](int64_t gate, int64_t column, int64_t count) {
    gemm(count, s.inputs, rows, Operand<T>{d + column, 1, s.gradients}, Operand<T>{input, 1, s.inputs},
         weight_ih + gate * s.inputs, s.inputs, acc_t<T>(0), parallel);
  });
  gemm(s.gates, s.hidden, rows, Operand<T>{d, 1, s.gradients}, Operand<T>{states, 1, s.hidden}, weight_hh,
       s.hidden, acc_t<T>(0), parallel);
}

// Both biases' gradients from the column sums of d.
template <class T, class Sum>
void bias_gradients(const RecurrentShape& s, const Sum* sums, T* bias_ih, T* bias_hh) {
  for (int64_t j = 0; j < s.gates; ++j) bias_hh[j] = from_acc<T>(to_acc(sums[j]));
  for_input_columns(s, [&](int64_t gate, int64_t column, int64_t count) {
    for (int64_t j = 0; j < count; ++j) bias_ih[gate + j] = from_acc<T>(to_acc(sums[column + j]));
  });
}

// ---- small layers ---------------------------------------------------------------------------------------

// Small weights and many sequences: the products then read as much memory as the loop, and a chunk does its
// share of them while its gate gradients are in the L2 cache; they never leave it. Chunks are cut by the
// problem, because their shares of the weights' gradients are summed up, in order. Zero: not such a layer.
template <class T>
int64_t local_chunks(const RecurrentShape& s) {
  constexpr int64_t kMostWeights = 32 << 10, kCache = 512 << 10, kFewestChunks = 8, kFewestSequences = 8;
  if ((s.inputs + s.hidden) * s.gates > kMostWeights || s.inputs == 0) return 0;
  const int64_t row = (s.gradients + 2 * s.inputs + s.hidden) * static_cast<int64_t>(sizeof(acc_t<T>));
  const int64_t chunks = std::max(ceil_div(s.sequences.rows() * row, kCache), kFewestChunks);
  return s.sequences.batch() >= chunks * kFewestSequences ? chunks : 0;
}

// The share of one chunk: its gate gradients, then its sums.
template <class T, class Cell>
class LocalBackward {
 public:
  using Acc = acc_t<T>;

  LocalBackward(const BackwardLoop<T, Cell>& loop, const BackwardTensors<T>& tensors, const Walk& walk,
                const RecurrentShape& shape, const T* input, const T* weight_ih, T* grad_input, Acc* shares)
      : loop_(loop),
        at_(tensors),
        walk_(walk),
        shape_(shape),
        input_(input),
        weight_ih_(weight_ih),
        grad_input_(grad_input),
        shares_(shares) {}

  // Numbers of a chunk's share: gradients of both weights, then the column sums of d.
  static int64_t share_size(const RecurrentShape& s) { return s.gates * (s.inputs + s.hidden) + s.gradients; }

  void operator()(int64_t chunk, int64_t begin, int64_t end) const {
    const RecurrentShape& s = shape_;
    const Sequences own = s.sequences.part(begin, end);
    const int64_t rows = own.rows();
    T* const d =
        static_cast<T*>(workspace<LocalBackward>(rows * (s.gradients + 2 * s.inputs + s.hidden) * sizeof(T)));
    T *const states = d + rows * s.gradients, *const x = states + rows * s.hidden;
    T* const dx = x + rows * s.inputs;
    loop_.run(begin, end, d, [&](int64_t t) { return own.offset(t); });
    if (grad_input_) input_gradient(s, rows, d, weight_ih_, dx, Serial{});
    for (int64_t t = 0; t < own.steps(); ++t) {
      const int64_t from = (s.sequences.offset(t) + begin) * s.inputs, to = own.offset(t) * s.inputs;
      const size_t bytes = own.count(t) * s.inputs * sizeof(T);
      if (grad_input_) memcpy(grad_input_ + from, dx + to, bytes);
      if (!shares_) continue;
      memcpy(x + to, input_ + from, bytes);
      gather_states(walk_, t, begin, end, at_.output, at_.h_0, s.hidden, states + own.offset(t) * s.hidden);
    }
    if (!shares_) return;
    Acc* const weights = shares_ + chunk * share_size(s);
    weight_gradients(s, rows, d, x, states, weights, weights + s.gates * s.inputs, Serial{});
    Acc* const sums = weights + s.gates * (s.inputs + s.hidden);
    for_each_vector<Acc>(s.gradients, [&](int64_t j, int lanes) {
      Vec<Acc> sum = Acc(0);
      for (int64_t row = 0; row < rows; ++row) sum += load_lanes(d + row * s.gradients + j, lanes);
      store_lanes(sums + j, sum, lanes);
    });
  }

 private:
  const BackwardLoop<T, Cell>& loop_;
  const BackwardTensors<T>& at_;
  const Walk& walk_;
  const RecurrentShape& shape_;
  const T* const input_;
  const T* const weight_ih_;
  T* const grad_input_;  // may be null
  Acc* const shares_;    // [chunks, share_size]; null: no parameter's gradient is asked for
};

// The shares summed up, in order, over the first.
template <class Acc>
void sum_shares(Acc* shares, int64_t count, int64_t size) {
  parallel_for(ceil_div(size, 64), count * 64, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 64, columns = std::min(end * 64, size) - first;
    for (int64_t i = 1; i < count; ++i) {
      for_each_vector<Acc>(columns, [&](int64_t j, int lanes) {
        Acc* const sum = shares + first + j;
        store_lanes(sum, load_lanes(sum, lanes) + load_lanes(sum + i * size, lanes), lanes);
      });
    }
  });
}

}  // namespace pyops::cpu
