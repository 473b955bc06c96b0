// Recurrent layers on the CPU, one direction of one layer per call: the input's share of the gates of all
// steps by one product, the time loop (forward.h, backward.h) in parallel over sequences, and in backward the
// gradients of weights and input by products over all steps again.
#include "binding/recurrent.h"

#include <tuple>

#include "cpu/epilogue/matrix.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/operand.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/forward.h"
#include "cpu/recurrent/gradients.h"
#include "cpu/runtime/cost.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {
namespace {

// A prepacked matrix and its memory, which comes from the output cache.
template <class T, class Matrix>
class StoredMatrix {
 public:
  using Acc = acc_t<T>;

  StoredMatrix(const Tensor& like, int64_t columns, int64_t depth)
      : matrix(columns, depth),
        memory_(new_output(like, {matrix.packed_size() + Vec<Acc>::kLanes},
                           accumulate_type(like.scalar_type()))) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    matrix.place(reinterpret_cast<Acc*>(round_up(address, kVectorBytes)));
  }

  // As PrepackedMatrix::pack().
  StoredMatrix(const Tensor& like, int64_t columns, int64_t depth, const Operand<T>& b, int64_t first = 0)
      : StoredMatrix(like, columns, depth) {
    if (cost::pays(cost::elements(double(columns) * double(depth)))) {
      matrix.pack(b, first, ThreadPool{});
    } else {
      matrix.pack(b, first, Serial{});
    }
  }

  Matrix matrix;

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

// Whether the products with weight_ih are formed step by step rather than by one product for all steps. The
// one product writes or reads as much memory as the loop; that pays when the weights are too large to lie in
// the L2 cache beside the others.
bool input_products_in_loop(const RecurrentShape& s) {
  return s.inputs > 0 && s.inputs * s.gates <= kMostSmallWeights;
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
    // Without steps the states stay as they are. The layers refuse this; here it must only be safe.
    torch::stable::copy_(h_n, h_0);
    if (c_0) torch::stable::copy_(c_n, *c_0);
    return {output, h_n, c_n, gates, extra};
  }
  const bool in_loop = input_products_in_loop(s);
  // The x of an RNN lies in the output, which replaces it step by step.
  const Tensor x = in_loop ? input : saves ? gates : !s.saves_gates ? output : made(true, {rows, s.gates});
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (!in_loop) {
      gemm(rows, s.gates, s.inputs, Operand<T>{data<T>(input), s.inputs, 1}, rows_of<T>(weight_ih),
           mutable_data<T>(x), s.gates, Acc(0), ThreadPool{});
    }
    math::dispatch_cell<Acc>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      with_packed<T>([&](auto packed) {
        using Matrix = typename decltype(packed)::Matrix;
        const StoredMatrix<T, Matrix> weights(input, s.gates, s.hidden, rows_of<T>(weight_hh));
        std::optional<StoredMatrix<T, Matrix>> input_weights;
        if (in_loop) input_weights.emplace(input, s.gates, s.inputs, rows_of<T>(weight_ih));
        const std::vector<Acc> bias = joined_bias<T>(bias_ih, bias_hh, s, Cell::kSplitsBias);
        const ForwardTensors<T> tensors{data<T>(x),
                                        saves ? mutable_data<T>(gates) : nullptr,
                                        saves ? mutable_data<T>(extra) : nullptr,
                                        mutable_data<T>(output),
                                        mutable_data<T>(h_n),
                                        mutable_data<T>(c_n),
                                        data<T>(h_0),
                                        data_or_null<T>(c_0),
                                        bias.data()};
        const ForwardLoop<T, Cell, Matrix> loop(tensors, weights.matrix,
                                                in_loop ? &input_weights->matrix : nullptr,
                                                {s.sequences, reverse}, s.hidden);
        run_chunks(chunk_bounds(s.sequences, chunks_for_threads(s.sequences)), loop);
      });
    });
  });
  return {output, h_n, c_n, gates, extra};
}

struct Gradients {
  Tensor input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0;
};

template <class T>
ParameterGradients<T> parameters_of(const Gradients& grads) {
  const bool weights = grads.weight_hh.numel() > 0, biases = grads.bias_hh.numel() > 0;
  return {weights ? mutable_data<T>(grads.weight_ih) : nullptr,
          weights ? mutable_data<T>(grads.weight_hh) : nullptr,
          biases ? mutable_data<T>(grads.bias_ih) : nullptr,
          biases ? mutable_data<T>(grads.bias_hh) : nullptr};
}

