// Recurrent layers on the CPU, one direction of one layer per call: the input's share of the gates of all
// steps by one product, the time loop (recurrent_steps.h) in parallel over sequences, and in backward the
// gradients of weights and input by products over all steps again.
#include "../binding/recurrent.h"

#include <cstring>
#include <tuple>

#include "gemm_tensor.h"
#include "matrix_epilogue.h"
#include "output_cache.h"
#include "recurrent_steps.h"

namespace pyops::cpu {
namespace {

template <class T>
T* pointer(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// The weights of the time loop, packed in memory of the output cache.
template <class T>
class LoopWeights {
 public:
  using Acc = acc_t<T>;

  LoopWeights(const Tensor& like, int64_t columns, int64_t depth, const Operand<T>& b)
      : matrix(columns, depth),
        memory_(new_output(like, {matrix.packed_size() + Vec<Acc>::kLanes},
                           accumulate_type(like.scalar_type()))) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    Acc* const aligned = reinterpret_cast<Acc*>(round_up(address, kVectorBytes));
    constexpr double kSerialWork = 1 << 14;
    if (double(columns) * depth < kSerialWork) {
      matrix.pack(b, aligned, Serial{});
    } else {
      matrix.pack(b, aligned, ThreadPool{});
    }
  }

  ResidentMatrix<Acc> matrix;

 private:
  Tensor memory_;
};

template <class Loop>
void run_chunks(const Loop& loop, const Sequences& sequences) {
  const std::vector<int64_t> bounds = chunk_bounds(sequences);
  ThreadPool{}(static_cast<int64_t>(bounds.size()) - 1, [&](int64_t i) { loop(bounds[i], bounds[i + 1]); });
}

// [gates + H] in the accumulation type: both biases together, but for the last gate of a GRU.
template <class T>
std::vector<acc_t<T>> joined_bias(const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
                                  const RecurrentShape& s, bool splits) {
  std::vector<acc_t<T>> joined(s.gates + s.hidden);
  for (int64_t j = 0; bias_ih && j < s.gates; ++j) joined[j] = to_acc(data<T>(*bias_ih)[j]);
  for (int64_t j = 0; bias_hh && j < s.gates; ++j) {
    joined[splits && j >= s.gates - s.hidden ? j + s.hidden : j] += to_acc(data<T>(*bias_hh)[j]);
  }
  return joined;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_forward(
    Tensor input, Tensor weight_ih, Tensor weight_hh, std::optional<Tensor> bias_ih,
    std::optional<Tensor> bias_hh, Tensor h_0, std::optional<Tensor> c_0, std::optional<Tensor> batch_sizes,
    int64_t kind, bool reverse, bool training) {
  const char* op = "recurrent_forward";
  const RecurrentShape s = check_recurrent(input, weight_ih, weight_hh, h_0, c_0, batch_sizes, kind, op);
  check_recurrent_biases(s, input, bias_ih, bias_hh, op);
  const ScalarType type = input.scalar_type();
  const int64_t rows = s.sequences.rows();
  const bool saves = training && s.saves_gates;
  const auto made = [&](bool wanted, const std::vector<int64_t>& shape) {
    return new_output(input, wanted ? shape : std::vector<int64_t>{0}, type);
  };
  Tensor output = made(true, s.output);
  Tensor h_n = made(true, shape_of(h_0)), c_n = made(s.has_cell, shape_of(h_0));
  Tensor gates = made(saves, {rows, s.gates}), extra = made(saves, {rows, s.hidden});
  if (rows == 0) {
    // No steps: the states stay. The layers refuse this; here it must merely be safe.
    torch::stable::copy_(h_n, h_0);
    if (c_0) torch::stable::copy_(c_n, *c_0);
    return {output, h_n, c_n, gates, extra};
  }
  // An RNN's lies in the output, which replaces it step by step.
  const Tensor x = saves ? gates : s.gates == s.hidden ? output : made(true, {rows, s.gates});
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    gemm(rows, s.gates, s.inputs, Operand<T>{data<T>(input), s.inputs, 1}, rows_of<T>(weight_ih),
         pointer<T>(x), s.gates, Acc(0), ThreadPool{});
    math::dispatch_cell<Acc>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const LoopWeights<T> weights(input, s.gates, s.hidden, rows_of<T>(weight_hh));
      const std::vector<Acc> bias = joined_bias<T>(bias_ih, bias_hh, s, Cell::kSplitsBias);
      const ForwardTensors<T> tensors{data<T>(x),
                                      saves ? pointer<T>(gates) : nullptr,
                                      saves ? pointer<T>(extra) : nullptr,
                                      pointer<T>(output),
                                      pointer<T>(h_n),
                                      pointer<T>(c_n),
                                      data<T>(h_0),
                                      data_or_null<T>(c_0),
                                      bias.data()};
      run_chunks(ForwardLoop<T, Cell>(tensors, weights.matrix, {s.sequences, reverse}, s.hidden),
                 s.sequences);
    });
  });
  return {output, h_n, c_n, gates, extra};
}

// The state before each row, [rows, H].
template <class T>
void gather_states(const Walk& walk, const T* output, const T* h_0, int64_t hidden, T* to) {
  parallel_for(walk.sequences.steps(), walk.sequences.batch() * hidden, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t b = 0; b < walk.sequences.count(t); ++b) {
        const StepRow at = walk.at(t, b);
        const T* const from = at.before < 0 ? h_0 + b * hidden : output + at.before * hidden;
        memcpy(to + at.row * hidden, from, hidden * sizeof(T));
      }
    }
  });
}

