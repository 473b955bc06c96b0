// Batch normalisation on the CPU.
//
// In training, forward needs two passes over the input, and backward two over the input and the gradient.
// Memory bounds them: where a channel lies in runs, the second pass finds it in cache (runs.h), and large
// outputs are written past the caches.
#include "cpu/batch_norm/backward.h"
#include "cpu/batch_norm/forward.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

// Mean and rstd where they are not the batch's own.
template <class T>
void running_statistics(const BatchNormArguments& given, const BatchNormShape& s, double eps, double* mean,
                        acc_t<T>* rstd) {
  const auto means = channel_values<T>(given.running_mean, s.channels, 0);
  const auto vars = channel_values<T>(given.running_var, s.channels, 1);
  for (int64_t c = 0; c < s.channels; ++c) {
    mean[c] = means[c];
    rstd[c] = static_cast<acc_t<T>>(math::reciprocal_deviation(vars[c], eps));
  }
}

void update_running(const BatchNormArguments& given, const BatchNormShape& s,
                    const std::vector<Moments>& moments, double momentum) {
  if (given.running_mean) {
    update_channels(*given.running_mean, s.channels, [&](double running, int64_t c) {
      return math::moved_average(running, moments[c].mean, momentum);
    });
  }
  if (given.running_var) {
    update_channels(*given.running_var, s.channels, [&](double running, int64_t c) {
      return math::moved_average(running, math::unbiased(moments[c].variance(), moments[c].count), momentum);
    });
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward(
    Tensor input, std::optional<Tensor> weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
    std::optional<Tensor> running_mean, std::optional<Tensor> running_var, std::optional<Tensor> statistics,
    int64_t dim, bool training, double momentum, double eps, int64_t kind, double alpha, double beta,
    bool save_mask) {
  const char* op = "batch_norm_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const BatchNormArguments given{weight, bias, residual, running_mean, running_var, statistics};
  const BatchNormShape s = given.check(input, dim, training, params, save_mask, op);
  const ScalarType type = input.scalar_type();
  Tensor output = new_output(input, shape_of(input), type);
  Tensor mean = new_tensor(input, {s.channels}, ScalarType::Double);
  Tensor rstd = new_tensor(input, {s.channels}, accumulate_type(type));
  Tensor mask = new_output(
      input, save_mask ? std::vector<int64_t>{s.rows(), s.mask_bytes()} : std::vector<int64_t>{0, 0},
      ScalarType::Byte);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const bool own = training && !statistics && s.numel() > 0;
    if (!own && !statistics)
      running_statistics<T>(given, s, eps, mutable_data<double>(mean), mutable_data<Acc>(rstd));
    Forward<T> forward{s,
                       given,
                       data<T>(input),
                       mutable_data<T>(output),
                       save_mask ? mutable_data<uint8_t>(mask) : nullptr,
                       mutable_data<double>(mean),
                       mutable_data<Acc>(rstd),
                       own,
                       eps,
                       streams(output),
                       channel_values<T>(weight, s.channels, 1),
                       channel_values<T>(bias, s.channels, 0),
                       std::vector<Moments>(own ? s.channels : 0),
                       ChannelTable<T>(s, !s.has_runs() && !Strips::suit(s, sizeof(T)))};
    with_activation<Acc>(params, [&](const auto& activation) { forward.normalize(activation); });
    if (own) update_running(given, s, forward.moments, momentum);
  });
  return {output, mean, rstd, mask};
}

