// Batch normalisation on CUDA.
//
// Where a channel, or a strip of columns, fits into the shared memory of one block, a kernel reads it once,
// sums it, and writes from what it has kept. Elsewhere one kernel sums, a small one merges the blocks'
// results in a fixed order, and a third writes. Backward does the same with the gradient beside the input. No
// block waits for another.
#include "cuda/batch_norm/backward.cuh"
#include "cuda/device/tensor.cuh"

namespace pyops::cuda {
namespace {

unsigned finish_blocks(int64_t channels) {
  constexpr int64_t kPerBlock = kFinishThreads / kWarpSize;
  return static_cast<unsigned>(ceil_div(channels, kPerBlock));
}

// Several blocks share a channel or strip.
NormPlan split_plan(const BatchNormShape& s, bool aligned) {
  return NormPlan::of(s, kMaxStrip, false, aligned);
}

// A block has a whole channel or strip and keeps it of so many tensors; none if that does not fit.
template <class T>
std::optional<NormPlan> whole_plan(const BatchNormShape& s, int tensors, const NormActivation& activation,
                                   bool aligned) {
  if (activation.other() || (!s.has_runs() && s.inner > 1)) return std::nullopt;
  const NormPlan plan = NormPlan::of(
      s, std::max<int64_t>(1, kStashStrip * int64_t{sizeof(float)} / 2 / sizeof(T)), true, aligned);
  if (tensors * Stash<T>::bytes(plan.share) > kStashBytes) return std::nullopt;
  return plan;
}

Tensor new_results(const NormPlan& plan, const Tensor& like, int64_t doubles) {
  return new_tensor(like, {plan.results() * plan.shape.channels * doubles}, ScalarType::Double);
}

template <class T>
Tensor block_moments(const NormPlan& plan, const Tensor& input, cudaStream_t stream) {
  Tensor results = new_results(plan, input, 3);
  launch(batch_norm_statistics_kernel<T>, plan.blocks(), kNormThreads, 0, stream, plan, data<T>(input),
         reinterpret_cast<Moments*>(mutable_data<double>(results)));
  return results;
}

template <class T>
void run_forward(const BatchNormShape& s, const BatchNormArguments& given, const Tensor& input,
                 const ForwardTensors<T>& t, const StatisticsOutputs<T>& outputs, bool own,
                 cudaStream_t stream) {
  const bool aligned = same_alignment(t.x, t.y, t.residual ? t.residual : t.x);
  if (const auto whole = whole_plan<T>(s, 1, t.activation, aligned); own && whole) {
    const int64_t bytes = Stash<T>::bytes(whole->share);
    return launch_large(batch_norm_forward_kernel<T>, whole->blocks(), kNormThreads, bytes, stream, *whole, t,
                        outputs);
  }
  const NormPlan plan = split_plan(s, aligned);
  if (own) {
    const Tensor results = block_moments<T>(plan, input, stream);
    launch(batch_norm_finish_kernel<T>, finish_blocks(s.channels), kFinishThreads, 0, stream, plan,
           reinterpret_cast<const Moments*>(data<double>(results)), outputs);
  } else {
    const auto blocks = static_cast<unsigned>(ceil_div(s.channels, kFinishThreads));
    launch(batch_norm_known_kernel<T>, blocks, kFinishThreads, 0, stream, s.channels,
           data_or_null<double>(given.statistics), outputs);
  }
  const auto kernel =
      t.activation.other() ? batch_norm_normalize_kernel<T, true> : batch_norm_normalize_kernel<T, false>;
  launch(kernel, plan.blocks(), kNormThreads, 0, stream, plan, t);
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
  const DeviceScope device(input);
  const ScalarType type = input.scalar_type();
  Tensor output = new_tensor(input, shape_of(input), type);
  Tensor mean = new_tensor(input, {s.channels}, ScalarType::Double);
  Tensor rstd = new_tensor(input, {s.channels}, accumulate_type(type));
  const std::vector<int64_t> mask_shape{save_mask ? s.rows() : 0, save_mask ? s.mask_bytes() : 0};
  Tensor mask = new_tensor(input, mask_shape, ScalarType::Byte);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    if (s.numel() == 0) return;
    const NormParameters<T> parameters{ChannelVector<T>::of(weight), ChannelVector<T>::of(bias),
                                       mutable_data<double>(mean), mutable_data<acc_t<T>>(rstd)};
    const ForwardTensors<T> t{data<T>(input),
                              data_or_null<T>(residual),
                              mutable_data<T>(output),
                              save_mask ? mutable_data<uint8_t>(mask) : nullptr,
                              parameters,
                              {params}};
    const StatisticsOutputs<T> outputs{parameters.mean,
                                       parameters.rstd,
                                       ChannelVector<T>::of(running_mean),
                                       ChannelVector<T>::of(running_var),
                                       momentum,
                                       eps};
    run_forward(s, given, input, t, outputs, training && !statistics, device.stream);
  });
  return {output, mean, rstd, mask};
}