// Gradients of a weight [count * H, columns] = d[:, first * H : (first + count) * H].t() @ factor.
template <class T>
void weight_gradient(const RecurrentShape& s, const T* d, int64_t first, int64_t count, const T* factor,
                     int64_t columns, T* to) {
  const int64_t H = s.hidden;
  gemm(count * H, columns, s.sequences.rows(), Operand<T>{d + first * H, 1, s.gradients},
       Operand<T>{factor, 1, columns}, to, columns, acc_t<T>(0), ThreadPool{});
}

struct Gradients {
  Tensor input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0;
};

// What follows the loop: sums over all steps.
template <class T>
void parameter_gradients(const Gradients& grads, const Tensor& d, const Tensor& input,
                         const Tensor& weight_ih, const Tensor& states, const RecurrentShape& s,
                         bool splits) {
  const int64_t rows = s.sequences.rows(), H = s.hidden, gates = s.gates / H;
  const T* const from = data<T>(d);
  // The state's share of the last gate of a GRU is behind the input's.
  const int64_t joint = splits ? gates - 1 : gates;
  if (grads.input.numel() > 0) {
    gemm(rows, s.inputs, s.gates, Operand<T>{from, s.gradients, 1}, transposed(rows_of<T>(weight_ih)),
         pointer<T>(grads.input), s.inputs, acc_t<T>(0), ThreadPool{});
  }
  if (grads.weight_hh.numel() > 0) {
    weight_gradient(s, from, 0, gates, data<T>(input), s.inputs, pointer<T>(grads.weight_ih));
    weight_gradient(s, from, 0, joint, data<T>(states), H, pointer<T>(grads.weight_hh));
    if (splits) {
      weight_gradient(s, from, gates, 1, data<T>(states), H, pointer<T>(grads.weight_hh) + joint * H * H);
    }
  }
  if (grads.bias_ih.numel() > 0) {
    std::vector<T> sums(s.gradients);
    column_sums(from, rows, s.gradients, sums.data());
    T *const bias_ih = pointer<T>(grads.bias_ih), *const bias_hh = pointer<T>(grads.bias_hh);
    std::copy_n(sums.data(), s.gates, bias_ih);
    std::copy_n(sums.data(), joint * H, bias_hh);
    if (splits) std::copy_n(sums.data() + s.gates, H, bias_hh + joint * H);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n, std::optional<Tensor> grad_c_n,
    Tensor input, Tensor weight_ih, Tensor weight_hh, Tensor h_0, std::optional<Tensor> c_0, Tensor output,
    Tensor gates, Tensor extra, std::optional<Tensor> batch_sizes, int64_t kind, bool reverse,
    bool needs_input, bool needs_weight, bool needs_bias, bool needs_state) {
  const char* op = "recurrent_backward";
  const RecurrentShape s = check_recurrent(input, weight_ih, weight_hh, h_0, c_0, batch_sizes, kind, op);
  check_recurrent_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, extra, op);
  const ScalarType type = input.scalar_type();
  const int64_t rows = s.sequences.rows();
  const auto made = [&](bool wanted, const std::vector<int64_t>& shape) {
    return new_output(input, wanted ? shape : std::vector<int64_t>{0}, type);
  };
  const Gradients grads{made(needs_input, shape_of(input)),
                        made(needs_weight, shape_of(weight_ih)),
                        made(needs_weight, shape_of(weight_hh)),
                        made(needs_bias, {s.gates}),
                        made(needs_bias, {s.gates}),
                        made(needs_state, shape_of(h_0)),
                        made(needs_state && s.has_cell, shape_of(h_0))};
  STD_TORCH_CHECK(s.sequences.steps() > 0, op, ": input must have at least one step");
  Tensor d = made(true, {rows, s.gradients}), states = made(needs_weight, {rows, s.hidden});
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_cell<acc_t<T>>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const Walk walk{s.sequences, reverse};
      {
        const LoopWeights<T> weights(input, s.hidden, s.gates, transposed(rows_of<T>(weight_hh)));
        const BackwardTensors<T> tensors{data_or_null<T>(grad_output),
                                         data_or_null<T>(grad_h_n),
                                         data_or_null<T>(grad_c_n),
                                         data<T>(gates),
                                         data<T>(extra),
                                         data<T>(output),
                                         data<T>(h_0),
                                         data_or_null<T>(c_0),
                                         pointer<T>(d),
                                         needs_state ? pointer<T>(grads.h_0) : nullptr,
                                         pointer<T>(grads.c_0)};
        run_chunks(BackwardLoop<T, Cell>(tensors, weights.matrix, walk, s.hidden), s.sequences);
      }
      if (needs_weight) gather_states(walk, data<T>(output), data<T>(h_0), s.hidden, pointer<T>(states));
      parameter_gradients<T>(grads, d, input, weight_ih, states, s, Cell::kSplitsBias);
    });
  });
  return {grads.input, grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh, grads.h_0, grads.c_0};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("recurrent_forward", TORCH_BOX(&pyops::cpu::recurrent_forward));
  m.impl("recurrent_backward", TORCH_BOX(&pyops::cpu::recurrent_backward));
}
