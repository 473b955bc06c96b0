// How batch normalisation is shared out over blocks and threads, and the sums over a block.
//
// A thread takes groups of 8 neighbouring elements of a row: 16 bytes or more of each tensor, and one byte of
// the mask. Where a channel lies in runs, a block belongs to one channel. Otherwise it belongs to a strip of
// columns, and a thread keeps its columns. Several blocks share the rows of a channel or strip; each has a
// slice.
#pragma once

#include "binding/batch_norm.h"
#include "cuda/device/reduce.cuh"
#include "cuda/epilogue/fused.cuh"

namespace pyops::cuda {

using math::Moments;

constexpr int kNormThreads = 256;
// Blocks of a launch that sums; a small input has fewer.
inline const int64_t kNormBlocks = unless_in_tests(1024, 12);
// The bytes of input that a block keeps on chip. Together with the sums every GPU has room for them.
inline const int64_t kStashBytes = unless_in_tests(92 << 10, 1 << 14);
constexpr int kMaxStrip = kNormThreads / kGroup;  // groups side by side in a strip: a thread per column

struct NormPlan {
  BatchNormShape shape;
  int64_t strip;   // groups of a row that a block takes: the whole run, or a power of two
  int64_t parts;   // channels that lie in runs, or strips
  int64_t slices;  // blocks that share the groups of a part
  int64_t share;   // groups of a slice, a multiple of the threads
  bool aligned;    // the tensors reach 16-byte boundaries together

  // `strip` is for columns. `whole`: a block takes a whole channel or strip.
  static NormPlan of(const BatchNormShape& s, int64_t strip, bool whole, bool aligned) {
    const int64_t groups = ceil_div(s.width(), kGroup);
    NormPlan plan{s, groups, s.channels, 1, 0, aligned};
    if (!s.has_runs()) {
      plan.strip = std::min<int64_t>(strip, kMaxStrip);
      while (plan.strip / 2 >= groups) plan.strip /= 2;
      plan.parts = ceil_div(groups, plan.strip);
    }
    const int64_t rounds = ceil_div(plan.total(), kNormThreads);
    if (!whole) plan.slices = std::clamp<int64_t>(kNormBlocks / plan.parts, 1, rounds);
    plan.share = ceil_div(rounds, plan.slices) * kNormThreads;
    plan.slices = ceil_div(plan.total(), plan.share);
    return plan;
  }

  PYOPS_HD int64_t total() const { return shape.outer * strip; }  // groups of a part
  unsigned blocks() const { return static_cast<unsigned>(parts * slices); }
  // Results of a channel: each block leaves one per channel, or one per column.
  PYOPS_HD int64_t results() const { return slices * (shape.has_runs() ? 1 : shape.inner); }
};

// Eight elements of a row.
struct NormGroup {
  int64_t at;
  int64_t mask_byte;
  GroupRange range;
};

// A thread's part of its block's share.
struct NormShare {
  const NormPlan& plan;
  int64_t part;
  int64_t slice;
  int64_t first;  // group of the row, or of the strip
  bool runs;

  __device__ __forceinline__ explicit NormShare(const NormPlan& p)
      : plan(p),
        part(blockIdx.x / p.slices),
        slice(blockIdx.x % p.slices),
        first(p.shape.has_runs() ? 0 : part * p.strip),
        runs(p.shape.has_runs()) {}

  // The column of the thread's first element; only for strips, where it never changes.
  __device__ __forceinline__ int64_t column() const { return (first + threadIdx.x % plan.strip) * kGroup; }
  __device__ __forceinline__ int64_t columns() const { return plan.shape.width(); }
  __device__ __forceinline__ int64_t channel(int k) const {
    if (runs) return part;
    const int64_t at = column() + k;
    return at < columns() ? at / plan.shape.inner : 0;
  }

  __device__ __forceinline__ NormGroup group(int64_t item) const {
    // Division of 64-bit numbers is slow, and the items of one part rarely need it.
    int64_t row, of_row;
    if (plan.total() <= 0xffffffffll) {
      row = static_cast<uint32_t>(item) / static_cast<uint32_t>(plan.strip);
    } else {
      row = item / plan.strip;
    }
    of_row = item - row * plan.strip;
    const int64_t column = (first + of_row) * kGroup;
    const int64_t left = columns() - column;
    const int last = left < kGroup ? (left < 0 ? 0 : static_cast<int>(left)) : kGroup;
    if (runs) row = row * plan.shape.channels + part;
    return {row * columns() + column, row * plan.shape.mask_bytes() + first + of_row, {0, last}};
  }

  // Calls f(group, number) for the thread's groups, numbered from 0.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int64_t begin = slice * plan.share;
    const int64_t end = begin + plan.share < plan.total() ? begin + plan.share : plan.total();
    int number = 0;
    for (int64_t item = begin + threadIdx.x; item < end; item += kNormThreads) f(group(item), number++);
  }

  template <class T>
  __device__ __forceinline__ bool aligned(const T* p) const {
    return plan.aligned && reinterpret_cast<uintptr_t>(p) % kPackBytes == 0;
  }
};

// ---- numbers of channels --------------------------------------------------------------------------------

// A vector of T or of what T accumulates in, or none.
template <class T>
struct ChannelVector {
  using Acc = acc_t<T>;
  void* data;
  bool is_acc;

