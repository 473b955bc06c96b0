// Layer and group normalisation on CUDA.
//
// A row is summed twice, for its mean and for its variance, and then written; one that fits stays in
// registers meanwhile (CachedRows). Backward sums a row once. The parameters' gradients are sums over rows:
// down the columns of slices of rows, or of each channel's run of neighbours, and then over these in order.
#include <tuple>

#include "binding/layer_norm.h"
#include "cuda/device/blocks.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/device/tensor.cuh"
#include "cuda/epilogue/fused.cuh"
#include "math/batch_norm.h"
#include "math/layer_norm.h"

namespace pyops::cuda {
namespace {

constexpr int kCachedPacks = 8;  // per thread, over all inputs: 32 registers
constexpr int kThreads = 256;
constexpr int64_t kRowsPerSum = 32;  // at least, so that the sums are few beside the elements
constexpr int64_t kMostSlices = 128;

// A row's numbers, and what its elements are scaled by.
template <class Acc>
struct Parameters {
  const Acc* weight;  // null: 1
  const Acc* bias;    // null: 0
  Acc* mean;
  Acc* rstd;

  __device__ __forceinline__ Acc weight_at(int64_t i) const { return weight ? weight[i] : Acc(1); }
  __device__ __forceinline__ Acc bias_at(int64_t i) const { return bias ? bias[i] : Acc(0); }
};

// Which parameter an element has: that of its channel, in a row of one of the groups.
struct Channels {
  int64_t inner;
  int64_t groups;
  int64_t of_row;
  __device__ __forceinline__ int64_t first(int64_t row) const {
    return groups == 1 ? 0 : row % groups * of_row;
  }
  __device__ __forceinline__ int64_t of(int64_t element) const {
    return inner == 1 ? element : element / inner;
  }
};

template <class T, class Layout, class Activation>
__global__ void __launch_bounds__(Layout::kMaxThreads, Layout::kMinBlocks)
    layer_norm_forward_kernel(RowShape shape, Channels channels, const T* input, Parameters<acc_t<T>> p,
                              double eps, Activation activation, T* output) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  const T* const inputs[1] = {input};
  const Acc scale = Acc(1) / static_cast<Acc>(shape.classes);
  layout.for_each_row([&](const Row& row) {
    layout.load(row, inputs);
    Acc sum[1] = {Acc(0)};
    layout.template for_each<4>(row, inputs, [&](ClassRange, auto& x) {
      for (const Acc value : x[0]) sum[0] += value;
    });
    layout.template reduce<Sum>(sum);
    const Acc near = sum[0] * scale;
    // The sum of deviations, which would be 0 of an exact mean, takes its rounding out of both.
    Acc sums[2] = {Acc(0), Acc(0)};
    layout.template for_each<4>(row, inputs, [&](ClassRange, auto& x) {
      for (const Acc value : x[0]) {
        const Acc d = value - near;
        sums[0] += d;
        sums[1] += d * d;
      }
    });
    layout.template reduce<Sum>(sums);
    const math::Moments moments =
        math::Moments::of(static_cast<double>(shape.classes), near, sums[0], sums[1]);
    const Acc mean = static_cast<Acc>(moments.mean);
    const Acc rstd = static_cast<Acc>(math::reciprocal_deviation(moments.m2 / moments.count, eps));
    if (row.active && layout.lane() == 0) {
      p.mean[row.index] = mean;
      p.rstd[row.index] = rstd;
    }
    const int64_t first = channels.first(row.index);
    layout.template for_each<1>(row, inputs, [&](ClassRange at, auto& x) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(x)>, 1>;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const int64_t c = first + channels.of(at[k]);
        x[0][k] = math::scaled(math::standardized(x[0][k], mean, rstd), p.weight_at(c), p.bias_at(c));
      }
      activate(activation, x[0]);
      layout.store(output, row, at, x[0]);
    });
  });
}

// values[1], the upstream gradients, become those of what the activation gets, and values[0] standardized.
template <class Acc, class Activation, int kCount>
__device__ __forceinline__ void prepare(Acc (&values)[2][kCount], const int64_t (&c)[kCount], Acc mean,
                                        Acc rstd, const Parameters<Acc>& p, const Activation& activation) {
  Acc saved[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[0][k] = math::standardized(values[0][k], mean, rstd);
    saved[k] = math::scaled(values[0][k], p.weight_at(c[k]), p.bias_at(c[k]));
  }
  differentiate(activation, false, saved, values[1]);
}

