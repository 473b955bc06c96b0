// What follows the time loop backward: the gradients of the parameters, from the gradients of the gates'
// arguments, d [rows, gradients].
//
// One product yields all of them: d.t() @ factors, whose rows are [h_before | x | 1]: the column of ones
// gives the biases' gradients. Threads, or chunks of the sequences, have shares of it that are summed up in
// order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "recurrent_steps.h"

namespace pyops::cpu {

// The columns of the factors and of a share [gradients, columns]; those of states and inputs begin at a
// vector.
struct FactorColumns {
  template <class Acc>
  static FactorColumns of(const RecurrentShape& s, Acc) {
    constexpr int n = Vec<Acc>::kLanes;
    const int64_t inputs = round_up(s.hidden, n);
    return {inputs, inputs + s.inputs, inputs + round_up(s.inputs + 1, n)};
  }

  int64_t inputs;  // where x begins
  int64_t one;
  int64_t all;
};

// The factors of the sequences [begin, end) at step t become terms of `factors` from `first` on; returns how
// many they are.
template <class T>
int64_t put_factors(const Walk& walk, int64_t t, int64_t begin, int64_t end, const BackwardTensors<T>& at,
                    const T* input, const RecurrentShape& s, int64_t first,
                    ResidentMatrix<acc_t<T>>& factors) {
  using Acc = acc_t<T>;
  const auto columns = FactorColumns::of(s, Acc());
  const StepRow row = walk.at(t, begin);
  const int64_t count = std::min(end, s.sequences.count(t)) - begin;
  // Those that have begun before have a step before this one.
  const int64_t begun = std::clamp<int64_t>(walk.count_before(t) - begin, 0, count);
  const auto put_states = [&](int64_t from, int64_t rows, const T* states) {
    factors.put_rows(first + from, rows, 0, columns.inputs, states, s.hidden, s.hidden, Acc(0));
  };
  put_states(0, begun, at.output + row.before * s.hidden);
  put_states(begun, count - begun, at.h_0 + (begin + begun) * s.hidden);
  factors.put_rows(first, count, columns.inputs, columns.all - columns.inputs, input + row.row * s.inputs,
                   s.inputs, s.inputs, Acc(1));
  return count;
}

// One share: d.t() @ factors, added to it or not. Of the GRU's last block, the input's, only the columns of 1
// and x are formed. for_tasks(count, f) calls f(i) for every i in [0, count).
template <class T, class ForTasks>
void parameter_products(const RecurrentShape& s, const T* d, const ResidentMatrix<acc_t<T>>& factors,
                        acc_t<T>* share, bool adds, const ForTasks& for_tasks) {
  using Acc = acc_t<T>;
  struct ProductScratch;
  constexpr int64_t kTaskRows = 4 * kMicroRows, wide = GemmBlocking<Acc>::kMicroColumns;
  const auto columns = FactorColumns::of(s, Acc());
  const auto in_tasks = [](int64_t rows) {
    return EvenSplit(rows, std::max<int64_t>(ceil_div(rows, kTaskRows), 1));
  };
  const EvenSplit all = in_tasks(s.gates), rest = in_tasks(s.gradients - s.gates);
  for_tasks(all.parts + (s.gradients > s.gates ? rest.parts : 0), [&](int64_t i) {
    const bool is_rest = i >= all.parts;
    const int64_t row = is_rest ? s.gates + rest.begin(i - all.parts) : all.begin(i);
    const int64_t rows = is_rest ? rest.size(i - all.parts) : all.size(i);
    Acc* const scratch =
        static_cast<Acc*>(workspace<ProductScratch>(factors.scratch_size(rows) * sizeof(Acc)));
    factors.multiply_from(is_rest ? columns.inputs / wide * wide : 0, rows,
                          Operand<T>{d + row, 1, s.gradients}, share + row * columns.all, columns.all, adds,
                          scratch);
  });
}

// Where the gradients of the parameters go; the first two or the last two may be null.
template <class T>
struct ParameterGradients {
  T* weight_ih;
  T* weight_hh;
  T* bias_ih;
  T* bias_hh;
};

// The sum of `count` shares, in order. `shift`: of GradientBlocks, times H.
template <class T>
void store_parameters(const RecurrentShape& s, const acc_t<T>* shares, int64_t count, int64_t shift,
                      const ParameterGradients<T>& to) {
  using Acc = acc_t<T>;
  const auto columns = FactorColumns::of(s, Acc());
  const int64_t size = s.gradients * columns.all;
  const auto store_sums = [&](const Acc* from, int64_t numbers, T* sums) {
    for_each_vector<Acc>(numbers, [&](int64_t j, int lanes) {
      Vec<Acc> sum = Acc(0);
      for (int64_t i = 0; i < count; ++i) sum += load_lanes(from + i * size + j, lanes);
      store_lanes(sums + j, sum, lanes);
    });
  };
  parallel_for(s.gates, count * (s.hidden + s.inputs), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const Acc* const from_state = shares + (j + shift) % s.gates * columns.all;
      const Acc* const from_input = shares + (j + shift) * columns.all;
      if (to.weight_hh) {
        store_sums(from_state, s.hidden, to.weight_hh + j * s.hidden);
        store_sums(from_input + columns.inputs, s.inputs, to.weight_ih + j * s.inputs);
      }
      if (to.bias_hh) {
        store_sums(from_state + columns.one, 1, to.bias_hh + j);
        store_sums(from_input + columns.one, 1, to.bias_ih + j);
      }
    }
  });
}

