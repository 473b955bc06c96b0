// Recurrent layers on CUDA, one direction of one layer per call. The products over all steps are the
// vendor's, through torch; the time loop is one launch, or a product and a launch per step (recurrent.cuh).
#include <tuple>

#include "../binding/matmul.h"
#include "recurrent.cuh"
#include "tensor.cuh"

namespace pyops::cuda {
namespace {

Tensor empty(const Tensor& like, bool needed, const std::vector<int64_t>& shape) {
  return new_tensor(like, needed ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

Tensor rows_of(Tensor t, int64_t first, int64_t count) { return torch::stable::narrow(t, 0, first, count); }

// The place of step t, seen from forward.
StepPlace place_of(const Sequences& sequences, bool reverse, int64_t t) {
  const int64_t before = reverse ? t + 1 : t - 1, after = reverse ? t - 1 : t + 1;
  const int64_t count = sequences.count(t);
  const int64_t before_count = std::min(sequences.count(before), count);
  return {sequences.offset(t), count, before_count > 0 ? sequences.offset(before) : 0, before_count,
          std::min(sequences.count(after), count)};
}

// How a whole loop is laid over blocks; not possible for weights that do not fit, and packed sequences, whose
// places are known to the host alone.
struct LoopLaunch {
  bool possible;
  unsigned blocks;
  dim3 threads;
  size_t shared;
};

template <class T>
LoopLaunch plan_loop(const RecurrentShape& s, int64_t length) {
  LoopLaunch plan{};
  const int64_t units = (s.hidden + 31) / 32 * 32;
  if (!s.sequences.is_dense() || units > kMostLoopThreads) return plan;
  const int64_t groups = std::max<int64_t>(1, kLoopThreads / units);
  const int64_t sequences = groups * kLoopSequences;
  const int64_t bytes = LoopShared<T>::bytes(s.gates, s.hidden, sequences, length);
  const int64_t blocks = (s.sequences.batch() + sequences - 1) / sequences;
  plan.possible = bytes <= kLoopSharedBytes && blocks < (int64_t{1} << 31);
  plan.blocks = static_cast<unsigned>(blocks);
  plan.threads = dim3(static_cast<unsigned>(units), static_cast<unsigned>(groups));
  plan.shared = static_cast<size_t>(bytes);
  return plan;
}

unsigned step_blocks(int64_t elements) {
  return static_cast<unsigned>(
      std::clamp<int64_t>((elements + kStepThreads - 1) / kStepThreads, 1, kMaxBlocks));
}

template <class T, class Cell>
void forward_steps(const ForwardData<T>& at, const RecurrentShape& s, bool reverse, const Tensor& weight_hh,
                   const Tensor& h_0, const std::optional<Tensor>& c_0, cudaStream_t stream) {
  const ScalarType acc = accumulate_type(h_0.scalar_type());
  const int64_t steps = s.sequences.steps();
  Tensor h = torch::stable::clone(h_0), sums = empty(h_0, true, {s.sequences.batch(), s.gates});
  Tensor c = new_tensor(h_0, c_0 ? shape_of(h_0) : std::vector<int64_t>{0}, acc);
  if (c_0) torch::stable::copy_(c, *c_0);
  const Tensor weights = torch::stable::transpose(weight_hh, 0, 1);
  for (int64_t i = 0; i < steps; ++i) {
    const StepPlace place = place_of(s.sequences, reverse, reverse ? steps - 1 - i : i);
    library_mm(rows_of(sums, 0, place.count), rows_of(h, 0, place.count), weights);
    launch(step_forward<T, Cell>, step_blocks(place.count * s.hidden), kStepThreads, 0, stream, at, place,
           s.hidden, data<T>(sums), mutable_data<T>(h), mutable_data<acc_t<T>>(c));
  }
}

template <class T, class Cell>
void backward_steps(const BackwardData<T>& at, const RecurrentShape& s, bool reverse, const Tensor& weight_hh,
                    const Tensor& d, cudaStream_t stream) {
  const int64_t steps = s.sequences.steps(), batch = s.sequences.batch();
  Tensor sums = empty(d, true, {batch, s.hidden});
  Tensor carry = new_tensor(d, {batch, s.hidden}, accumulate_type(d.scalar_type()));
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t t = reverse ? i : steps - 1 - i;
    const StepPlace place = place_of(s.sequences, reverse, t);
    if (place.ending > 0) {
      const int64_t after = s.sequences.offset(reverse ? t - 1 : t + 1);
      library_mm(rows_of(sums, 0, place.ending), rows_of(d, after, place.ending), weight_hh);
    }
    launch(step_backward<T, Cell>, step_blocks(place.count * s.hidden), kStepThreads, 0, stream, at, place,
           s.hidden, data<T>(sums), mutable_data<acc_t<T>>(carry));
  }
  if (at.grad_h_0 == nullptr) return;
  // The first step of a sequence is the first of all or, in reverse, its last in time.
  for (int64_t t = reverse ? steps - 1 : 0; t >= 0; --t) {
    const int64_t from = reverse ? s.sequences.count(t + 1) : 0, count = s.sequences.count(t) - from;
    if (count == 0) continue;
    library_mm(rows_of(sums, from, count), rows_of(d, s.sequences.offset(t) + from, count), weight_hh);
  }
  launch(initial_gradients<T, Cell>, step_blocks(batch * s.hidden), kStepThreads, 0, stream, batch * s.hidden,
         data<T>(sums), data<acc_t<T>>(carry), at.grad_h_0, at.grad_c_0);
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
  // An RNN's lies in the output, which replaces it step by step.
  const Tensor x = saves            ? gates
                   : !s.saves_gates ? matrix_view(output, rows, s.gates)
                                    : empty(input, true, {rows, s.gates});
  library_mm(x, matrix_view(input, rows, s.inputs), torch::stable::transpose(weight_ih, 0, 1));
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
      const LoopLaunch plan = plan_loop<T>(s, s.hidden);
      if (!plan.possible) {
        return forward_steps<T, Cell>(at, s, reverse, weight_hh, h_0, c_0, device.stream);
      }
      launch_large(loop_forward<T, Cell>, plan.blocks, plan.threads, plan.shared, device.stream, at,
                   LoopPlan{s.sequences.steps(), s.sequences.batch(), s.hidden, reverse}, data<T>(weight_hh));
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
  STD_TORCH_CHECK(s.sequences.steps() > 0, op, ": input must have at least one step");
  const DeviceScope device(input);
  const int64_t rows = s.sequences.rows();
  const bool splits = s.gradients > s.gates;
  Tensor grad_h_0 = empty(input, needs_state, shape_of(h_0));
  Tensor grad_c_0 = empty(input, needs_state && s.has_cell, shape_of(h_0));
  Tensor d = empty(input, true, {rows, s.gates}), d_input = d;
  if (splits) d_input = empty(input, true, {rows, s.gates});
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
      const LoopLaunch plan = plan_loop<T>(s, s.gates);
      if (!plan.possible) return backward_steps<T, Cell>(at, s, reverse, weight_hh, d, device.stream);
      launch_large(loop_backward<T, Cell>, plan.blocks, plan.threads, plan.shared, device.stream, at,
                   LoopPlan{s.sequences.steps(), s.sequences.batch(), s.hidden, reverse}, data<T>(weight_hh));
    });
  });
  Tensor grad_input = empty(input, needs_input, shape_of(input));
  Tensor grad_weight_ih = empty(input, needs_weight, shape_of(weight_ih));
  Tensor grad_weight_hh = empty(input, needs_weight, shape_of(weight_hh));
  if (needs_input) library_mm(matrix_view(grad_input, rows, s.inputs), d_input, weight_ih);
  if (needs_weight) {
    const Tensor states = states_before(s, reverse, output, h_0);
    library_mm(grad_weight_ih, torch::stable::transpose(d_input, 0, 1), matrix_view(input, rows, s.inputs));
    library_mm(grad_weight_hh, torch::stable::transpose(d, 0, 1), states);
  }
  // A sum in an order of torch's own, that is always the same.
  const auto sum = [&](const Tensor& t) {
    return torch::stable::sum(t, std::vector<int64_t>{0}, false, t.scalar_type());
  };
  Tensor grad_bias_ih = needs_bias ? sum(d_input) : empty(input, false, {});
  Tensor grad_bias_hh = needs_bias ? sum(d) : empty(input, false, {});
  return {grad_input, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, grad_h_0, grad_c_0};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("recurrent_forward", TORCH_BOX(&pyops::cuda::recurrent_forward));
  m.impl("recurrent_backward", TORCH_BOX(&pyops::cuda::recurrent_backward));
}