template <class T, class Layout, class Activation>
__global__ void __launch_bounds__(Layout::kMaxThreads, 1)
    layer_norm_backward_kernel(RowShape shape, Channels channels, const T* input, const T* grad_output,
                               Parameters<acc_t<T>> p, Activation activation, T* grad_input) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  const T* const inputs[2] = {input, grad_output};
  const Acc scale = Acc(1) / static_cast<Acc>(shape.classes);
  layout.for_each_row([&](const Row& row) {
    layout.load(row, inputs);
    const Acc mean = row.active ? p.mean[row.index] : Acc(0), rstd = row.active ? p.rstd[row.index] : Acc(0);
    const int64_t first = channels.first(row.index);
    const auto weighted = [&](ClassRange at, auto& v) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
      int64_t c[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) c[k] = first + channels.of(at[k]);
      prepare(v, c, mean, rstd, p, activation);
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[1][k] *= p.weight_at(c[k]);
    };
    Acc sums[2] = {Acc(0), Acc(0)};
    layout.template for_each<1>(row, inputs, [&](ClassRange at, auto& v) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
      weighted(at, v);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        sums[0] += v[1][k];
        sums[1] += v[1][k] * v[0][k];
      }
    });
    layout.template reduce<Sum>(sums);
    layout.template for_each<1>(row, inputs, [&](ClassRange at, auto& v) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
      weighted(at, v);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        v[0][k] = math::row_gradient(v[1][k], v[0][k], sums[0] * scale, sums[1] * scale, rstd);
      }
      layout.store(grad_input, row, at, v[0]);
    });
  });
}

// ---- the parameters' gradients --------------------------------------------------------------------------

// Channels of one element: a thread takes a pack's columns, of rows slice, slice + slices, ... To
// sums[slice, 2, columns], where `columns` are the parameters.
template <class T, class Activation>
__global__ void __launch_bounds__(kThreads)
    layer_norm_columns_kernel(int64_t rows, int64_t columns, int64_t of_row, int64_t slices, int64_t blocks,
                              bool aligned, const T* input, const T* grad_output, Parameters<acc_t<T>> p,
                              Activation activation, acc_t<T>* sums) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const int64_t slice = blockIdx.x / blocks;
  const int64_t column = ((blockIdx.x % blocks) * kThreads + threadIdx.x) * kSize;
  if (column >= columns) return;
  const int64_t groups = columns / of_row;
  Acc products[kSize], plain[kSize];
  int64_t c[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    products[k] = plain[k] = Acc(0);
    c[k] = column + k < columns ? column + k : columns - 1;
  }
  for (int64_t row = slice; row < rows / groups; row += slices) {
    const int64_t at = row * columns + column;
    Acc v[2][kSize];
    if (aligned && column + kSize <= columns) {
      widen(load_pack(input + at), v[0]);
      widen(load_pack(grad_output + at), v[1]);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        const bool exists = column + k < columns;
        v[0][k] = exists ? to_acc(input[at + k]) : Acc(0);
        v[1][k] = exists ? to_acc(grad_output[at + k]) : Acc(0);
      }
    }
    // A pack may cross from one group to the next.
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      Acc one[2][1] = {{v[0][k]}, {v[1][k]}};
      const int64_t at_row = row * groups + c[k] / of_row;
      const int64_t parameter[1] = {c[k]};
      prepare(one, parameter, p.mean[at_row], p.rstd[at_row], p, activation);
      products[k] += one[1][0] * one[0][0];
      plain[k] += one[1][0];
    }
  }
  Acc* const to = sums + slice * 2 * columns;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (column + k >= columns) break;
    to[column + k] = products[k];
    to[columns + column + k] = plain[k];
  }
}

// Channels of several elements, each one a row of this kernel: to sums[sample, 2, channel].
template <class T, class Layout, class Activation>
__global__ void __launch_bounds__(Layout::kMaxThreads, 1)
    layer_norm_channels_kernel(RowShape shape, int64_t of_row, int64_t parameters, const T* input,
                               const T* grad_output, Parameters<acc_t<T>> p, Activation activation,
                               acc_t<T>* sums) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  const T* const inputs[2] = {input, grad_output};
  layout.for_each_row([&](const Row& row) {
    const int64_t sample = row.index / parameters, channel = row.index - sample * parameters;
    const int64_t normalised = row.index / of_row;
    const Acc mean = row.active ? p.mean[normalised] : Acc(0),
              rstd = row.active ? p.rstd[normalised] : Acc(0);
    Acc total[2] = {Acc(0), Acc(0)};
    layout.template for_each<1>(row, inputs, [&](ClassRange, auto& v) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
      int64_t c[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) c[k] = channel;
      prepare(v, c, mean, rstd, p, activation);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        total[0] += v[1][k] * v[0][k];
        total[1] += v[1][k];
      }
    });
    layout.template reduce<Sum>(total);
    if (row.active && layout.lane() == 0) {
      sums[(2 * sample) * parameters + channel] = total[0];
      sums[(2 * sample + 1) * parameters + channel] = total[1];
    }
  });
}