// The loop for all sequences, then the sums over all rows. `drop_weights` gives back what only the loop
// needs. The factors are formed by halves: whole, they were the largest of what is alive beside the
// gradients.
template <class T, class Cell, class Matrix, class DropWeights>
void backward_by_sums(const Gradients& grads, const BackwardLoop<T, Cell, Matrix>& loop,
                      const DropWeights& drop_weights, const BackwardTensors<T>& tensors, const Walk& walk,
                      const RecurrentShape& s, const Tensor& input, const Tensor& weight_ih, bool in_loop) {
  using Acc = acc_t<T>;
  constexpr int kShift = GradientBlocks<Cell>::kShift;
  const int64_t rows = s.sequences.rows(), batch = s.sequences.batch();
  const Tensor memory = new_output(input, {rows, s.gradients}, input.scalar_type());
  T* const d = mutable_data<T>(memory);
  run_chunks(
      chunk_bounds(s.sequences, chunks_for_threads(s.sequences)), [&](int64_t, int64_t begin, int64_t end) {
        loop.run(begin, end,
                 [&](int64_t t, int64_t) { return d + (s.sequences.offset(t) + begin) * s.gradients; });
      });
  drop_weights();
  if (tensors.grad_input && !in_loop) {
    gemm(rows, s.inputs, s.gates, Operand<T>{d + kShift * s.hidden, s.gradients, 1},
         transposed(rows_of<T>(weight_ih)), tensors.grad_input, s.inputs, Acc(0), ThreadPool{});
  }
  const ParameterGradients<T> parameters = parameters_of<T>(grads);
  if (!parameters.weight_hh && !parameters.bias_hh) return;
  if (rows == 0) return store_shares<T>(s, nullptr, 0, kShift * s.hidden, parameters);
  const int64_t columns = FactorColumns::of(s, Acc()).all;
  const int64_t half = round_up(ceil_div(columns, 2), GemmBlocking<Acc>::kMicroColumns);
  for (int64_t first = 0; first < columns; first += half) {
    const FactorRange range{first, std::min(first + half, columns)};
    StoredMatrix<T, Matrix> factors(input, range.columns(), rows);
    parallel_for(s.sequences.steps(), batch * range.columns(), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        put_factors(walk, t, 0, batch, tensors, data<T>(input), s, range, s.sequences.offset(t),
                    factors.matrix);
      }
    });
    store_products(s, range, d, factors.matrix, kShift * s.hidden, parameters);
  }
}

// Loop and sums chunk by chunk.
template <class T, class Cell, class Matrix>
void backward_by_chunks(const Gradients& grads, const BackwardLoop<T, Cell, Matrix>& loop,
                        const BackwardTensors<T>& tensors, const Walk& walk, const RecurrentShape& s,
                        const Tensor& input, int64_t chunks) {
  using Acc = acc_t<T>;
  const std::vector<int64_t> bounds = chunk_bounds(s.sequences, chunks);
  const int64_t count = static_cast<int64_t>(bounds.size()) - 1;
  const int64_t share_size = s.gradients * FactorColumns::of(s, Acc()).all;
  const ParameterGradients<T> parameters = parameters_of<T>(grads);
  const bool needs_sums = parameters.weight_hh || parameters.bias_hh;
  const Tensor memory =
      new_output(input, {needs_sums ? count * share_size : 0}, accumulate_type(input.scalar_type()));
  Acc* const shares = needs_sums ? mutable_data<Acc>(memory) : nullptr;
  run_chunks(bounds, LocalBackward<T, Cell, Matrix>(loop, tensors, walk, s, data<T>(input), shares));
  if (needs_sums) {
    store_shares(s, shares, count, GradientBlocks<Cell>::kShift * s.hidden, parameters);
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
  PYOPS_CHECK(s.sequences.steps() > 0, op, ": input must have at least one step");
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_cell<acc_t<T>>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      with_packed<T>([&](auto packed) {
        using Matrix = typename decltype(packed)::Matrix;
        const Walk walk{s.sequences, reverse};
        const int64_t first = (s.gates - GradientBlocks<Cell>::kShift * s.hidden) % s.gates;
        std::optional<StoredMatrix<T, Matrix>> weights;
        weights.emplace(input, s.hidden, s.gates, transposed(rows_of<T>(weight_hh)), first);
        std::optional<StoredMatrix<T, Matrix>> input_weights;
        const bool in_loop = needs_input && input_products_in_loop(s);
        if (in_loop) input_weights.emplace(input, s.inputs, s.gates, transposed(rows_of<T>(weight_ih)));
        const BackwardTensors<T> tensors{data_or_null<T>(grad_output),
                                         data_or_null<T>(grad_h_n),
                                         data_or_null<T>(grad_c_n),
                                         data<T>(gates),
                                         data<T>(extra),
                                         data<T>(output),
                                         data<T>(h_0),
                                         data_or_null<T>(c_0),
                                         needs_input ? mutable_data<T>(grads.input) : nullptr,
                                         needs_state ? mutable_data<T>(grads.h_0) : nullptr,
                                         mutable_data<T>(grads.c_0)};
        const BackwardLoop<T, Cell, Matrix> loop(tensors, weights->matrix,
                                                 in_loop ? &input_weights->matrix : nullptr, walk, s.hidden);
        const int64_t chunks = local_chunks(s);
        if (chunks > 0) {
          backward_by_chunks(grads, loop, tensors, walk, s, input, chunks);
        } else {
          const auto drop_weights = [&] {
            weights.reset();
            input_weights.reset();
          };
          backward_by_sums(grads, loop, drop_weights, tensors, walk, s, input, weight_ih, in_loop);
        }
      });
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
