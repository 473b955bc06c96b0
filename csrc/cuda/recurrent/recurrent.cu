// Recurrent layers on CUDA, one direction of one layer per call; recurrent.cuh describes the time loop.
#include <tuple>

#include "binding/matmul.h"
#include "cuda/device/blocks.cuh"
#include "cuda/recurrent/loop.cuh"
#include "cuda/recurrent/recurrent.cuh"

namespace pyops::cuda {
namespace {

Tensor empty(const Tensor& like, bool needed, const std::vector<int64_t>& shape) {
  return new_tensor(like, needed ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

Tensor rows_of(Tensor t, int64_t first, int64_t count) { return torch::stable::narrow(t, 0, first, count); }

// Some of the places at which the steps of a packed batch begin. They are passed as arguments of a launch,
// because a copy from the host's memory would have to wait for the stream.
struct OffsetChunk {
  int64_t values[256];
};

__global__ void store_offsets(int64_t* to, int64_t count, const __grid_constant__ OffsetChunk chunk) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = chunk.values[i];
}

// Runs the loop in one launch whose blocks share nothing; false where the weights do not fit a block.
template <class T, class Kernel, class Data>
bool launch_loop(const Kernel& kernel, int64_t columns, int64_t length, const Data& at,
                 const RecurrentCall& call) {
  const RecurrentShape& s = call.shape;
  const int64_t units = round_up(s.hidden, 32);
  if (units > kMostLoopThreads) return false;
  const int64_t groups = std::max<int64_t>(1, kLoopThreads / units);
  const int64_t sequences = groups * kLoopSequences;
  const int64_t bytes = LoopShared<T>::bytes(columns, length, sequences);
  const int64_t blocks = ceil_div(s.sequences.batch(), sequences);
  if (bytes > kLoopSharedBytes || blocks >= (int64_t{1} << 31)) return false;
  const StepsOnDevice steps = steps_on_device(call);
  launch_large(kernel, static_cast<unsigned>(blocks),
               dim3(static_cast<unsigned>(units), static_cast<unsigned>(groups)), static_cast<size_t>(bytes),
               call.stream, at, steps.steps, s.hidden, data<T>(call.weight_hh));
  return true;
}

template <class T, class Cell>
void forward_steps(const ForwardData<T>& at, const RecurrentCall& call, const Tensor& h_0,
                   const std::optional<Tensor>& c_0) {
  const RecurrentShape& s = call.shape;
  const ScalarType acc = accumulate_type(h_0.scalar_type());
  const int64_t steps = s.sequences.steps();
  Tensor h = torch::stable::clone(h_0), sums = empty(h_0, true, {s.sequences.batch(), s.gates});
  Tensor c = new_tensor(h_0, c_0 ? shape_of(h_0) : std::vector<int64_t>{0}, acc);
  if (c_0) torch::stable::copy_(c, *c_0);
  const Tensor weights = torch::stable::transpose(call.weight_hh, 0, 1);
  for (int64_t i = 0; i < steps; ++i) {
    const StepPlace place = place_of(s.sequences, call.reverse, call.reverse ? steps - 1 - i : i);
    product(rows_of(sums, 0, place.count), rows_of(h, 0, place.count), weights, call.products, call.stream);
    launch(step_forward<T, Cell>, blocks_for(place.count * s.hidden, kStepThreads), kStepThreads, 0,
           call.stream, at, place, s.hidden, data<T>(sums), mutable_data<T>(h), mutable_data<acc_t<T>>(c));
  }
}

template <class T, class Cell>
void backward_steps(const BackwardData<T>& at, const RecurrentCall& call, const Tensor& d) {
  const RecurrentShape& s = call.shape;
  const int64_t steps = s.sequences.steps(), batch = s.sequences.batch();
  Tensor sums = empty(d, true, {batch, s.hidden});
  Tensor carry = new_tensor(d, {batch, s.hidden}, accumulate_type(d.scalar_type()));
  // A step has as many sums as the step after it has sequences. The last round is left for the initial
  // states.
  for (int64_t i = 0; i <= steps; ++i) {
    const StepPlace place = place_of(s.sequences, call.reverse, call.reverse ? i : steps - 1 - i);
    const int64_t summed = at.grad_h_0 ? place.after_count : std::min(place.after_count, place.count);
    if (summed > 0) {
      product(rows_of(sums, 0, summed), rows_of(d, place.after, summed), call.weight_hh, call.products,
              call.stream);
    }
    if (place.count > 0) {
      launch(step_backward<T, Cell>, blocks_for(place.count * s.hidden, kStepThreads), kStepThreads, 0,
             call.stream, at, place, s.hidden, data<T>(sums), mutable_data<acc_t<T>>(carry));
    }
    const int64_t begun = summed - std::min(summed, place.count);  // the step after this one was their first
    if (begun > 0) {
      launch(initial_gradients<T, Cell>, blocks_for(begun * s.hidden, kStepThreads), kStepThreads, 0,
             call.stream, place.count * s.hidden, summed * s.hidden, data<T>(sums), data<acc_t<T>>(carry),
             at.grad_h_0, at.grad_c_0);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_forward(
    Tensor input, Tensor weight_ih, Tensor weight_hh, std::optional<Tensor> bias_ih,
    std::optional<Tensor> bias_hh, Tensor h_0, std::optional<Tensor> c_0, std::optional<Tensor> batch_sizes,
    int64_t kind, bool reverse, bool training) {
  const char* op = "recurrent_forward";
  const RecurrentShape s = check_recurrent(input, weight_ih, weight_hh, h_0, c_0, batch_sizes, kind, op);
  check_recurrent_biases(s, input, bias_ih, bias_hh, op);
  const DeviceScope device(input);
  const int64_t rows = s.sequences.rows();
  const bool saves = training && s.saves_gates;
  Tensor output = empty(input, true, s.output), h_n = empty(input, true, shape_of(h_0));
  Tensor c_n = empty(input, s.has_cell, shape_of(h_0));
  Tensor gates = empty(input, saves, {rows, s.gates}), extra = empty(input, saves, {rows, s.hidden});
  if (rows == 0) {
    torch::stable::copy_(h_n, h_0);
    if (c_0) torch::stable::copy_(c_n, *c_0);
    return {output, h_n, c_n, gates, extra};
  }
  // An RNN keeps it in the output, which replaces it step by step.
  const Tensor x = saves            ? gates
                   : !s.saves_gates ? matrix_view(output, rows, s.gates)
                                    : empty(input, true, {rows, s.gates});
  const RecurrentCall call{
      s, kind, reverse, weight_hh, {input.scalar_type(), s.sequences.steps()}, device.stream};
  product(x, matrix_view(input, rows, s.inputs), torch::stable::transpose(weight_ih, 0, 1), call.products,
          device.stream);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_cell<acc_t<T>>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const ForwardData<T> at{data<T>(x),
                              data_or_null<T>(bias_ih),
                              data_or_null<T>(bias_hh),
                              data<T>(h_0),
                              data_or_null<T>(c_0),
                              saves ? mutable_data<T>(gates) : nullptr,
                              saves ? mutable_data<T>(extra) : nullptr,
                              mutable_data<T>(output),
                              mutable_data<T>(h_n),
                              mutable_data<T>(c_n)};
      if (launch_loop<T>(loop_forward<T, Cell>, s.gates, s.hidden, at, call) || forward_in_grid(at, call))
        return;
      forward_steps<T, Cell>(at, call, h_0, c_0);
    });
  });
  return {output, h_n, c_n, gates, extra};
}

// The state before each row: of a dense batch the output, shifted by a step.
Tensor states_before(const RecurrentShape& s, bool reverse, const Tensor& output, const Tensor& h_0) {
  const Sequences& sequences = s.sequences;
  Tensor states = empty(output, true, {sequences.rows(), s.hidden});
  const Tensor rows = matrix_view(output, sequences.rows(), s.hidden);
  const auto copy = [&](int64_t to, const Tensor& source, int64_t from, int64_t count) {
    if (count == 0) return;
    Tensor target = rows_of(states, to, count);
    torch::stable::copy_(target, rows_of(source, from, count));
  };
  if (sequences.is_dense()) {
    const int64_t batch = sequences.batch(), others = sequences.rows() - batch;
    copy(reverse ? others : 0, h_0, 0, batch);
    copy(reverse ? 0 : batch, rows, reverse ? batch : 0, others);
    return states;
  }
  for (int64_t t = 0; t < sequences.steps(); ++t) {
    const StepPlace place = place_of(sequences, reverse, t);
    copy(place.first, rows, place.before, place.before_count);
    copy(place.first + place.before_count, h_0, place.before_count, place.count - place.before_count);
  }
  return states;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n, std::optional<Tensor> grad_c_n,
    Tensor input, Tensor weight_ih, Tensor weight_hh, Tensor h_0, std::optional<Tensor> c_0, Tensor output,
    Tensor gates, Tensor extra, std::optional<Tensor> batch_sizes, int64_t kind, bool reverse,
    bool needs_input, bool needs_weight, bool needs_bias, bool needs_state) {
  const char* op = "recurrent_backward";
  const RecurrentShape s = check_recurrent(input, weight_ih, weight_hh, h_0, c_0, batch_sizes, kind, op);
  check_recurrent_backward(s, input, grad_output, grad_h_n, grad_c_n, output, gates, extra, op);
  PYOPS_CHECK(s.sequences.steps() > 0, op, ": input must have at least one step");
  const DeviceScope device(input);
  const int64_t rows = s.sequences.rows();
  const bool splits = s.gradients > s.gates;
  Tensor grad_h_0 = empty(input, needs_state, shape_of(h_0));
  Tensor grad_c_0 = empty(input, needs_state && s.has_cell, shape_of(h_0));
  Tensor d = empty(input, true, {rows, s.gates}), d_input = d;
  if (splits) d_input = empty(input, true, {rows, s.gates});
  const RecurrentCall call{
      s, kind, reverse, weight_hh, {input.scalar_type(), s.sequences.steps()}, device.stream};
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_cell<acc_t<T>>(kind, [&](auto cell) {
      using Cell = decltype(cell);
      const BackwardData<T> at{data_or_null<T>(grad_output),
                               data_or_null<T>(grad_h_n),
                               data_or_null<T>(grad_c_n),
                               data<T>(gates),
                               data<T>(extra),
                               data<T>(output),
                               data<T>(h_0),
                               data_or_null<T>(c_0),
                               mutable_data<T>(d),
                               mutable_data<T>(d_input),
                               needs_state ? mutable_data<T>(grad_h_0) : nullptr,
                               mutable_data<T>(grad_c_0)};
      if (rows == 0) return;
      if (launch_loop<T>(loop_backward<T, Cell>, s.hidden, s.gates, at, call) || backward_in_grid(at, call))
        return;
      backward_steps<T, Cell>(at, call, d);
    });
  });
  Tensor grad_input = empty(input, needs_input, shape_of(input));
  Tensor grad_weight_ih = empty(input, needs_weight, shape_of(weight_ih));
  Tensor grad_weight_hh = empty(input, needs_weight, shape_of(weight_hh));
  const auto multiply = [&](const Tensor& out, const Tensor& a, const Tensor& b) {
    product(out, a, b, call.products, device.stream);
  };
  if (needs_input) multiply(matrix_view(grad_input, rows, s.inputs), d_input, weight_ih);
  if (needs_weight) {
    const Tensor states = states_before(s, reverse, output, h_0);
    multiply(grad_weight_ih, torch::stable::transpose(d_input, 0, 1), matrix_view(input, rows, s.inputs));
    multiply(grad_weight_hh, torch::stable::transpose(d, 0, 1), states);
  }
  // torch's sum: its order is its own, but always the same.
  const auto sum = [&](const Tensor& t) {
    return torch::stable::sum(t, std::vector<int64_t>{0}, false, t.scalar_type());
  };
  Tensor grad_bias_ih = needs_bias ? sum(d_input) : empty(input, false, {});
  Tensor grad_bias_hh = needs_bias ? sum(d) : empty(input, false, {});
  return {grad_input, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, grad_h_0, grad_c_0};
}

}  // namespace

StepsOnDevice steps_on_device(const RecurrentCall& call) {
  const Sequences& sequences = call.shape.sequences;
  const int64_t steps = sequences.steps();
  const bool dense = sequences.is_dense();
  constexpr int64_t kChunk = std::size(OffsetChunk{}.values);
  Tensor offsets = new_tensor(call.weight_hh, {dense ? 0 : steps + 1}, ScalarType::Long);
  int64_t* const to = mutable_data<int64_t>(offsets);
  for (int64_t first = 0; !dense && first <= steps; first += kChunk) {
    OffsetChunk chunk;
    const int64_t count = std::min(kChunk, steps + 1 - first);
    for (int64_t i = 0; i < count; ++i) chunk.values[i] = sequences.offset(first + i);
    launch(store_offsets, 1, kChunk, 0, call.stream, to + first, count, chunk);
  }
  return {{steps, sequences.batch(), dense ? nullptr : to, call.reverse}, offsets};
}

}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("recurrent_forward", TORCH_BOX(&pyops::cuda::recurrent_forward));
  m.impl("recurrent_backward", TORCH_BOX(&pyops::cuda::recurrent_backward));
}
