// A stand-in for the CUDA toolkit's header: what the sources in csrc/cuda use of CUDA, for a host compiler.
//
// Every CUDA thread is a fiber (emulator.cpp); blocks run one after another, those of a cooperative launch
// together. A fiber runs until it needs others, at a barrier, a warp-wide exchange or a counter that other
// blocks move, so threads interleave only there, in an order that PYOPS_EMULATION_SEED shuffles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "launcher.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };

// Those of the fiber that runs; set by the scheduler before it resumes one.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

struct Site {
  const char* file;
  int line;
};

// The blocks of a cooperative launch, which are resident all at once.
constexpr unsigned kResidentBlocks = 16;

// Runs the call for every thread of the grid: `thread` in fibers, or the launcher that this host thread has
// chosen. Throws std::runtime_error on a launch that CUDA would refuse and on a block that can never finish.
void run(const Launch& launch, const KernelCall& call, const std::function<void()>& thread);

int64_t resident_blocks(const void* kernel, int threads, size_t shared_bytes);

// As <<<>>> does: the arguments become the kernel's parameters first.
template <class... Parameters, class... Arguments>
void launch(const Launch& launch, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  std::apply(
      [&](const Parameters&... p) {
        const void* const pointers[] = {&p..., nullptr};
        const uint32_t bytes[] = {sizeof(p)..., 0};
        run(launch, {reinterpret_cast<const void*>(kernel), sizeof...(p), pointers, bytes},
            [&] { kernel(p...); });
      },
      parameters);
}

void barrier(Site site);

// Until *counter has reached `target`, in arithmetic modulo 2^32.
void wait_for_counter(const unsigned* counter, unsigned target, Site site);

struct Exchanged {
  uint64_t value;   // what lane `source` deposited
  unsigned ballot;  // bit i: lane i deposited something other than zero
};
// Waits until every lane in `mask` is here.
Exchanged exchange(unsigned mask, int source, uint64_t deposit, Site site);

// A warp-wide operation: waits until all lanes are here, then apply(pointers), with what lane i brought at
// pointers[i], is called once. It reads and writes what the pointers name while every lane stands still.
void collective(void* mine, void (*apply)(void* const* pointers), Site site);

// cp.async: the running thread's copies, in groups. A copy is made when it is waited for and no sooner, so
// that a missing wait shows. Of `bytes` the first `given` are read, the others are zero.
void copy_async(void* to, const void* from, int bytes, int given);
void commit_copies();
void wait_for_copies(int pending_groups);

// The running block's shared array of that key, garbage at first.
void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();

int lane();

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, source, bits, site).value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// A lane outside the segment of `width` lanes means the caller's own.
inline int in_segment(int source, int width) {
  return source / width == lane() / width && source >= 0 ? source : lane();
}

}  // namespace emulation

// The caller's place in the source, for error messages and to tell one barrier from another.
#define PYOPS_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(PYOPS_SITE) { emulation::barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, PYOPS_SITE) {
  emulation::exchange(mask, emulation::lane(), 0, {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, PYOPS_SITE) {
  const int first = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, first + source % width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, PYOPS_SITE) {
  return emulation::shuffle(mask, value, emulation::in_segment(emulation::lane() ^ lane_mask, width),
                            {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, PYOPS_SITE) {
  return emulation::shuffle(mask, value, emulation::in_segment(emulation::lane() + int(delta), width),
                            {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, PYOPS_SITE) {
  return emulation::shuffle(mask, value, emulation::in_segment(emulation::lane() - int(delta), width),
                            {file, line});
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, PYOPS_SITE) {
  return emulation::exchange(mask, emulation::lane(), predicate, {file, line}).ballot;
}
inline bool __any_sync(unsigned mask, bool predicate, PYOPS_SITE) {
  return emulation::exchange(mask, emulation::lane(), predicate, {file, line}).ballot != 0;
}
inline bool __all_sync(unsigned mask, bool predicate, PYOPS_SITE) {
  return emulation::exchange(mask, emulation::lane(), predicate, {file, line}).ballot == mask;
}

#undef PYOPS_SITE

// Fibers never run at the same time, so a plain access is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (old < value) *address = value;
  return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}
