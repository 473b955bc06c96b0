// Checks of the recurrent ops that hold on every device, and the order in which they visit rows.
#pragma once

#include <algorithm>
#include <optional>

#include "binding/tensor.h"
#include "math/recurrent.h"

namespace pyops {

// Which rows belong to which step. Step t has the sequences [0, count(t)), a number that does not increase,
// whose rows lie one after the other from offset(t).
class Sequences {
 public:
  Sequences(int64_t steps, int64_t batch) : steps_(steps), batch_(batch) {}
  explicit Sequences(const Tensor& sizes) : steps_(sizes.size(0)), batch_(0) {
    const int64_t* values = data<int64_t>(sizes);
    counts_.assign(values, values + steps_);
    batch_ = steps_ ? counts_[0] : 0;
    offsets_.resize(steps_ + 1);
    for (int64_t t = 0; t < steps_; ++t) offsets_[t + 1] = offsets_[t] + counts_[t];
  }

  // Only sequences [begin, end) of these; steps that none of them has fall away.
  Sequences part(int64_t begin, int64_t end) const {
    if (is_dense()) return Sequences(steps_, end - begin);
    Sequences found(0, std::min(counts_[0], end) - begin);
    found.offsets_.push_back(0);
    for (; found.steps_ < steps_ && counts_[found.steps_] > begin; ++found.steps_) {
      found.counts_.push_back(std::min(counts_[found.steps_], end) - begin);
      found.offsets_.push_back(found.offsets_.back() + found.counts_.back());
    }
    return found;
  }

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  bool is_dense() const { return offsets_.empty(); }
  int64_t rows() const { return is_dense() ? steps_ * batch_ : offsets_[steps_]; }
  int64_t offset(int64_t t) const { return is_dense() ? t * batch_ : offsets_[t]; }
  // 0 before the first step and behind the last.
  int64_t count(int64_t t) const {
    if (t < 0 || t >= steps_) return 0;
    return is_dense() ? batch_ : counts_[t];
  }

