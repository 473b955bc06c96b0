// Sums and maxima over the threads that share a row, in an order fixed by the launch shape alone.
//
// Both merges give the same bits with their operands swapped, so in a butterfly of shuffles every lane ends
// with the same value and no broadcast is needed.
#pragma once

#include "common/fast_math.h"
#include "cuda/launch.h"

namespace pyops::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <class T>
  static __device__ __forceinline__ T identity() {
    return T(0);
  }
  template <class T>
  static __device__ __forceinline__ T merge(T a, T b) {
    return a + b;
  }
};

// A NaN never wins: it shows in the sum of exp instead.
struct Max {
  template <class T>
  static __device__ __forceinline__ T identity() {
    return -math::infinity<T>();
  }
  template <class T>
  static __device__ __forceinline__ T merge(T a, T b) {
    return math::select_greater(a, b, a, b);
  }
};

// Over aligned groups of `size` lanes, a power of two up to 32. Every lane of the warp must call it.
template <class Op, int kValues, class T>
__device__ __forceinline__ void reduce_lanes(T (&values)[kValues], int size) {
  for (int offset = size / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      values[k] = Op::merge(values[k], __shfl_xor_sync(kAllLanes, values[k], offset));
    }
  }
}

// Over groups of `size` threads: lanes of one warp, or, above 32, the whole block of `size` threads.
// Every thread of the block must call it. `scratch` holds 32 * kValues values and may be used for the next
// reduction only after a barrier; two scratches used in turns supply that barrier to each other.
template <class Op, int kValues, class T>
__device__ __forceinline__ void reduce_group(T (&values)[kValues], int size, T* scratch) {
  reduce_lanes<Op>(values, size < kWarpSize ? size : kWarpSize);
  if (size <= kWarpSize) return;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = size / kWarpSize;
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < kValues; ++k) scratch[warp * kValues + k] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    values[k] = lane < warps ? scratch[lane * kValues + k] : Op::template identity<T>();
  }
  reduce_lanes<Op>(values, warps);
  // Only the aligned group that starts at lane 0 has the result: the others have reduced identities.
#pragma unroll
  for (int k = 0; k < kValues; ++k) values[k] = __shfl_sync(kAllLanes, values[k], 0);
}

}  // namespace pyops::cuda
