// The kernels of batch normalisation's backward.
#pragma once

#include "cuda/batch_norm/forward.cuh"

namespace pyops::cuda {
namespace {

template <class T>
struct BackwardTensors {
  const T* grad;
  const T* x;
  const T* residual;    // null: none
  const uint8_t* mask;  // null: relu's sign is made again
  T* dx;                // null: not needed, and so for dresidual
  T* dresidual;
  NormParameters<T> parameters;
  NormActivation activation;
  bool through_statistics;
};

// Where the parameters' gradients go.
template <class T>
struct AffineGradients {
  ChannelVector<T> weight;
  ChannelVector<T> bias;
  const acc_t<T>* rstd;

  __device__ __forceinline__ void store(int64_t c, const PairOfSums& sums) const {
    if (!weight.data) return;
    weight.store(c, sums.second * static_cast<double>(rstd[c]));
    bias.store(c, sums.first);
  }
};

// `grad` becomes the gradient in front of the activation, `x` becomes x - center.
template <bool kOther, class T>
__device__ __forceinline__ void gradient_group(const NormShare& share, const BackwardTensors<T>& t,
                                               const GroupMap<acc_t<T>>& map, const NormGroup& g,
                                               acc_t<T> (&grad)[kGroup], acc_t<T> (&x)[kGroup]) {
  using Acc = acc_t<T>;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) x[k] = g.range.has(k) ? x[k] - map.center[k] : Acc(0);
  if (t.mask) {
    const unsigned bits = g.range.last > 0 ? t.mask[g.mask_byte] : 0;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) grad[k] = bits >> k & 1 ? grad[k] : Acc(0);
    return;
  }
  if (t.activation.params.is(math::ActivationKind::kIdentity)) return;
  Acc z[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) z[k] = math::normalized(x[k], map.scale[k], map.shift[k]);
  if (t.residual) {
    Acc residual[kGroup];
    load_group(t.residual + g.at, g.range, share.aligned(t.x + g.at), residual);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) z[k] += residual[k];
  }
  if constexpr (kOther) {
    t.activation.backward_other(z, grad);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) grad[k] = g.range.has(k) ? grad[k] : Acc(0);
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      grad[k] = z[k] <= math::largest_stored_as_zero<T>() ? Acc(0) : grad[k];
    }
  }
}

template <class T>
__device__ __forceinline__ void load_both(const NormShare& share, const BackwardTensors<T>& t,
                                          const NormGroup& g, acc_t<T> (&grad)[kGroup],
                                          acc_t<T> (&x)[kGroup]) {
  load_group(t.grad + g.at, g.range, share.aligned(t.x + g.at), grad);
  load_group(t.x + g.at, g.range, share.aligned(t.x + g.at), x);
}

// A thread's sums of g and of g (x - center).
template <class Acc>
struct ThreadGradients {
  Acc sum[kGroup], product[kGroup];

  __device__ __forceinline__ ThreadGradients() {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) sum[k] = product[k] = 0;
  }
  __device__ __forceinline__ void add(const Acc (&g)[kGroup], const Acc (&d)[kGroup]) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      sum[k] += g[k];
      product[k] = math::multiply_add(g[k], d[k], product[k]);
    }
  }
  __device__ __forceinline__ PairOfSums of_block(const NormShare& share, double* scratch) const {
    double a[kGroup], b[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) a[k] = sum[k], b[k] = product[k];
    return block_sums(share, a, b, scratch);
  }
};

// Products with x - mean of those with x - center.
template <class T>
__device__ __forceinline__ PairOfSums about_the_mean(const PairOfSums& sums, double mean) {
  const double rest = mean - static_cast<double>(static_cast<acc_t<T>>(mean));
  return {sums.first, sums.second - rest * sums.first};
}

// Slope and offset of the part of the gradient that goes through the statistics.
template <class Acc>
struct GroupGradient {
  Acc slope[kGroup], offset[kGroup];

  __device__ __forceinline__ void set(int k, const math::NormGradient<Acc>& gradient) {
    slope[k] = gradient.slope, offset[k] = gradient.offset;
  }
  template <class T>
  __device__ __forceinline__ void load(const NormShare& share, const NormParameters<T>& p,
                                       const double* means, double count) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (k == 0 || !share.runs) {
        const int64_t c = share.channel(k);
        set(k, math::NormGradient<Acc>::of(p.mean[c], p.rstd[c], p.weight.load(c, 1), means[c] / count,
                                           means[share.plan.shape.channels + c] / count));
      } else {
        slope[k] = slope[0], offset[k] = offset[0];
      }
    }
  }
};

