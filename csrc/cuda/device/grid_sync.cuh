// How the blocks of a cooperative launch wait for each other: counters in global memory that only grow.
//
// A block that has written what others will read raises a counter; a reader waits until enough blocks have
// done so. Blocks that share a counter wait only for each other. What other blocks have written must be read
// past the L1 cache, which may hold older values (load_shared_pack).
#pragma once

#include "cuda/device/memory.cuh"

namespace pyops::cuda {

#if defined(__CUDACC__)

// All threads call it. Blocks that have waited for the announcement see what this block wrote before it.
__device__ __forceinline__ void announce(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}

// All threads call it. It returns after so many announcements, counted modulo 2^32.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned announcements) {
  if (threadIdx.x == 0) {
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (static_cast<int>(seen - announcements) < 0);
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ Pack<T> load_shared_pack(const T* p) {
  return {__ldcg(reinterpret_cast<const uint4*>(p))};
}

#else  // the emulator

inline void announce(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) ++*counter;
}

inline void wait_for(const unsigned* counter, unsigned announcements) {
  if (threadIdx.x == 0) emulation::wait_for_counter(counter, announcements, {__FILE__, __LINE__});
  __syncthreads();
}

template <class T>
Pack<T> load_shared_pack(const T* p) {
  return load_pack(p);
}

#endif

}  // namespace pyops::cuda
