// Kernels that test the emulator itself, called through ctypes by tests/backends/test_cuda_emulation.py.
//
// Every entry takes an output buffer and returns 0, or 1 after copying the emulator's message to `error`.
#include <cstring>
#include <exception>

#include "cuda/device/grid_sync.cuh"
#include "cuda/device/mma.cuh"
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

// Lane i writes the words it gets of four matrices whose element (row, column) is 100 matrix + 10 row +
// column.
template <bool kTransposed>
__global__ void load_matrices(int* out) {
  PYOPS_SHARED_ARRAY(uint4, rows, 32);
  auto* const elements = reinterpret_cast<uint16_t*>(rows);
  for (int k = 0; k < 8; ++k)
    elements[threadIdx.x * 8 + k] = static_cast<uint16_t>(threadIdx.x / 8 * 100 + threadIdx.x % 8 * 10 + k);
  __syncthreads();
  const auto m = kTransposed ? pyops::cuda::load_matrices_transposed(rows + threadIdx.x)
                             : pyops::cuda::load_matrices(rows + threadIdx.x);
  for (int k = 0; k < 4; ++k) out[threadIdx.x * 4 + k] = static_cast<int>(m.words[k]);
}

// a[16, k] b[k, 8] with a = 1 + 2 row + k / 8 and b = column - k, loaded as PTX lays the fragments out.
template <class T>
__global__ void multiply(float* out) {
  constexpr int kPerWord = 4 / sizeof(T), kHalf = 4 * kPerWord;
  const int lane = threadIdx.x, group = lane / 4, within = lane % 4;
  const auto word = [&](int first, const auto& value) {
    uint32_t bits = 0;
    for (int e = 0; e < kPerWord; ++e) {
      if constexpr (sizeof(T) == 2) {
        bits |= static_cast<uint32_t>(pyops::from_acc<T>(value(first + e)).bits) << (16 * e);
      } else {
        bits = pyops::cuda::round_to_tf32(pyops::bit_cast<uint32_t>(value(first)));
      }
    }
    return bits;
  };
  pyops::cuda::MatrixA a;
  pyops::cuda::MatrixB b;
  for (int i = 0; i < 4; ++i)
    a.words[i] = word(within * kPerWord + i / 2 * kHalf,
                      [&](int k) { return 1.0f + 2.0f * (group + i % 2 * 8) + k * 0.125f; });
  for (int i = 0; i < 2; ++i)
    b.words[i] = word(within * kPerWord + i * kHalf, [&](int k) { return static_cast<float>(group - k); });
  float sum[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  pyops::cuda::multiply_add<T>(sum, a, b);
  for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + within * 2 + i % 2] = sum[i];
}

// Copies in three groups, the first two waited for; a copy that is not valid leaves zeros.
__global__ void copies(int* out) {
  PYOPS_SHARED_ARRAY(uint4, to, 3);
  static const uint4 from[3] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
  for (int i = 0; i < 3; ++i) {
    pyops::cuda::copy_async(to + i, from + i, i != 1);
    pyops::cuda::commit_copies();
  }
  pyops::cuda::wait_for_copies<1>();
  memcpy(out, to, sizeof(from));
}

__global__ void misaligned_copy(int* out) {
  PYOPS_SHARED_ARRAY(uint4, to, 1);
  pyops::cuda::copy_async(to, reinterpret_cast<char*>(out) + 4, true);
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

// Three before the counter wraps around.
constexpr unsigned kCounterStart = 0xfffffffdu;

// Block b writes when all blocks before it have: out[b] = b + out[b - 1].
__global__ void pass_on(int* out, unsigned* counter) {
  pyops::cuda::wait_for(counter, kCounterStart + blockIdx.x);
  if (threadIdx.x == 1)
    out[blockIdx.x] = static_cast<int>(blockIdx.x) + (blockIdx.x ? out[blockIdx.x - 1] : 0);
  pyops::cuda::announce(counter);
}

// Waits for one block more than there are.
__global__ void wait_for_nobody(unsigned* counter) {
  pyops::cuda::announce(counter);
  pyops::cuda::wait_for(counter, kCounterStart + gridDim.x + 1);
}

template <class Kernel, class... Arguments>
void launch_together(Kernel kernel, unsigned blocks, Arguments... arguments) {
  unsigned start = kCounterStart;
  pyops::cuda::launch_cooperative(kernel, blocks, kThreads, 0, nullptr, arguments..., &start);
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
PYOPS_SELFTEST(run_load_matrices, int, launch(load_matrices<false>, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_load_transposed, int, launch(load_matrices<true>, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_multiply_bfloat16, float, launch(multiply<pyops::bfloat16>, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_multiply_float16, float, launch(multiply<pyops::float16>, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_multiply_tf32, float, launch(multiply<float>, 1, 32, 0, nullptr, out))
PYOPS_SELFTEST(run_copies, int, launch(copies, 1, 1, 0, nullptr, out))
PYOPS_SELFTEST(run_misaligned_copy, int, launch(misaligned_copy, 1, 1, 0, nullptr, out))
PYOPS_SELFTEST(run_much_shared, int, launch(dynamic_sum, 1, 100, 50 * 1024, nullptr, out))
PYOPS_SELFTEST(run_large_shared, int, pyops::cuda::launch_large(dynamic_sum, 1, 100, 50 * 1024, nullptr, out))
PYOPS_SELFTEST(run_too_large_shared, int,
               pyops::cuda::launch_large(dynamic_sum, 1, 100, 100 * 1024, nullptr, out))
PYOPS_SELFTEST(run_wide_block, int, launch(count_threads, 1, 1025, 0, nullptr, out))
PYOPS_SELFTEST(run_tall_grid, int, launch(count_threads, dim3(1, 65536), 1, 0, nullptr, out))
PYOPS_SELFTEST(run_together, int, launch_together(pass_on, 16, out))
PYOPS_SELFTEST(run_too_many_together, int, launch_together(pass_on, 17, out))
PYOPS_SELFTEST(run_wait_for_nobody, int, launch_together(wait_for_nobody, 2))
PYOPS_SELFTEST(run_shared_overflow, float, launch(shared_overflow, 1, kThreads, 0, nullptr, out))