// ---- small layers ---------------------------------------------------------------------------------------

// Small weights and many sequences: the products then read as much memory as the loop. A thread does them
// every few steps, while the gate gradients of a few sequences lie in its caches; they never leave them.
// Chunks are cut by the problem, because their shares are summed up, in order. Zero: not such a layer.
inline int64_t local_chunks(const RecurrentShape& s) {
  constexpr int64_t kFewest = 8, kMost = 32, kFewestSequences = 8, kSequences = 32;
  const int64_t batch = s.sequences.batch();
  if ((s.inputs + s.hidden) * s.gates > kMostSmallWeights || s.inputs == 0) return 0;
  return batch < kFewest * kFewestSequences ? 0 : std::clamp(batch / kSequences, kFewest, kMost);
}

// The loop of one chunk and its share.
template <class T, class Cell>
class LocalBackward {
 public:
  using Acc = acc_t<T>;

  LocalBackward(const BackwardLoop<T, Cell>& loop, const BackwardTensors<T>& tensors, const Walk& walk,
                const RecurrentShape& shape, const T* input, Acc* shares)
      : loop_(loop), at_(tensors), walk_(walk), shape_(shape), input_(input), shares_(shares) {}

  void operator()(int64_t chunk, int64_t begin, int64_t end) const {
    const EvenSplit parts(end - begin, ceil_div(end - begin, kMostSequences));
    for (int64_t i = 0; i < parts.parts; ++i) {
      run_part(chunk, begin + parts.begin(i), begin + parts.begin(i) + parts.size(i), i > 0);
    }
  }

 private:
  // Of the sequences that are in the loop together, and rows whose products are formed together.
  static constexpr int64_t kMostSequences = 32, kRows = 256;

  void run_part(int64_t chunk, int64_t begin, int64_t end, bool adds) const {
    const RecurrentShape& s = shape_;
    const int64_t columns = FactorColumns::of(s, Acc()).all;
    const int64_t packed_size = round_up(ResidentMatrix<Acc>(columns, kRows).packed_size(), 16);
    Acc* const packed = static_cast<Acc*>(
        workspace<LocalBackward>(packed_size * sizeof(Acc) + kRows * s.gradients * sizeof(T)));
    T* const d = reinterpret_cast<T*>(packed + packed_size);
    int64_t rows = 0, first_step = 0, last_step = 0;  // what d holds
    const auto add_products = [&] {
      if (rows == 0 || shares_ == nullptr) return;
      ResidentMatrix<Acc> factors(columns, rows);
      factors.place(packed);
      for (int64_t t = first_step, row = 0;; t += walk_.reverse ? 1 : -1) {
        row += put_factors(walk_, t, begin, end, at_, input_, s, row, factors);
        if (t == last_step) break;
      }
      parameter_products(s, d, factors, shares_ + chunk * s.gradients * columns, adds, Serial{});
      adds = true;
    };
    loop_.run(begin, end, [&](int64_t t, int64_t active) {
      if (rows + active > kRows) {
        add_products();
        rows = 0;
      }
      if (rows == 0) first_step = t;
      last_step = t;
      T* const to = d + rows * s.gradients;
      rows += active;
      return to;
    });
    add_products();
  }

  const BackwardLoop<T, Cell>& loop_;
  const BackwardTensors<T>& at_;
  const Walk& walk_;
  const RecurrentShape& shape_;
  const T* const input_;
  Acc* const
      shares_;  // [chunks, gradients, columns of the factors]; null: no parameter's gradient is asked for
};

}  // namespace pyops::cpu
