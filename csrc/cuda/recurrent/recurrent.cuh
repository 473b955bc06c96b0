// What the two sources of the recurrent layers' launchers share.
//
// The time loop of a layer runs in the first of three ways that suits: in one launch whose blocks each have
// all recurrent weights and share nothing (loop.cuh); in one cooperative launch whose blocks each have some
// of the units (grid.cuh); or step by step, each a product by the vendor's library and one pass over its
// result (step.cuh).
#pragma once

#include "cuda/device/tensor.cuh"
#include "cuda/recurrent/step.cuh"

namespace pyops::cuda {

// One direction of one layer.
struct RecurrentCall {
  const RecurrentShape& shape;
  int64_t kind;
  bool reverse;
  const Tensor& weight_hh;
  cudaStream_t stream;
};

// The steps of a call as its kernels see them, and the memory of their offsets.
struct StepsOnDevice {
  DeviceSteps steps;
  Tensor offsets;
};
StepsOnDevice steps_on_device(const RecurrentCall& call);

// The cooperative loops (grid.cu). They do nothing and return false where they do not apply: in float64, with
// rows that are no whole number of 16 bytes, on a device too small for all blocks at once.
template <class T>
bool forward_in_grid(const ForwardData<T>& at, const RecurrentCall& call);
template <class T>
bool backward_in_grid(const BackwardData<T>& at, const RecurrentCall& call);

}  // namespace pyops::cuda
