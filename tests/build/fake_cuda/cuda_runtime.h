// A CUDA runtime that runs nothing and remembers what it was asked for: enough for the branch of
// csrc/cuda/launch.h that nvcc compiles. Like the real one it refuses a launch that takes more shared memory
// than its kernel may, and keeps the last error until somebody takes it.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace fake {

constexpr size_t kStaticShared = 1024;
constexpr int kMostShared = 99 * 1024, kDefaultShared = 48 * 1024, kMultiprocessors = 4;

inline thread_local int device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline std::mutex mutex;
// How much a kernel may take on a device, by kernel and device, in the order of the requests.
using Key = std::pair<const void*, int>;
inline std::map<Key, std::vector<int>> requests;

inline cudaError_t answer(bool good) {
  if (!good) last_error = cudaErrorInvalidValue;
  return good ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace fake

inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() { return std::exchange(fake::last_error, cudaSuccess); }
inline cudaError_t cudaGetDevice(int* device) {
  *device = fake::device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const bool shared = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  *value = shared ? fake::kMostShared : fake::kMultiprocessors;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->sharedSizeBytes = fake::kStaticShared;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  fake::requests[{reinterpret_cast<const void*>(kernel), fake::device}].push_back(bytes);
  return fake::answer(bytes + fake::kStaticShared <= fake::kMostShared);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&...) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  const auto asked = fake::requests.find({reinterpret_cast<const void*>(kernel), fake::device});
  const int allowed = asked == fake::requests.end() ? fake::kDefaultShared : asked->second.back();
  return fake::answer(config->dynamicSmemBytes <= static_cast<size_t>(allowed));
}
