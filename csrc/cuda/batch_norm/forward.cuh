// The kernels of batch normalisation's statistics and forward.
#pragma once

#include "cuda/batch_norm/batch_norm.cuh"

namespace pyops::cuda {
namespace {

constexpr int kFinishThreads = 128;  // a warp per channel
constexpr int kStashStrip = 4;       // groups of a strip that one block keeps

template <class T>
constexpr int kMinNormBlocks = sizeof(T) == 8 ? 1 : 2;

template <class Acc>
__device__ __forceinline__ void rotate_group(Acc (&values)[kGroup]) {
  const Acc first = values[0];
#pragma unroll
  for (int k = 1; k < kGroup; ++k) values[k - 1] = values[k];
  values[kGroup - 1] = first;
}

// Calls f once for each element of the groups, which come to place 0 one after another. The loop's code is
// not repeated for every element, and its registers have fixed names.
template <class F, class... Groups>
__device__ __forceinline__ void for_each_in_turn(const F& f, Groups&... groups) {
#pragma unroll 1
  for (int k = 0; k < kGroup; ++k) {
    f();
    (rotate_group(groups), ...);
  }
}

// kOther: any activation but identity and relu, chosen at run time.
struct NormActivation {
  math::ActivationParams params;

  bool other() const { return params.kind > static_cast<int64_t>(math::ActivationKind::kRelu); }

  template <bool kOther, class Acc>
  __device__ __forceinline__ void forward(Acc (&z)[kGroup]) const {
    if constexpr (kOther) {
      math::dispatch_activation<Acc>(
          params, [&](const auto& f) { for_each_in_turn([&] { z[0] = f.forward(z[0]); }, z); });
    } else if (params.is(math::ActivationKind::kRelu)) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) z[k] = math::Relu<Acc>{}.forward(z[k]);
    }
  }

  template <class Acc>
  __device__ __forceinline__ void backward_other(Acc (&z)[kGroup], Acc (&g)[kGroup]) const {
    math::dispatch_activation<Acc>(params, [&](const auto& f) {
      const math::FromInput<std::decay_t<decltype(f)>> derivative{f};
      for_each_in_turn([&] { g[0] = derivative(z[0], g[0]); }, z, g);
    });
  }
};

// ---- statistics -----------------------------------------------------------------------------------------

// Where the statistics come from and go to.
template <class T>
struct StatisticsOutputs {
  double* mean;
  acc_t<T>* rstd;
  ChannelVector<T> running_mean;
  ChannelVector<T> running_var;
  double momentum;
  double eps;

  __device__ __forceinline__ void finish(int64_t c, const Moments& m) const {
    const double variance = m.m2 / m.count;
    mean[c] = m.mean;
    rstd[c] = static_cast<acc_t<T>>(math::reciprocal_deviation(variance, eps));
    if (running_mean.data) {
      running_mean.store(c, math::moved_average(running_mean.load(c, 0), m.mean, momentum));
    }
    if (running_var.data) {
      running_var.store(
          c, math::moved_average(running_var.load(c, 0), math::unbiased(variance, m.count), momentum));
    }
  }
};

// A thread's sums over its groups, about values of the block's first row.
template <class Acc>
struct ThreadMoments {
  Acc shift[kGroup], sum[kGroup], squares[kGroup];
  int64_t count;  // of all its elements

