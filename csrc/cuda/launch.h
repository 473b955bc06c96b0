// The one seam between the .cu files and what runs them.
//
// They launch kernels, take shared memory, find the stream and register ops only through what is here, which
// has three implementations:
// - Compiled by nvcc they become pyops::<op> on CUDA.
// - Compiled by a host compiler with tests/cuda_emulation first on the include path they become
//   pyops_emulated::<op> on the CPU, whose kernels run in fibers.
// - The host code of that same library becomes pyops_ptx::<op> where tests/ptx_machine takes its launches and
//   runs the PTX that nvcc made of the kernels. Constants of device code must therefore not differ below.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "binding/torch_call.h"
#include "common/integers.h"

#if defined(__CUDACC__)

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>
#include <utility>

#define PYOPS_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pyops, CUDA, m)

// `type name[count]` in shared memory. A macro because the emulator has to know every shared array, to
// fill it with garbage before each block.
#define PYOPS_SHARED_ARRAY(type, name, count) __shared__ type name[count]

// `char* name`, the dynamic shared memory of the launch.
#define PYOPS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]

namespace pyops::cuda {

constexpr int64_t unless_in_tests(int64_t on_gpu, int64_t) { return on_gpu; }

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: torch would take it for the error of its next launch
  throw std::runtime_error(std::string("pyops: ") + what + " failed: " + cudaGetErrorString(error));
}

inline cudaStream_t current_stream(int32_t device_index) {
  void* stream = nullptr;
  PYOPS_TORCH_CALL(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "finding the device");
  return device;
}

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a property of the device");
  return value;
}

// Lets `kernel` take all the dynamic shared memory that a block can have on the current device, and returns
// how much that is. It is asked for once per kernel and device, and never for less: the permission belongs to
// the kernel, not to a launch, and a thread that asked for the bytes of its own launch would take from
// another thread's launch what that has just asked for.
inline size_t allow_most_shared(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  const std::pair<const void*, int> key{kernel, current_device()};
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = allowed.find(key); found != allowed.end()) return found->second;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's attributes");
  const size_t most =
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, key.second) - attributes.sharedSizeBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
        "asking for shared memory");
  return allowed[key] = most;
}

template <class... Parameters>
const void* address_of(void (*kernel)(Parameters...)) {
  return reinterpret_cast<const void*>(kernel);
}

inline cudaLaunchConfig_t launch_config(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  const cudaLaunchConfig_t config = launch_config(grid, block, shared_bytes, stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...), "kernel launch");
}

// A launch with more dynamic shared memory than the 48 KiB that a kernel may take without asking.
template <class... Parameters, class... Arguments>
void launch_large(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, Arguments&&... arguments) {
  allow_most_shared(address_of(kernel));
  launch(kernel, grid, block, shared_bytes, stream, static_cast<Arguments&&>(arguments)...);
}

// How many blocks of such a launch the current device runs at the same time; 0 when not even one fits.
template <class... Parameters>
int64_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  if (shared_bytes > allow_most_shared(address_of(kernel))) return 0;
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared_bytes),
        "counting the blocks of a multiprocessor");
  return int64_t{device_attribute(cudaDevAttrMultiProcessorCount, current_device())} * per_multiprocessor;
}

// A launch whose blocks are all resident at once, so that they may wait for each other; refused otherwise.
template <class... Parameters, class... Arguments>
void launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                        cudaStream_t stream, Arguments&&... arguments) {
  allow_most_shared(address_of(kernel));
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = launch_config(grid, block, shared_bytes, stream);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...), "cooperative launch");
}

}  // namespace pyops::cuda

#else  // the emulator

#define PYOPS_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pyops_emulated, CPU, m)

#define PYOPS_SHARED_ARRAY(type, name, count) \
  static char name##_key;                     \
  type* const name = static_cast<type*>(emulation::shared_array(&name##_key, sizeof(type) * (count)))

#define PYOPS_DYNAMIC_SHARED(name) char* const name = static_cast<char*>(emulation::dynamic_shared())

namespace pyops::cuda {

// Tests have sizes of their own, so that small ones reach loops and both ways to work. A model of a GPU asks
// for the GPU's.
inline int64_t unless_in_tests(int64_t on_gpu, int64_t in_tests) {
  return std::getenv("PYOPS_SIZES_OF_GPU") ? on_gpu : in_tests;
}

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("pyops: ") + what + " failed");
}

inline cudaStream_t current_stream(int32_t) { return nullptr; }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
  emulation::launch({grid, block, shared_bytes}, kernel, static_cast<Arguments&&>(arguments)...);
}

template <class... Parameters, class... Arguments>
void launch_large(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                  Arguments&&... arguments) {
  emulation::launch({grid, block, shared_bytes, emulation::kLargestSharedBytes}, kernel,
                    static_cast<Arguments&&>(arguments)...);
}

template <class... Parameters>
int64_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  return emulation::resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}

template <class... Parameters, class... Arguments>
void launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                        cudaStream_t, Arguments&&... arguments) {
  emulation::launch({grid, block, shared_bytes, emulation::kLargestSharedBytes, true}, kernel,
                    static_cast<Arguments&&>(arguments)...);
}

}  // namespace pyops::cuda

#endif

namespace pyops::cuda {

// Host code alone knows what differs in tests.

// The most blocks of a launch over rows; with more rows each block takes several in turn. A constant, not a
// property of the device, so that sums merge in the same order on every GPU. It also bounds the number of
// partial sums.
inline const int64_t kMaxBlocks = unless_in_tests(1 << 14, 5);

// Blocks that keep a large GPU busy. Sums are cut into about as many parts. A constant, too.
inline const int64_t kWholeGpu = unless_in_tests(264, 4);

}  // namespace pyops::cuda