Tensor batch_norm_statistics(Tensor input, int64_t dim) {
  const char* op = "batch_norm_statistics";
  const BatchNormShape s = BatchNormShape::of(input, dim, op);
  const DeviceScope device(input);
  Tensor statistics = new_tensor(input, {2, s.channels}, ScalarType::Double);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.channels == 0) return;
    if (s.numel() == 0) {
      check(cudaMemsetAsync(statistics.mutable_data_ptr(), 0, 2 * s.channels * sizeof(double), device.stream),
            "clearing the statistics");
      return;
    }
    const NormPlan plan = split_plan(s, true);
    const Tensor results = block_moments<T>(plan, input, device.stream);
    launch(batch_norm_merge_kernel, finish_blocks(s.channels), kFinishThreads, 0, device.stream, plan,
           reinterpret_cast<const Moments*>(data<double>(results)), mutable_data<double>(statistics));
  });
  return statistics;
}

template <class T>
BackwardTensors<T> backward_tensors(const BatchNormSaved& saved, const Tensor& grad, const Tensor& input,
                                    const NormActivation& activation) {
  // The kernels take forward's parameters, which write mean and rstd; backward's only read them.
  return {data<T>(grad),
          data<T>(input),
          data_or_null<T>(saved.residual),
          data_or_null<uint8_t>(saved.mask),
          nullptr,
          nullptr,
          {ChannelVector<T>::of(saved.weight), ChannelVector<T>::of(saved.bias),
           const_cast<double*>(data<double>(saved.mean)), const_cast<acc_t<T>*>(data<acc_t<T>>(saved.rstd))},
          activation,
          false};
}

template <class T>
void sum_gradients(const NormPlan& plan, const BackwardTensors<T>& t, const Tensor& like, double* sums,
                   const AffineGradients<T>& affine, cudaStream_t stream) {
  const Tensor results = new_results(plan, like, 2);
  auto* const pairs = reinterpret_cast<PairOfSums*>(mutable_data<double>(results));
  const auto kernel = t.activation.other() ? batch_norm_gradient_sums_kernel<T, true>
                                           : batch_norm_gradient_sums_kernel<T, false>;
  launch(kernel, plan.blocks(), kNormThreads, 0, stream, plan, t, pairs);
  launch(batch_norm_finish_gradients_kernel<T>, finish_blocks(plan.shape.channels), kFinishThreads, 0, stream,
         plan, static_cast<const PairOfSums*>(pairs), sums, affine);
}