  template <class T>
  __device__ __forceinline__ void start(const NormShare& share, const T* x) {
    const int64_t begin = share.slice * share.plan.share;
    const NormGroup g = share.group(share.runs ? begin : begin + threadIdx.x % share.plan.strip);
    load_group(x + g.at, g.range, false, shift);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (share.runs) shift[k] = shift[0];
      sum[k] = squares[k] = 0;
    }
    count = 0;
  }
  __device__ __forceinline__ void add(GroupRange range, const Acc (&x)[kGroup]) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const Acc d = range.has(k) ? x[k] - shift[k] : Acc(0);
      sum[k] += d;
      squares[k] = math::multiply_add(d, d, squares[k]);
    }
    count += range.last;
  }

  // Of the block; valid in the threads of for_result.
  __device__ __forceinline__ Moments of_block(const NormShare& share, double* scratch) {
    double a[kGroup], b[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) a[k] = sum[k], b[k] = squares[k];
    const PairOfSums sums = block_sums(share, a, b, scratch);
    if (share.runs) {
      double counts[kGroup] = {static_cast<double>(count)};
      return Moments::of(run_sum(counts, scratch), shift[0], sums.first, sums.second);
    }
    const NormPlan& plan = share.plan;
    const int64_t begin = share.slice * plan.share;
    const int64_t end = begin + plan.share < plan.total() ? begin + plan.share : plan.total();
    // The shift of the column that a thread reports is held by the thread of that column's group.
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < plan.strip) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) scratch[k * plan.strip + threadIdx.x] = shift[k];
    }
    __syncthreads();
    const double reported = static_cast<int>(threadIdx.x) < plan.strip * kGroup ? scratch[threadIdx.x] : 0;
    return Moments::of(static_cast<double>((end - begin) / plan.strip), reported, sums.first, sums.second);
  }
};

template <class T>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_statistics_kernel(NormPlan plan, const T* x, Moments* results) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kSumScratch<kMaxStrip>);
  const NormShare share(plan);
  ThreadMoments<Acc> moments;
  moments.start(share, x);
  share.for_each([&](const NormGroup& g, int) {
    Acc values[kGroup];
    load_group(x + g.at, g.range, share.aligned(x + g.at), values);
    moments.add(g.range, values);
  });
  const Moments block = moments.of_block(share, scratch);
  for_result(share, [&](int64_t place, int64_t) { results[place] = block; });
}

// Moments of a channel from the blocks', in every lane of a warp.
__device__ __forceinline__ Moments merge_results(const NormPlan& plan, const Moments* results,
                                                 int64_t channel) {
  const int lane = threadIdx.x % kWarpSize;
  Moments m{0, 0, 0};
  for (int64_t k = lane; k < plan.results(); k += kWarpSize) {
    m = math::merge(m, results[result_place(plan, channel, k)]);
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Moments other{__shfl_down_sync(kAllLanes, m.count, offset),
                        __shfl_down_sync(kAllLanes, m.mean, offset),
                        __shfl_down_sync(kAllLanes, m.m2, offset)};
    m = math::merge(m, other);
  }
  return m;  // of lane 0
}

template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    batch_norm_finish_kernel(NormPlan plan, const Moments* results, StatisticsOutputs<T> outputs) {
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * (kFinishThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (channel >= plan.shape.channels) return;
  const Moments m = merge_results(plan, results, channel);
  if (threadIdx.x % kWarpSize == 0) outputs.finish(channel, m);
}

__global__ void __launch_bounds__(kFinishThreads)
    batch_norm_merge_kernel(NormPlan plan, const Moments* results, double* statistics) {
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * (kFinishThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (channel >= plan.shape.channels) return;
  const Moments m = merge_results(plan, results, channel);
  if (threadIdx.x % kWarpSize != 0) return;
  statistics[channel] = m.mean;
  statistics[plan.shape.channels + channel] = m.m2;
}

// Given statistics, mean and variance, or running ones.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    batch_norm_known_kernel(int64_t channels, const double* statistics, StatisticsOutputs<T> outputs) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (c >= channels) return;
  const double mean = statistics ? statistics[c] : double(outputs.running_mean.load(c, 0));
  const double variance = statistics ? statistics[channels + c] : double(outputs.running_var.load(c, 1));
  outputs.mean[c] = mean;
  outputs.rstd[c] = static_cast<acc_t<T>>(math::reciprocal_deviation(variance, outputs.eps));
}

// ---- forward --------------------------------------------------------------------------------------------

template <class T>
struct ForwardTensors {
  const T* x;
  const T* residual;  // null: none
  T* y;
  uint8_t* mask;  // null: none
  NormParameters<T> parameters;
  NormActivation activation;
};

template <bool kOther, class T>
__device__ __forceinline__ void normalize_group(const NormShare& share, const ForwardTensors<T>& t,
                                                const GroupMap<acc_t<T>>& map, const NormGroup& g,
                                                acc_t<T> (&values)[kGroup]) {
  using Acc = acc_t<T>;
  const bool aligned = share.aligned(t.x + g.at);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    values[k] = math::normalized(values[k] - map.center[k], map.scale[k], map.shift[k]);
  }
  if (t.residual) {
    Acc residual[kGroup];
    load_group(t.residual + g.at, g.range, aligned, residual);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) values[k] += residual[k];
  }
  if (t.mask && g.range.last > 0) {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const bool passes = !(values[k] <= math::largest_stored_as_zero<T>());
      bits |= (passes && g.range.has(k) ? 1u : 0u) << k;
    }
    t.mask[g.mask_byte] = static_cast<uint8_t>(bits);
  }
  t.activation.template forward<kOther>(values);
  store_group(t.y + g.at, g.range, aligned, values);
}