 private:
  int64_t steps_;
  int64_t batch_;
  std::vector<int64_t> counts_;
  std::vector<int64_t> offsets_;
};

struct RecurrentShape {
  Sequences sequences;
  int64_t inputs = 0;
  int64_t hidden = 0;
  int64_t gates = 0;      // columns of the products: gates per unit times units
  int64_t gradients = 0;  // columns of the gate gradients
  bool has_cell = false;
  bool saves_gates = false;
  std::vector<int64_t> output = {};
};

// Batch sizes must be safe to walk along: positive, not increasing, as many rows as there are.
inline Sequences check_batch_sizes(const Tensor& input, const Tensor& h_0,
                                   const std::optional<Tensor>& batch_sizes, const char* op) {
  const int64_t rank = batch_sizes ? 2 : 3;
  PYOPS_CHECK(input.dim() == rank, op, ": input must have ", rank, " dimensions, got shape ",
              shape_string(input));
  PYOPS_CHECK(h_0.dim() == 2, op, ": h_0 must have 2 dimensions, got shape ", shape_string(h_0));
  if (!batch_sizes) {
    PYOPS_CHECK(input.size(1) == h_0.size(0), op, ": h_0 must have ", input.size(1),
                " rows, the batch size of input, got ", h_0.size(0));
    return Sequences(input.size(0), input.size(1));
  }
  const Tensor& sizes = *batch_sizes;
  PYOPS_CHECK(
      sizes.is_cpu() && sizes.dim() == 1 && sizes.is_contiguous() && sizes.scalar_type() == ScalarType::Long,
      op, ": batch_sizes must be a contiguous vector of int64 on the CPU, got shape ", shape_string(sizes));
  const int64_t* values = data<int64_t>(sizes);
  int64_t rows = 0, largest = h_0.size(0);
  for (int64_t t = 0; t < sizes.size(0); ++t) {
    PYOPS_CHECK(0 < values[t] && values[t] <= largest, op,
                ": batch_sizes must be positive, not increase and begin with the rows of h_0, got ",
                values[t], " at step ", t);
    largest = values[t];
    rows += values[t];
  }
  PYOPS_CHECK(rows == input.size(0), op, ": input must have as many rows as batch_sizes sum up to, ", rows,
              ", got ", input.size(0));
  PYOPS_CHECK(rows == 0 || values[0] == h_0.size(0), op, ": h_0 must have as many rows as the first step");
  return Sequences(sizes);
}

inline void check_part(const Tensor& t, const char* op, const char* name, const Tensor& like,
                       const std::vector<int64_t>& shape) {
  check_dense(t, op, name, like);
  check_type(t, op, name, like.scalar_type());
  check_shape(t, op, name, shape);
}

inline RecurrentShape check_recurrent(const Tensor& input, const Tensor& weight_ih, const Tensor& weight_hh,
                                      const Tensor& h_0, const std::optional<Tensor>& c_0,
                                      const std::optional<Tensor>& batch_sizes, int64_t kind,
                                      const char* op) {
  PYOPS_CHECK(is_floating(input.scalar_type()), op,
              ": input must be float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(input.scalar_type()));
  RecurrentShape s{check_batch_sizes(input, h_0, batch_sizes, op)};
  s.inputs = input.size(input.dim() - 1);
  s.hidden = h_0.size(1);
  const bool known = math::dispatch_cell<float>(kind, [&](auto cell) {
    s.gates = cell.kGates * s.hidden;
    s.gradients = cell.kGradients * s.hidden;
    s.has_cell = cell.kHasCell;
    s.saves_gates = cell.kSavesGates;
  });
  PYOPS_CHECK(known, op, ": kind must be 0 (tanh), 1 (relu), 2 (LSTM) or 3 (GRU), got ", kind);
  PYOPS_CHECK(s.hidden > 0, op, ": h_0 must have at least one unit, got shape ", shape_string(h_0));
  check_dense(input, op, "input", input);
  check_part(weight_ih, op, "weight_ih", input, {s.gates, s.inputs});
  check_part(weight_hh, op, "weight_hh", input, {s.gates, s.hidden});
  check_part(h_0, op, "h_0", input, {s.sequences.batch(), s.hidden});
  PYOPS_CHECK(c_0.has_value() == s.has_cell, op, ": c_0 must be given for an LSTM, and only there");
  if (c_0) check_part(*c_0, op, "c_0", input, shape_of(h_0));
  s.output = shape_of(input);
  s.output.back() = s.hidden;
  return s;
}

inline void check_recurrent_biases(const RecurrentShape& s, const Tensor& input,
                                   const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
                                   const char* op) {
  if (bias_ih) check_part(*bias_ih, op, "bias_ih", input, {s.gates});
  if (bias_hh) check_part(*bias_hh, op, "bias_hh", input, {s.gates});
}

// What backward gets besides the arguments of forward.
inline void check_recurrent_backward(const RecurrentShape& s, const Tensor& input,
                                     const std::optional<Tensor>& grad_output,
                                     const std::optional<Tensor>& grad_h_n,
                                     const std::optional<Tensor>& grad_c_n, const Tensor& output,
                                     const Tensor& gates, const Tensor& extra, const char* op) {
  const std::vector<int64_t> state{s.sequences.batch(), s.hidden};
  if (grad_output) check_part(*grad_output, op, "grad_output", input, s.output);
  if (grad_h_n) check_part(*grad_h_n, op, "grad_h_n", input, state);
  if (grad_c_n) check_part(*grad_c_n, op, "grad_c_n", input, state);
  check_part(output, op, "output", input, s.output);
  if (!s.saves_gates) return;
  check_part(gates, op, "gates", input, {s.sequences.rows(), s.gates});
  check_part(extra, op, "extra", input, {s.sequences.rows(), s.hidden});
}

}  // namespace pyops
