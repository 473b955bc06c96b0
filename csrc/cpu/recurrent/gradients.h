// What follows the time loop backward: the gradients of the parameters, from the gradients of the gates'
// arguments, d [rows, gradients].
//
// One product yields all of them: d.t() @ factors, whose rows are [h_before | x | 1]: the column of ones
// gives the biases' gradients. In small layers chunks of the sequences have shares of it that are summed up
// in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/recurrent/backward.h"

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

// The columns [begin, end) of the factors that are formed at a time.
struct FactorRange {
  int64_t begin;
  int64_t end;

  int64_t columns() const { return end - begin; }
  FactorRange within(int64_t first, int64_t last) const {
    return {std::max(begin, first), std::max(std::min(end, last), std::max(begin, first))};
  }
};

// The columns `range` of the factors of the sequences [begin, end) at step t become terms of `factors` from
// `first` on; returns how many they are.
template <class T, class Matrix>
int64_t put_factors(const Walk& walk, int64_t t, int64_t begin, int64_t end, const BackwardTensors<T>& at,
                    const T* input, const RecurrentShape& s, const FactorRange& range, int64_t first,
                    Matrix& factors) {
  using Acc = acc_t<T>;
  const auto columns = FactorColumns::of(s, Acc());
  const StepRows now = walk.rows(t), before = walk.rows(walk.before(t));
  const int64_t count = std::min(end, now.count) - begin;
  // Those that have begun before have a step before this one.
  const int64_t begun = std::clamp<int64_t>(before.count - begin, 0, count);
  // Of the rows from `from` on: the part of `values` [rows, numbers] that belongs to the columns of `part`,
  // which begin at `origin`.
  const auto put = [&](int64_t from, int64_t rows, const FactorRange& part, int64_t origin, const T* values,
                       int64_t numbers, Acc fill) {
    const int64_t skipped = part.begin - origin;
    factors.put_rows(first + from, rows, part.begin - range.begin, part.columns(), values + skipped, numbers,
                     numbers - skipped, fill);
  };
  const FactorRange states = range.within(0, columns.inputs);
  const auto put_states = [&](int64_t from, int64_t rows, const T* values) {
    put(from, rows, states, 0, values, s.hidden, Acc(0));
  };
  put_states(0, begun, at.output + (before.first + begin) * s.hidden);
  put_states(begun, count - begun, at.h_0 + (begin + begun) * s.hidden);
  put(0, count, range.within(columns.inputs, columns.all), columns.inputs,
      input + (now.first + begin) * s.inputs, s.inputs, Acc(1));
  return count;
}