template <class T>
__device__ __forceinline__ void write_gradients(const NormShare& share, const BackwardTensors<T>& t,
                                                const GroupMap<acc_t<T>>& map,
                                                const GroupGradient<acc_t<T>>& through, const NormGroup& g,
                                                acc_t<T> (&grad)[kGroup], const acc_t<T> (&d)[kGroup]) {
  const bool aligned = share.aligned(t.x + g.at);
  if (t.dresidual) store_group(t.dresidual + g.at, g.range, aligned, grad);
  if (!t.dx) return;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    grad[k] = t.through_statistics
                  ? math::input_gradient(grad[k], d[k], map.scale[k], through.slope[k], through.offset[k])
                  : grad[k] * map.scale[k];
  }
  store_group(t.dx + g.at, g.range, aligned, grad);
}

template <class T, bool kOther>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_gradient_sums_kernel(NormPlan plan, BackwardTensors<T> t, PairOfSums* results) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kSumScratch<kMaxStrip>);
  const NormShare share(plan);
  GroupMap<Acc> map;
  map.load(share, t.parameters);
  ThreadGradients<Acc> gradients;
  share.for_each([&](const NormGroup& g, int) {
    Acc grad[kGroup], x[kGroup];
    load_both(share, t, g, grad, x);
    gradient_group<kOther>(share, t, map, g, grad, x);
    gradients.add(grad, x);
  });
  const PairOfSums block = gradients.of_block(share, scratch);
  for_result(share, [&](int64_t place, int64_t channel) {
    results[place] = about_the_mean<T>(block, t.parameters.mean[channel]);
  });
}

// `sums` [2, channels] and the parameters' gradients, from the blocks' results in order.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    batch_norm_finish_gradients_kernel(NormPlan plan, const PairOfSums* results, double* sums,
                                       AffineGradients<T> affine) {
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * (kFinishThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (channel >= plan.shape.channels) return;
  const int lane = threadIdx.x % kWarpSize;
  double total[2] = {0, 0};
  for (int64_t k = lane; k < plan.results(); k += kWarpSize) {
    const PairOfSums result = results[result_place(plan, channel, k)];
    total[0] += result.first, total[1] += result.second;
  }
  reduce_lanes<Sum>(total, kWarpSize);
  if (lane != 0) return;
  sums[channel] = total[0], sums[plan.shape.channels + channel] = total[1];
  affine.store(channel, {total[0], total[1]});
}

template <class T, bool kOther>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_input_gradient_kernel(NormPlan plan, BackwardTensors<T> t, const double* means, double count) {
  using Acc = acc_t<T>;
  const NormShare share(plan);
  GroupMap<Acc> map;
  map.load(share, t.parameters);
  GroupGradient<Acc> through{};
  if (t.through_statistics) through.load(share, t.parameters, means, count);
  share.for_each([&](const NormGroup& g, int) {
    Acc grad[kGroup], x[kGroup];
    load_both(share, t, g, grad, x);
    gradient_group<kOther>(share, t, map, g, grad, x);
    write_gradients(share, t, map, through, g, grad, x);
  });
}

// The whole of backward, where a block keeps a channel's input and gradient.
template <class T>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_backward_kernel(NormPlan plan, BackwardTensors<T> t, double* sums, AffineGradients<T> affine) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kSumScratch<kStashStrip>);
  PYOPS_DYNAMIC_SHARED(kept);
  const Stash<T> kept_grad{reinterpret_cast<uint4*>(kept)};
  const Stash<T> kept_x{kept_grad.packs + plan.share * Stash<T>::kPacks};
  const NormShare share(plan);
  GroupMap<Acc> map;
  map.load(share, t.parameters);
  ThreadGradients<Acc> gradients;
  share.for_each([&](const NormGroup& g, int number) {
    Acc grad[kGroup], x[kGroup];
    load_both(share, t, g, grad, x);
    kept_grad.keep(number, grad), kept_x.keep(number, x);
    gradient_group<false>(share, t, map, g, grad, x);
    gradients.add(grad, x);
  });
  const PairOfSums block = gradients.of_block(share, scratch);
  for_result(share, [&](int64_t, int64_t channel) {
    const PairOfSums total = about_the_mean<T>(block, t.parameters.mean[channel]);
    sums[channel] = total.first, sums[plan.shape.channels + channel] = total.second;
    affine.store(channel, total);
  });
  __syncthreads();
  GroupGradient<Acc> through{};
  if (t.through_statistics) through.load(share, t.parameters, sums, static_cast<double>(plan.shape.count()));
  share.for_each([&](const NormGroup& g, int number) {
    Acc grad[kGroup], x[kGroup];
    kept_grad.find(number, grad), kept_x.find(number, x);
    gradient_group<false>(share, t, map, g, grad, x);
    write_gradients(share, t, map, through, g, grad, x);
  });
}

}  // namespace
}  // namespace pyops::cuda
