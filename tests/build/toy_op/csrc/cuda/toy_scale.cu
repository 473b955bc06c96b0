// A tensor times a number, on CUDA.
#include "binding/toy_scale.h"
#include "cuda/device/elementwise.cuh"
#include "cuda/device/tensor.cuh"

namespace pyops::cuda {
namespace {

Tensor toy_scale(Tensor input, double factor) {
  const DeviceScope device(input);
  Tensor output = new_tensor_like(input);
  dispatch_toy_scale(input, factor, "toy_scale", [&](auto tag, const auto& formula) {
    using T = decltype(tag);
    elementwise(input.numel(), device.stream, formula, mutable_data<T>(output), data<T>(input));
  });
  return output;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) { m.impl("toy_scale", TORCH_BOX(&pyops::cuda::toy_scale)); }
