// Recurrent layers on the CPU, one direction of one layer per call: the input's share of the gates of all
// steps by one product, the time loop (recurrent_steps.h) in parallel over sequences, and in backward the
// gradients of weights and input by products over all steps again.
#include "../binding/recurrent.h"

#include <tuple>

#include "gemm_tensor.h"
#include "matrix_epilogue.h"
#include "output_cache.h"
#include "recurrent_gradients.h"
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

// Whether the input's share of the gates is formed step by step rather than by one product for all steps:
// that product writes as much as the loop, which pays when the weights are large beside the caches.
bool input_share_in_loop(const RecurrentShape& s, int64_t element_size) {
  constexpr int64_t kCache = 128 << 10;
  return s.inputs > 0 && (s.inputs + s.hidden) * s.gates * element_size <= kCache;
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
  const bool in_loop = input_share_in_loop(s, input.element_size());
  // An RNN's lies in the output, which replaces it step by step.
  const Tensor x = in_loop ? input : saves ? gates : !s.saves_gates ? output : made(true, {rows, s.gates});
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (!in_loop) {
      gemm(rows, s.gates, s.inputs, Operand<T>{data<T>(input), s.inputs, 1}, rows_of<T>(weight_ih),
           pointer<T>(x), s.gates, Acc(0), ThreadPool{});
    }
    math::dispatch_cell<Acc>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const LoopWeights<T> weights(input, s.gates, s.hidden, rows_of<T>(weight_hh));
      std::optional<LoopWeights<T>> input_weights;
      if (in_loop) input_weights.emplace(input, s.gates, s.inputs, rows_of<T>(weight_ih));
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
      const ForwardLoop<T, Cell> loop(tensors, weights.matrix, in_loop ? &input_weights->matrix : nullptr,
                                      {s.sequences, reverse}, s.hidden);
      run_chunks(chunk_bounds(s.sequences, chunks_for_threads(s.sequences)), loop);
    });
  });
  return {output, h_n, c_n, gates, extra};
}

struct Gradients {
  Tensor input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0;
};

// The loop for all sequences, then the sums over all rows.
template <class T, class Cell>
void backward_by_sums(const Gradients& grads, const BackwardLoop<T, Cell>& loop,
                      const BackwardTensors<T>& tensors, const Walk& walk, const RecurrentShape& s,
                      const Tensor& input, const Tensor& weight_ih) {
  const int64_t rows = s.sequences.rows();
  const bool needs_weight = grads.weight_hh.numel() > 0, needs_bias = grads.bias_ih.numel() > 0;
  const Tensor memory = new_output(input, {rows, s.gradients}, input.scalar_type());
  T* const d = pointer<T>(memory);
  run_chunks(chunk_bounds(s.sequences, chunks_for_threads(s.sequences)),
             [&](int64_t, int64_t begin, int64_t end) {
               loop.run(begin, end, d, [&](int64_t t) { return s.sequences.offset(t) + begin; });
             });
  if (grads.input.numel() > 0) {
    input_gradient(s, rows, d, data<T>(weight_ih), pointer<T>(grads.input), ThreadPool{});
  }
  if (needs_weight) {
    const Tensor states = new_output(input, {rows, s.hidden}, input.scalar_type());
    parallel_for(s.sequences.steps(), s.sequences.batch() * s.hidden, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        gather_states(walk, t, 0, s.sequences.batch(), tensors.output, tensors.h_0, s.hidden,
                      pointer<T>(states) + s.sequences.offset(t) * s.hidden);
      }
    });
    weight_gradients(s, rows, d, data<T>(input), data<T>(states), pointer<T>(grads.weight_ih),
                     pointer<T>(grads.weight_hh), ThreadPool{});
  }
  if (needs_bias) {
    std::vector<T> sums(s.gradients);
    column_sums(d, rows, s.gradients, sums.data());
    bias_gradients(s, sums.data(), pointer<T>(grads.bias_ih), pointer<T>(grads.bias_hh));
  }
}

template <class T>
void store_narrowed(const acc_t<T>* from, const Tensor& to) {
  for_each_vector<acc_t<T>>(to.numel(), [&](int64_t j, int lanes) {
    store_lanes(pointer<T>(to) + j, load_lanes(from + j, lanes), lanes);
  });
}

// Loop and sums chunk by chunk.
template <class T, class Cell>
void backward_by_chunks(const Gradients& grads, const BackwardLoop<T, Cell>& loop,
                        const BackwardTensors<T>& tensors, const Walk& walk, const RecurrentShape& s,
                        const Tensor& input, const Tensor& weight_ih, int64_t chunks) {
  using Acc = acc_t<T>;
  using Local = LocalBackward<T, Cell>;
  const bool needs_weight = grads.weight_hh.numel() > 0, needs_bias = grads.bias_ih.numel() > 0;
  const std::vector<int64_t> bounds = chunk_bounds(s.sequences, chunks);
  const int64_t count = static_cast<int64_t>(bounds.size()) - 1, size = Local::share_size(s);
  const Tensor memory = new_output(input, {needs_weight || needs_bias ? count * size : 0},
                                   accumulate_type(input.scalar_type()));
  Acc* const shares = memory.numel() > 0 ? pointer<Acc>(memory) : nullptr;
  T* const grad_input = grads.input.numel() > 0 ? pointer<T>(grads.input) : nullptr;
  run_chunks(bounds, Local(loop, tensors, walk, s, data<T>(input), data<T>(weight_ih), grad_input, shares));
  if (shares == nullptr) return;
  sum_shares(shares, count, size);
  if (needs_weight) {
    store_narrowed<T>(shares, grads.weight_ih);
    store_narrowed<T>(shares + s.gates * s.inputs, grads.weight_hh);
  }
  if (needs_bias) {
    bias_gradients(s, shares + s.gates * (s.inputs + s.hidden), pointer<T>(grads.bias_ih),
                   pointer<T>(grads.bias_hh));
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
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_cell<acc_t<T>>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const Walk walk{s.sequences, reverse};
      const LoopWeights<T> weights(input, s.hidden, s.gates, transposed(rows_of<T>(weight_hh)));
      const BackwardTensors<T> tensors{data_or_null<T>(grad_output),
                                       data_or_null<T>(grad_h_n),
                                       data_or_null<T>(grad_c_n),
                                       data<T>(gates),
                                       data<T>(extra),
                                       data<T>(output),
                                       data<T>(h_0),
                                       data_or_null<T>(c_0),
                                       needs_state ? pointer<T>(grads.h_0) : nullptr,
                                       pointer<T>(grads.c_0)};
      const BackwardLoop<T, Cell> loop(tensors, weights.matrix, walk, s.hidden);
      const int64_t chunks = local_chunks<T>(s);
      if (chunks > 0) {
        backward_by_chunks(grads, loop, tensors, walk, s, input, weight_ih, chunks);
      } else {
        backward_by_sums(grads, loop, tensors, walk, s, input, weight_ih);
      }
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