// Adds up sums[parts, 2, columns].
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    layer_norm_finish_kernel(int64_t parts, int64_t columns, const Acc* sums, Acc* grad_weight,
                             Acc* grad_bias) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t c = blockIdx.x * int64_t{kThreads} + threadIdx.x; c < columns; c += step) {
    double products = 0, plain = 0;
    for (int64_t part = 0; part < parts; ++part) {
      products += sums[part * 2 * columns + c];
      plain += sums[(part * 2 + 1) * columns + c];
    }
    grad_weight[c] = static_cast<Acc>(products);
    grad_bias[c] = static_cast<Acc>(plain);
  }
}

// ---- launching ------------------------------------------------------------------------------------------

template <class Layout>
struct LayoutTag {
  using type = Layout;
};

template <class Activation>
constexpr bool kChosenAtRunTime =
    std::is_same_v<Activation, AnyActivation<float>> || std::is_same_v<Activation, AnyActivation<double>>;

// Calls run(LayoutTag<Layout>{}, plan) with the layout that suits rows of `size` elements. All activations
// are too much code for each pack of a cached row: with them there is one layout.
template <class T, int kInputs, class Activation, class F>
void with_layout(int64_t rows, int64_t size, bool aligned, const F& run) {
  if constexpr (kChosenAtRunTime<Activation>) {
    run(LayoutTag<ContiguousRows<T>>{}, plan_rows<T>(rows, size, 1, aligned));
  } else {
    constexpr int kPacks = kCachedPacks / kInputs;
    const RowLaunch cached = plan_rows<T>(rows, size, 1, aligned, kMaxCachedThreads);
    if (cached.columns) return run(LayoutTag<ColumnRows<T>>{}, cached);
    if (cached.packs_per_thread <= kPacks) return run(LayoutTag<CachedRows<T, kInputs, kPacks>>{}, cached);
    run(LayoutTag<ContiguousRows<T>>{}, plan_rows<T>(rows, size, 1, aligned));
  }
}

// Calls f(activation): nothing at all, or one chosen at run time.
template <class Acc, class F>
void with_any_activation(const math::ActivationParams& params, const F& f) {
  if (params.is(math::ActivationKind::kIdentity)) return f(OneActivation<math::Identity<Acc>>{});
  f(AnyActivation<Acc>{params});
}

Channels channels_of(const LayerNormShape& s) { return {s.inner, s.groups, s.channels()}; }

template <class T>
void forward(const LayerNormShape& s, const T* x, const Parameters<acc_t<T>>& p, double eps,
             const math::ActivationParams& params, T* y, cudaStream_t stream) {
  with_any_activation<acc_t<T>>(params, [&](auto activation) {
    with_layout<T, 1, decltype(activation)>(
        s.rows, s.size, same_alignment(x, y), [&](auto tag, const RowLaunch& plan) {
          using Layout = typename decltype(tag)::type;
          launch(layer_norm_forward_kernel<T, Layout, decltype(activation)>, plan.blocks, plan.threads, 0,
                 stream, plan.shape, channels_of(s), x, p, eps, activation, y);
        });
  });
}

template <class T, class Activation>
Tensor sum_columns(const LayerNormShape& s, const T* x, const T* grad, const Parameters<acc_t<T>>& p,
                   const Activation& activation, const Tensor& like, cudaStream_t stream) {
  const int64_t columns = s.parameters(), rows = s.rows / s.groups;
  const int64_t slices = std::clamp<int64_t>(rows / kRowsPerSum, 1, kMostSlices);
  const int64_t blocks = ceil_div(columns, kThreads * Pack<T>::kSize);
  Tensor sums = new_tensor(like, {slices, 2, columns}, accumulate_type(like.scalar_type()));
  const bool aligned = is_aligned(x) && is_aligned(grad) && columns % Pack<T>::kSize == 0;
  launch(layer_norm_columns_kernel<T, Activation>, static_cast<unsigned>(slices * blocks), kThreads, 0,
         stream, s.rows, columns, s.channels(), slices, blocks, aligned, x, grad, p, activation,
         mutable_data<acc_t<T>>(sums));
  return sums;
}

