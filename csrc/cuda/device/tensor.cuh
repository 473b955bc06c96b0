// What the launchers need of a tensor: typed pointers, its device and that device's current stream.
#pragma once

#include "binding/tensor.h"
#include "cuda/launch.h"

namespace pyops::cuda {

// Makes the tensor's device current for the launches in its scope.
struct DeviceScope {
  explicit DeviceScope(const Tensor& t)
      : guard(t.get_device_index()), stream(current_stream(t.get_device_index())) {}
  DeviceGuard guard;
  cudaStream_t stream;
};

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace pyops::cuda
