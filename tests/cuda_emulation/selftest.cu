// Kernels that test the emulator itself, called through ctypes by tests/test_cuda_emulation.py.
//
// Every entry takes an output buffer and returns 0, or 1 after copying the emulator's message to `error`.
#include <cstring>
#include <exception>

#include "cuda/launch.h"

namespace {

using pyops::cuda::launch;

constexpr int kThreads = 64;

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x % 32, all = blockIdx.x * blockDim.x + threadIdx.x;
  int* const row = out + 7 * all;
  row[0] = __shfl_xor_sync(0xffffffffu, lane, 5);
  row[1] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
  row[2] = __shfl_up_sync(0xffffffffu, lane, 3);
  row[3] = __shfl_sync(0xffffffffu, lane, 17);
  row[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  // The two halves of a warp work apart, each naming its own lanes.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  row[5] = __any_sync(half, lane == 3) + 2 * __all_sync(half, lane >= 16);
  double wide = lane + 0.5;
  for (int offset = 16; offset > 0; offset /= 2) wide += __shfl_xor_sync(0xffffffffu, wide, offset);
  row[6] = static_cast<int>(wide);
}

// Each thread publishes its number and reads its neighbour's.
template <bool kBarrier>
__global__ void neighbours(float* out) {
  PYOPS_SHARED_ARRAY(float, values, kThreads);
  values[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];
}

// For AddressSanitizer.
__global__ void shared_overflow(float* out) {
  PYOPS_SHARED_ARRAY(float, values, kThreads);
  values[threadIdx.x + 1] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void dynamic_sum(int* out) {
  int* const values = static_cast<int*>(emulation::dynamic_shared());
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x > 0) return;
  int sum = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += values[i];
  out[blockIdx.x] = sum;
}

__global__ void count_threads(int* out) { atomicAdd(out, 1); }

__global__ void exit_before_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void exit_before_shuffle(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

__global__ void foreign_lane(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void two_shuffles(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}

__global__ void wait_for_each_other() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (threadIdx.x < 40) {
    __syncwarp(0x000001ffu);
  }
}

template <class F>
int guarded(char* error, int size, const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    strncpy(error, e.what(), size - 1);
    return 1;
  }
}

}  // namespace

#define PYOPS_SELFTEST(name, type, ...)                                                          \
  extern "C" __attribute__((visibility("default"))) int name(type* out, char* error, int size) { \
    return guarded(error, size, [&] { __VA_ARGS__; });                                           \
  }

PYOPS_SELFTEST(run_shuffles, int, launch(shuffles, 2, kThreads, 0, nullptr, out))
PYOPS_SELFTEST(run_neighbours, float, launch(neighbours<true>, 1, kThreads, 0, nullptr, out))
PYOPS_SELFTEST(run_racy_neighbours, float, launch(neighbours<false>, 1, kThreads, 0, nullptr, out))
PYOPS_SELFTEST(run_dynamic_sum, int, launch(dynamic_sum, 3, 100, 400, nullptr, out))
PYOPS_SELFTEST(run_count, int, launch(count_threads, dim3(3, 2, 2), dim3(8, 4, 2), 0, nullptr, out))
PYOPS_SELFTEST(run_exit_before_barrier, int, launch(exit_before_barrier, 1, kThreads, 0, nullptr))
PYOPS_SELFTEST(run_two_barriers, int, launch(two_barriers, 1, kThreads, 0, nullptr))
PYOPS_SELFTEST(run_exit_before_shuffle, int, launch(exit_before_shuffle, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_foreign_lane, int, launch(foreign_lane, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_two_shuffles, int, launch(two_shuffles, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_deadlock, int, launch(wait_for_each_other, 1, kThreads, 0, nullptr))
PYOPS_SELFTEST(run_wide_block, int, launch(count_threads, 1, 1025, 0, nullptr, out))
PYOPS_SELFTEST(run_tall_grid, int, launch(count_threads, dim3(1, 65536), 1, 0, nullptr, out))
PYOPS_SELFTEST(run_shared_overflow, float, launch(shared_overflow, 1, kThreads, 0, nullptr, out))