template <class T, bool kOther>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_normalize_kernel(NormPlan plan, ForwardTensors<T> t) {
  using Acc = acc_t<T>;
  const NormShare share(plan);
  GroupMap<Acc> map;
  map.load(share, t.parameters);
  share.for_each([&](const NormGroup& g, int) {
    Acc values[kGroup];
    load_group(t.x + g.at, g.range, share.aligned(t.x + g.at), values);
    normalize_group<kOther>(share, t, map, g, values);
  });
}

// ---- what a block keeps on chip -------------------------------------------------------------------------

// The groups of one thread in order, as they are in memory. Packs of neighbouring threads are neighbours.
template <class T>
struct Stash {
  static constexpr int kPacks = kGroup / Pack<T>::kSize;
  uint4* packs;

  static constexpr int64_t bytes(int64_t share) { return share * kPacks * kPackBytes; }

  __device__ __forceinline__ void keep(int number, const acc_t<T> (&values)[kGroup]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      acc_t<T> part[Pack<T>::kSize];
#pragma unroll
      for (int k = 0; k < Pack<T>::kSize; ++k) part[k] = values[p * Pack<T>::kSize + k];
      store_pack_in_shared(reinterpret_cast<T*>(place(number, p)), part);
    }
  }
  __device__ __forceinline__ void find(int number, acc_t<T> (&values)[kGroup]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      acc_t<T> part[Pack<T>::kSize];
      widen(load_pack(reinterpret_cast<const T*>(place(number, p))), part);
#pragma unroll
      for (int k = 0; k < Pack<T>::kSize; ++k) values[p * Pack<T>::kSize + k] = part[k];
    }
  }

 private:
  __device__ __forceinline__ uint4* place(int number, int p) const {
    return packs + (number * kPacks + p) * kNormThreads + threadIdx.x;
  }
};

template <class T>
__global__ void __launch_bounds__(kNormThreads, kMinNormBlocks<T>)
    batch_norm_forward_kernel(NormPlan plan, ForwardTensors<T> t, StatisticsOutputs<T> outputs) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kSumScratch<kStashStrip>);
  PYOPS_DYNAMIC_SHARED(kept);
  const Stash<T> stash{reinterpret_cast<uint4*>(kept)};
  const NormShare share(plan);
  ThreadMoments<Acc> moments;
  moments.start(share, t.x);
  share.for_each([&](const NormGroup& g, int number) {
    Acc values[kGroup];
    load_group(t.x + g.at, g.range, share.aligned(t.x + g.at), values);
    stash.keep(number, values);
    moments.add(g.range, values);
  });
  const Moments block = moments.of_block(share, scratch);
  for_result(share, [&](int64_t, int64_t channel) { outputs.finish(channel, block); });
  __syncthreads();  // all threads see what one of them wrote to memory before
  GroupMap<Acc> map;
  map.load(share, t.parameters);
  share.for_each([&](const NormGroup& g, int number) {
    Acc values[kGroup];
    stash.find(number, values);
    normalize_group<false>(share, t, map, g, values);
  });
}

}  // namespace
}  // namespace pyops::cuda