Tensor batch_norm_statistics(Tensor input, int64_t dim) {
  const char* op = "batch_norm_statistics";
  const BatchNormShape s = BatchNormShape::of(input, dim, op);
  Tensor statistics = new_tensor(input, {2, s.channels}, ScalarType::Double);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    std::vector<Moments> moments(s.channels);
    if (s.numel() > 0 && s.has_runs()) {
      run_moments(Runs::of(s), data<T>(input), moments.data());
    } else if (s.numel() > 0 && Strips::suit(s, sizeof(T))) {
      const Strips strips = Strips::of(s, sizeof(T));
      strips.for_each(1, [&](int64_t begin, int64_t end) {
        strip_moments(strips, data<T>(input), begin, end, moments.data());
      });
    } else if (s.numel() > 0) {
      column_moments(Columns::of(s), data<T>(input), moments.data());
    }
    double* const to = mutable_data<double>(statistics);
    for (int64_t c = 0; c < s.channels; ++c) to[c] = moments[c].mean, to[s.channels + c] = moments[c].m2;
  });
  return statistics;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(
    Tensor grad_output, Tensor input, std::optional<Tensor> weight, std::optional<Tensor> bias,
    std::optional<Tensor> residual, std::optional<Tensor> mask, Tensor mean, Tensor rstd,
    std::optional<Tensor> mean_gradients, int64_t dim, bool training, int64_t kind, double alpha, double beta,
    bool needs_input, bool needs_affine, bool needs_residual) {
  const char* op = "batch_norm_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const BatchNormSaved saved{weight, bias, residual, mask, mean, rstd, mean_gradients};
  const BatchNormShape s = saved.check(grad_output, input, dim, params, op);
  const ScalarType type = input.scalar_type();
  const auto image = [&](bool needed) {
    return new_output(input, needed ? shape_of(input) : std::vector<int64_t>{0}, type);
  };
  const auto vector = [&] {
    return new_tensor(input, {needs_affine ? s.channels : 0}, saved.parameter_type());
  };
  Tensor grad_input = image(needs_input), grad_residual = image(needs_residual);
  Tensor grad_weight = vector(), grad_bias = vector();
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    auto backward = Backward<T>::of(s, saved, grad_output, input, params);
    const bool through_statistics = needs_input && training;
    const bool sums_needed = needs_affine || (through_statistics && !mean_gradients);
    const GradientOutputs<T> to{needs_input ? mutable_data<T>(grad_input) : nullptr,
                                needs_residual ? mutable_data<T>(grad_residual) : nullptr, through_statistics,
                                streams(input)};
    backward.with_kind([&](auto of) { backward.template compute<decltype(of)::value>(to, sums_needed); });
    if (!needs_affine) return;
    update_channels(grad_weight, s.channels, [&](double, int64_t c) {
      return backward.sums[c].product * static_cast<double>(backward.rstd(c));
    });
    update_channels(grad_bias, s.channels, [&](double, int64_t c) { return backward.sums[c].grad; });
  });
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

Tensor batch_norm_backward_sums(Tensor grad_output, Tensor input, std::optional<Tensor> weight,
                                std::optional<Tensor> bias, std::optional<Tensor> residual,
                                std::optional<Tensor> mask, Tensor mean, Tensor rstd, int64_t dim,
                                int64_t kind, double alpha, double beta) {
  const char* op = "batch_norm_backward_sums";
  const math::ActivationParams params{kind, alpha, beta};
  const BatchNormSaved saved{weight, bias, residual, mask, mean, rstd, std::nullopt};
  const BatchNormShape s = saved.check(grad_output, input, dim, params, op);
  Tensor result = new_tensor(input, {2, s.channels}, ScalarType::Double);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    auto backward = Backward<T>::of(s, saved, grad_output, input, params);
    backward.with_kind([&](auto of) { backward.template sum_all<decltype(of)::value>(); });
    double* const to = mutable_data<double>(result);
    for (int64_t c = 0; c < s.channels; ++c) {
      to[c] = backward.sums[c].grad, to[s.channels + c] = backward.sums[c].product;
    }
  });
  return result;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("batch_norm_forward", TORCH_BOX(&pyops::cpu::batch_norm_forward));
  m.impl("batch_norm_backward", TORCH_BOX(&pyops::cpu::batch_norm_backward));
  m.impl("batch_norm_statistics", TORCH_BOX(&pyops::cpu::batch_norm_statistics));
  m.impl("batch_norm_backward_sums", TORCH_BOX(&pyops::cpu::batch_norm_backward_sums));
}