// Calls f(row, rows, column) for the tasks of d.t() @ factors: each forms rows [row, row + rows) of the
// product, from `column` of `range` on. In the GRU's last block, the input's, those are the columns of x
// and 1. A task has at most task_rows rows, and every thread as many tasks. for_tasks(count, f) calls f(i)
// for i < count.
template <class Acc, class ForTasks, class F>
void for_each_product(const RecurrentShape& s, const FactorRange& range, int64_t threads, int64_t task_rows,
                      const ForTasks& for_tasks, const F& f) {
  constexpr int64_t wide = GemmBlocking<Acc>::kMicroColumns;
  const auto in_tasks = [&](int64_t rows) {
    return EvenSplit(rows, std::clamp<int64_t>(threads * ceil_div(rows, threads * task_rows), 1,
                                               std::max<int64_t>(rows, 1)));
  };
  const int64_t inputs = std::max<int64_t>(FactorColumns::of(s, Acc()).inputs / wide * wide - range.begin, 0);
  const int64_t only_inputs = inputs < range.columns() ? s.gradients - s.gates : 0;
  const EvenSplit all = in_tasks(s.gates), rest = in_tasks(only_inputs);
  for_tasks(all.parts + (only_inputs > 0 ? rest.parts : 0), [&](int64_t i) {
    if (i < all.parts) return f(all.begin(i), all.size(i), int64_t{0});
    f(s.gates + rest.begin(i - all.parts), rest.size(i - all.parts), inputs);
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

// Stores row `row` of the columns `range` of d.t() @ factors in the gradients they belong to. The row is the
// sum, in order, of `count` shares that lie `apart` from each other. `shift`: of GradientBlocks, times H.
template <class T>
void store_product_row(const RecurrentShape& s, const FactorRange& range, int64_t row, const acc_t<T>* shares,
                       int64_t count, int64_t apart, int64_t shift, const ParameterGradients<T>& to) {
  using Acc = acc_t<T>;
  const auto columns = FactorColumns::of(s, Acc());
  // The columns [first, last) of the product are a row of `sums`, or no part of the range.
  const auto store_sums = [&](int64_t first, int64_t last, T* sums) {
    const FactorRange part = range.within(first, last);
    const Acc* const from = shares + (part.begin - range.begin);
    for_each_vector<Acc>(part.columns(), [&](int64_t j, int lanes) {
      Vec<Acc> sum = Acc(0);
      for (int64_t i = 0; i < count; ++i) sum += load_lanes(from + i * apart + j, lanes);
      store_lanes(sums + (part.begin - first) + j, sum, lanes);
    });
  };
  if (row < s.gates) {  // a share of the state
    const int64_t j = (row - shift + s.gates) % s.gates;
    if (to.weight_hh) store_sums(0, s.hidden, to.weight_hh + j * s.hidden);
    if (to.bias_hh) store_sums(columns.one, columns.one + 1, to.bias_hh + j);
  }
  if (row >= shift) {  // of the input
    const int64_t j = row - shift;
    if (to.weight_ih) store_sums(columns.inputs, columns.one, to.weight_ih + j * s.inputs);
    if (to.bias_ih) store_sums(columns.one, columns.one + 1, to.bias_ih + j);
  }
}

// Forms the columns `range` of the product, the factors; its tasks store what they have formed.
template <class T, class Matrix>
void store_products(const RecurrentShape& s, const FactorRange& range, const T* d, const Matrix& factors,
                    int64_t shift, const ParameterGradients<T>& to) {
  using Acc = acc_t<T>;
  // The more rows in a task the less often the factors are read. Their sums should stay in the L2 cache.
  constexpr int64_t kMostSums = 128 << 10, kFewestRows = 4 * kMicroRows;
  const int64_t columns = range.columns(), threads = std::max<int64_t>(ThreadPool{}.threads(), 1);
  const int64_t task_rows = std::max(kMostSums / columns, kFewestRows);
  const auto claimed = [&](int64_t tasks, const auto& task) {
    parallel_claim(tasks, double(factors.depth()) * s.gates * columns, task);
  };
  const auto product = [&](int64_t row, int64_t rows, int64_t column) {
    Scratch scratch;
    Acc* const sums = scratch.take<Acc>(rows * columns);
    Acc* const packed = scratch.take<Acc>(factors.packed_rows_size(rows));
    factors.multiply_from(column, rows, Operand<T>{d + row, 1, s.gradients}, sums, columns, false, packed);
    for (int64_t i = 0; i < rows; ++i) {
      store_product_row(s, range, row + i, sums + i * columns, 1, 0, shift, to);
    }
  };
  for_each_product<Acc>(s, range, threads, task_rows, claimed, product);
}

// ---- small layers ---------------------------------------------------------------------------------------

// The sum of `count` shares of the product, in order.
template <class T>
void store_shares(const RecurrentShape& s, const acc_t<T>* shares, int64_t count, int64_t shift,
                  const ParameterGradients<T>& to) {
  const int64_t columns = FactorColumns::of(s, acc_t<T>()).all;
  const FactorRange all{0, columns};
  parallel_for(s.gradients, count * columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      store_product_row(s, all, row, shares + row * columns, count, s.gradients * columns, shift, to);
    }
  });
}

// With small weights and many sequences, a product over all rows would read as much memory as the loop. So a
// thread multiplies every few steps, while the gate gradients of a few sequences lie in its caches, which
// they never leave. Chunks are cut by the problem, because their shares are added up in order. Returns 0 for
// all other layers.
inline int64_t local_chunks(const RecurrentShape& s) {
  constexpr int64_t kFewest = 8, kMost = 32, kFewestSequences = 8, kSequences = 32;
  const int64_t batch = s.sequences.batch();
  if ((s.inputs + s.hidden) * s.gates > kMostSmallWeights || s.inputs == 0) return 0;
  return batch < kFewest * kFewestSequences ? 0 : std::clamp(batch / kSequences, kFewest, kMost);
}

// The loop of one chunk and its share.
template <class T, class Cell, class Matrix>
class LocalBackward {
 public:
  using Acc = acc_t<T>;

  LocalBackward(const BackwardLoop<T, Cell, Matrix>& loop, const BackwardTensors<T>& tensors,
                const Walk& walk, const RecurrentShape& shape, const T* input, Acc* shares)
      : loop_(loop), at_(tensors), walk_(walk), shape_(shape), input_(input), shares_(shares) {}

  void operator()(int64_t chunk, int64_t begin, int64_t end) const {
    const EvenSplit parts(end - begin, ceil_div(end - begin, kMostSequences));
    for (int64_t i = 0; i < parts.parts; ++i) {
      run_part(chunk, begin + parts.begin(i), begin + parts.begin(i) + parts.size(i), i > 0);
    }
  }

 private:
  // Sequences that are in the loop together, and rows whose products are formed together.
  static constexpr int64_t kMostSequences = 32, kRows = 256;

  void run_part(int64_t chunk, int64_t begin, int64_t end, bool adds) const {
    const RecurrentShape& s = shape_;
    const int64_t columns = FactorColumns::of(s, Acc()).all;
    Scratch scratch;
    Acc* const packed = scratch.take<Acc>(Matrix(columns, kRows).packed_size());
    T* const d = scratch.take<T>(kRows * s.gradients);
    int64_t rows = 0, first_step = 0, last_step = 0;  // what d holds
    const auto add_products = [&] {
      if (rows == 0 || shares_ == nullptr) return;
      Matrix factors(columns, rows);
      factors.place(packed);
      for (int64_t t = first_step, row = 0;; t += walk_.reverse ? 1 : -1) {
        row += put_factors(walk_, t, begin, end, at_, input_, s, {0, columns}, row, factors);
        if (t == last_step) break;
      }
      add_to_share(factors, d, shares_ + chunk * s.gradients * columns, adds);
      adds = true;
    };
    loop_.run(begin, end, [&](int64_t t, int64_t active) {
      if (rows + active > kRows) {
        add_products();
        rows = 0;
      }
      if (shares_ != nullptr) {
        fetch_all(input_ + (walk_.rows(t).first + begin) * s.inputs, active * s.inputs);
      }
      if (rows == 0) first_step = t;
      last_step = t;
      T* const to = d + rows * s.gradients;
      rows += active;
      return to;
    });
    add_products();
  }

  // One share: d.t() @ factors, added to it or not.
  void add_to_share(const Matrix& factors, const T* d, Acc* share, bool adds) const {
    const int64_t columns = factors.columns();
    const auto product = [&](int64_t row, int64_t rows, int64_t column) {
      Scratch scratch;
      Acc* const packed = scratch.take<Acc>(factors.packed_rows_size(rows));
      factors.multiply_from(column, rows, Operand<T>{d + row, 1, shape_.gradients}, share + row * columns,
                            columns, adds, packed);
    };
    for_each_product<Acc>(shape_, {0, columns}, 1, 4 * kMicroRows, Serial{}, product);
  }

  const BackwardLoop<T, Cell, Matrix>& loop_;
  const BackwardTensors<T>& at_;
  const Walk& walk_;
  const RecurrentShape& shape_;
  const T* const input_;
  // [chunks, gradients, columns of the factors]; null: no parameter's gradient is asked for.
  Acc* const shares_;
};

}  // namespace pyops::cpu