template <class T>
void run_backward(const BatchNormShape& s, const std::optional<Tensor>& mean_gradients,
                  const BackwardTensors<T>& t, const AffineGradients<T>& affine, bool sums_needed,
                  const Tensor& like, cudaStream_t stream) {
  const bool aligned = same_alignment(t.x, t.grad, t.residual ? t.residual : t.x, t.dx ? t.dx : t.x,
                                      t.dresidual ? t.dresidual : t.x);
  const bool writes = t.dx || t.dresidual;
  const Tensor sums = new_tensor(like, {2, s.channels}, ScalarType::Double);
  double* const sums_data = mutable_data<double>(sums);
  if (const auto whole = whole_plan<T>(s, 2, t.activation, aligned);
      whole && writes && sums_needed && !mean_gradients) {
    const int64_t bytes = 2 * Stash<T>::bytes(whole->share);
    return launch_large(batch_norm_backward_kernel<T>, whole->blocks(), kNormThreads, bytes, stream, *whole,
                        t, sums_data, affine);
  }
  const NormPlan plan = split_plan(s, aligned);
  if (sums_needed) sum_gradients(plan, t, like, sums_data, affine, stream);
  if (!writes) return;
  const double* const means = mean_gradients ? data<double>(*mean_gradients) : sums_data;
  const double count = mean_gradients ? 1.0 : static_cast<double>(s.count());
  const auto kernel = t.activation.other() ? batch_norm_input_gradient_kernel<T, true>
                                           : batch_norm_input_gradient_kernel<T, false>;
  launch(kernel, plan.blocks(), kNormThreads, 0, stream, plan, t, means, count);
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
  const DeviceScope device(input);
  const auto image = [&](bool needed) {
    return new_tensor(input, needed ? shape_of(input) : std::vector<int64_t>{0}, input.scalar_type());
  };
  Tensor grad_input = image(needs_input), grad_residual = image(needs_residual);
  const std::vector<int64_t> size{needs_affine ? s.channels : 0};
  Tensor grad_weight = new_tensor(input, size, saved.parameter_type());
  Tensor grad_bias = new_tensor(input, size, saved.parameter_type());
  if (s.numel() == 0) {
    for (const Tensor& t : {grad_weight, grad_bias}) {
      if (t.numel() == 0) continue;
      check(cudaMemsetAsync(t.mutable_data_ptr(), 0, t.numel() * t.element_size(), device.stream),
            "clearing the gradients");
    }
    return {grad_input, grad_weight, grad_bias, grad_residual};
  }
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    BackwardTensors<T> t = backward_tensors<T>(saved, grad_output, input, {params});
    t.dx = needs_input ? mutable_data<T>(grad_input) : nullptr;
    t.dresidual = needs_residual ? mutable_data<T>(grad_residual) : nullptr;
    t.through_statistics = needs_input && training;
    AffineGradients<T> affine{{nullptr, false}, {nullptr, false}, t.parameters.rstd};
    if (needs_affine)
      affine.weight = ChannelVector<T>::of(grad_weight), affine.bias = ChannelVector<T>::of(grad_bias);
    const bool sums_needed = needs_affine || (t.through_statistics && !mean_gradients);
    run_backward(s, mean_gradients, t, affine, sums_needed, input, device.stream);
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
  const DeviceScope device(input);
  Tensor sums = new_tensor(input, {2, s.channels}, ScalarType::Double);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.channels == 0) return;
    if (s.numel() == 0) {
      check(cudaMemsetAsync(sums.mutable_data_ptr(), 0, 2 * s.channels * sizeof(double), device.stream),
            "clearing the sums");
      return;
    }
    const BackwardTensors<T> t = backward_tensors<T>(saved, grad_output, input, {params});
    const bool aligned = same_alignment(t.x, t.grad, t.residual ? t.residual : t.x);
    const AffineGradients<T> none{{nullptr, false}, {nullptr, false}, t.parameters.rstd};
    sum_gradients(split_plan(s, aligned), t, input, mutable_data<double>(sums), none, device.stream);
  });
  return sums;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("batch_norm_forward", TORCH_BOX(&pyops::cuda::batch_norm_forward));
  m.impl("batch_norm_backward", TORCH_BOX(&pyops::cuda::batch_norm_backward));
  m.impl("batch_norm_statistics", TORCH_BOX(&pyops::cuda::batch_norm_statistics));
  m.impl("batch_norm_backward_sums", TORCH_BOX(&pyops::cuda::batch_norm_backward_sums));
}
