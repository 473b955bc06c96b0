// What the launchers need of a tensor: its device and that device's current stream.
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

}  // namespace pyops::cuda