  static ChannelVector of(const std::optional<Tensor>& t) {
    if (!t) return {nullptr, false};
    return {t->mutable_data_ptr(), t->scalar_type() == accumulate_type(t->scalar_type())};
  }
  __device__ __forceinline__ Acc load(int64_t c, Acc otherwise) const {
    if (!data) return otherwise;
    return is_acc ? static_cast<const Acc*>(data)[c] : to_acc(static_cast<const T*>(data)[c]);
  }
  __device__ __forceinline__ void store(int64_t c, double value) const {
    if (is_acc) {
      static_cast<Acc*>(data)[c] = static_cast<Acc>(value);
    } else {
      static_cast<T*>(data)[c] = from_acc<T>(static_cast<Acc>(value));
    }
  }
};

template <class T>
struct NormParameters {
  ChannelVector<T> weight;
  ChannelVector<T> bias;
  double* mean;
  acc_t<T>* rstd;

  __device__ __forceinline__ math::NormMap<acc_t<T>> map(int64_t c) const {
    return math::NormMap<acc_t<T>>::of(mean[c], rstd[c], weight.load(c, 1), bias.load(c, 0));
  }
};

// The maps of a thread's eight columns, all the same in a run.
template <class Acc>
struct GroupMap {
  Acc center[kGroup], scale[kGroup], shift[kGroup];

  __device__ __forceinline__ void set(int k, const math::NormMap<Acc>& map) {
    center[k] = map.center, scale[k] = map.scale, shift[k] = map.shift;
  }
  template <class T>
  __device__ __forceinline__ void load(const NormShare& share, const NormParameters<T>& parameters) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (k == 0 || !share.runs) {
        set(k, parameters.map(share.channel(k)));
      } else {
        center[k] = center[0], scale[k] = scale[0], shift[k] = shift[0];
      }
    }
  }
};

// ---- sums over a block ----------------------------------------------------------------------------------

// Doubles of shared memory for the sums of a block whose strips have at most kStrip groups.
template <int kStrip>
constexpr int kSumScratch = (kNormThreads / kWarpSize) * kStrip * kGroup;

// The column of the strip whose sum this thread gets. Neighbouring threads take the same place of
// neighbouring groups: as they were stored, so that no two of a warp meet in a bank of shared memory.
__device__ __forceinline__ int column_of_thread(int strip) {
  return static_cast<int>(threadIdx.x) % strip * kGroup + static_cast<int>(threadIdx.x) / strip;
}

// Sums the threads' values by column of the strip. Lanes of one column are added first, then the warps in
// order.
__device__ __forceinline__ double column_sum(double (&values)[kGroup], int strip, double* scratch) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    for (int offset = kWarpSize / 2; offset >= strip; offset /= 2) {
      values[k] += __shfl_xor_sync(kAllLanes, values[k], offset);
    }
  }
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, columns = strip * kGroup;
  __syncthreads();  // the scratch may have been used before
  if (lane < strip) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) scratch[warp * columns + k * strip + lane] = values[k];
  }
  __syncthreads();
  double sum = 0;
  if (static_cast<int>(threadIdx.x) < columns) {
    for (int w = 0; w < kNormThreads / kWarpSize; ++w) sum += scratch[w * columns + threadIdx.x];
  }
  return sum;
}

// The sum over all threads of a block that belongs to one channel; every thread gets it.
__device__ __forceinline__ double run_sum(const double (&values)[kGroup], double* scratch) {
  double sum[1] = {0};
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sum[0] += values[k];
  __syncthreads();
  reduce_group<Sum>(sum, kNormThreads, scratch);
  return sum[0];
}

// Two sums per channel or column, a.first and a.second, as a thread holds them (of its column_of_thread, or,
// in a run, in every thread).
struct PairOfSums {
  double first;
  double second;
};

__device__ __forceinline__ PairOfSums block_sums(const NormShare& share, double (&a)[kGroup],
                                                 double (&b)[kGroup], double* scratch) {
  if (share.runs) {
    const double first = run_sum(a, scratch);
    return {first, run_sum(b, scratch)};
  }
  const int strip = static_cast<int>(share.plan.strip);
  const double first = column_sum(a, strip, scratch);
  return {first, column_sum(b, strip, scratch)};
}

// Calls f(place, channel) in the threads that hold a result: its place among the results of all blocks.
template <class F>
__device__ __forceinline__ void for_result(const NormShare& share, const F& f) {
  const int64_t slice = share.slice;
  if (share.runs) {
    if (threadIdx.x == 0) f(slice * share.plan.shape.channels + share.part, share.part);
    return;
  }
  const int strip = static_cast<int>(share.plan.strip);
  const int64_t column = share.first * kGroup + column_of_thread(strip);
  if (static_cast<int>(threadIdx.x) < strip * kGroup && column < share.columns()) {
    f(slice * share.columns() + column, column / share.plan.shape.inner);
  }
}

// The place of result k of a channel.
__device__ __forceinline__ int64_t result_place(const NormPlan& plan, int64_t channel, int64_t k) {
  if (plan.shape.has_runs()) return k * plan.shape.channels + channel;
  const int64_t inner = plan.shape.inner, slice = k / inner;
  return slice * plan.shape.width() + channel * inner + (k - slice * inner);
}

}  // namespace pyops::cuda
