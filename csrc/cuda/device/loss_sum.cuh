// Sums of losses and of their weights over all rows, in a fixed order: per thread, per block, and over the
// blocks by one more kernel.
#pragma once

#include "cuda/device/reduce.cuh"

namespace pyops::cuda {

// Loss and weight of the rows a thread has seen. In double, so that a mean over millions of rows is as good
// as its terms.
struct LossSum {
  double values[2] = {0, 0};
  __device__ __forceinline__ void add(double loss, double weight) {
    values[0] += loss;
    values[1] += weight;
  }
};

constexpr int kLossScratch = 2 * kWarpSize;
constexpr int kFinishThreads = 512;

// Writes the block's sum, two doubles. blockDim.x must be a power of two and every thread must call it.
__device__ __forceinline__ void store_block_sum(LossSum sum, double* partials, double* scratch) {
  reduce_group<Sum>(sum.values, blockDim.x, scratch);
  if (threadIdx.x > 0) return;
  partials[2 * static_cast<int64_t>(blockIdx.x)] = sum.values[0];
  partials[2 * static_cast<int64_t>(blockIdx.x) + 1] = sum.values[1];
}

// Merges the blocks' sums, as one block. Either output may be null.
template <class Acc>
__global__ void __launch_bounds__(kFinishThreads)
    finish_loss_kernel(const double* partials, int64_t count, bool mean, Acc* loss, Acc* total_weight) {
  PYOPS_SHARED_ARRAY(double, scratch, kLossScratch);
  LossSum sum;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum.add(partials[2 * i], partials[2 * i + 1]);
  reduce_group<Sum>(sum.values, kFinishThreads, scratch);
  if (threadIdx.x > 0) return;
  if (loss) *loss = static_cast<Acc>(mean ? sum.values[0] / sum.values[1] : sum.values[0]);
  if (total_weight) *total_weight = static_cast<Acc>(sum.values[1]);
}

}  // namespace pyops::cuda