template <class T, class Activation>
Tensor sum_channels(const LayerNormShape& s, const T* x, const T* grad, const Parameters<acc_t<T>>& p,
                    const Activation& activation, const Tensor& like, cudaStream_t stream) {
  const int64_t samples = s.rows / s.groups;
  Tensor sums = new_tensor(like, {samples, 2, s.parameters()}, accumulate_type(like.scalar_type()));
  const RowLaunch plan = plan_rows<T>(samples * s.parameters(), s.inner, 1, same_alignment(x, grad));
  launch(layer_norm_channels_kernel<T, ContiguousRows<T>, Activation>, plan.blocks, plan.threads, 0, stream,
         plan.shape, s.channels(), s.parameters(), x, grad, p, activation, mutable_data<acc_t<T>>(sums));
  return sums;
}

template <class T>
void backward(const LayerNormShape& s, const T* x, const T* grad, const Parameters<acc_t<T>>& p,
              const math::ActivationParams& params, T* dx, acc_t<T>* dweight, acc_t<T>* dbias,
              const Tensor& like, cudaStream_t stream) {
  using Acc = acc_t<T>;
  with_any_activation<Acc>(params, [&](auto activation) {
    with_layout<T, 2, decltype(activation)>(
        s.rows, s.size, same_alignment(x, grad, dx), [&](auto tag, const RowLaunch& plan) {
          using Layout = typename decltype(tag)::type;
          launch(layer_norm_backward_kernel<T, Layout, decltype(activation)>, plan.blocks, plan.threads, 0,
                 stream, plan.shape, channels_of(s), x, grad, p, activation, dx);
        });
    if (!dweight) return;
    const Tensor sums = s.inner == 1 ? sum_columns(s, x, grad, p, activation, like, stream)
                                     : sum_channels(s, x, grad, p, activation, like, stream);
    launch(layer_norm_finish_kernel<Acc>, blocks_for(s.parameters(), kThreads), kThreads, 0, stream,
           sums.size(0), s.parameters(), data<Acc>(sums), dweight, dbias);
  });
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(Tensor input, std::optional<Tensor> weight,
                                                      std::optional<Tensor> bias, int64_t size, int64_t inner,
                                                      int64_t groups, double eps, int64_t kind, double alpha,
                                                      double beta) {
  const char* op = "layer_norm_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const LayerNormShape s = check_layer_norm(input, weight, bias, size, inner, groups, params, op);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  const ScalarType acc = accumulate_type(input.scalar_type());
  Tensor mean = new_tensor(input, {s.rows}, acc), rstd = new_tensor(input, {s.rows}, acc);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (s.rows == 0) return;
    const Parameters<Acc> p{data_or_null<Acc>(weight), data_or_null<Acc>(bias), mutable_data<Acc>(mean),
                            mutable_data<Acc>(rstd)};
    forward(s, data<T>(input), p, eps, params, mutable_data<T>(output), device.stream);
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad_output, Tensor input,
                                                       std::optional<Tensor> weight,
                                                       std::optional<Tensor> bias, Tensor mean, Tensor rstd,
                                                       int64_t size, int64_t inner, int64_t groups,
                                                       int64_t kind, double alpha, double beta,
                                                       bool needs_parameters) {
  const char* op = "layer_norm_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const LayerNormShape s = check_layer_norm(input, weight, bias, size, inner, groups, params, op);
  check_layer_norm_backward(grad_output, input, mean, rstd, s, op);
  const DeviceScope device(input);
  Tensor grad_input = new_tensor(input, shape_of(input), input.scalar_type());
  const ScalarType acc = accumulate_type(input.scalar_type());
  const int64_t count = needs_parameters ? s.parameters() : 0;
  Tensor grad_weight = new_tensor(input, {count}, acc), grad_bias = new_tensor(input, {count}, acc);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    Acc* const dweight = needs_parameters ? mutable_data<Acc>(grad_weight) : nullptr;
    Acc* const dbias = needs_parameters ? mutable_data<Acc>(grad_bias) : nullptr;
    if (s.rows == 0) {
      if (needs_parameters) {
        launch(layer_norm_finish_kernel<Acc>, blocks_for(count, kThreads), kThreads, 0, device.stream,
               int64_t{0}, count, static_cast<const Acc*>(nullptr), dweight, dbias);
      }
      return;
    }
    const Parameters<Acc> p{data_or_null<Acc>(weight), data_or_null<Acc>(bias), mutable_data<Acc>(mean),
                            mutable_data<Acc>(rstd)};
    backward(s, data<T>(input), data<T>(grad_output), p, params, mutable_data<T>(grad_input), dweight, dbias,
             input, device.stream);
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("layer_norm_forward", TORCH_BOX(&pyops::cuda::layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&pyops::cuda::layer_norm_backward));
}
