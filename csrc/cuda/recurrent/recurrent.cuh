// What the two sources of the recurrent layers' launchers share.
//
// The time loop of a layer runs in the first of three ways that suits: in one launch whose blocks each have
// all recurrent weights and share nothing (loop.cuh); in one cooperative launch whose blocks each have some
// of the units (grid.cuh); or step by step, each a product by the vendor's library and one pass over its
// result (step.cuh). Products over all steps are in product.cu.
#pragma once

#include "cuda/device/tensor.cuh"
#include "cuda/recurrent/step.cuh"

namespace pyops::cuda {

// How the products of a call are formed. float32 alone has a choice, by torch's switches.
struct RecurrentProducts {
  RecurrentProducts(ScalarType dtype, int64_t steps);
  bool tf32;            // those of the recurrent weights may round their factors
  bool library_rounds;  // the vendor's library would round where that is not allowed
};

// out[M, N] = a[M, K] @ b[K, N], `out` contiguous.
void product(const Tensor& out, const Tensor& a, const Tensor& b, const RecurrentProducts& how,
             cudaStream_t stream);

// One direction of one layer.
struct RecurrentCall {
  const RecurrentShape& shape;
  int64_t kind;
  bool reverse;
  const Tensor& weight_hh;
  RecurrentProducts products;
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
