// Loops over elements on CUDA: one output element from the elements at the same place in the inputs.
#pragma once

#include "cuda/device/blocks.cuh"
#include "cuda/device/memory.cuh"

namespace pyops::cuda {

constexpr int kElementwiseThreads = 256;

// Pointers to the inputs; all tensors of an elementwise kernel have one dtype and length.
template <class T, int kInputs>
struct Inputs {
  const T* data[kInputs];
};

// f(x) with x[k] the element of input k.
template <class F, class Acc>
__device__ __forceinline__ Acc apply_elementwise(const F& f, const Acc (&x)[1]) {
  return f(x[0]);
}
template <class F, class Acc>
__device__ __forceinline__ Acc apply_elementwise(const F& f, const Acc (&x)[2]) {
  return f(x[0], x[1]);
}
template <class F, class Acc>
__device__ __forceinline__ Acc apply_elementwise(const F& f, const Acc (&x)[3]) {
  return f(x[0], x[1], x[2]);
}

// The threads share out the 16-byte packs first, then the single elements before and behind them. The output
// may be one of the inputs: one thread reads and writes an element.
template <class T, int kInputs, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(int64_t n, bool aligned, F f, Inputs<T, kInputs> inputs, T* output) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(output) / sizeof(T) % kSize);
  const int64_t head = (kSize - past) % kSize;
  const int64_t packs = aligned && head < n ? (n - head) / kSize : 0;
  for (int64_t p = thread; p < packs; p += threads) {
    const int64_t at = head + p * kSize;
    Acc x[kInputs][kSize];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) widen(load_pack(inputs.data[k] + at), x[k]);
    Acc y[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      Acc arguments[kInputs];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) arguments[k] = x[k][i];
      y[i] = apply_elementwise(f, arguments);
    }
    store_pack(output + at, y);
  }
  for (int64_t i = thread; i < n - packs * kSize; i += threads) {
    const int64_t at = packs == 0 || i < head ? i : i + packs * kSize;
    Acc arguments[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) arguments[k] = to_acc(inputs.data[k][at]);
    output[at] = from_acc<T>(apply_elementwise(f, arguments));
  }
}

// output[i] = f(input[i]...), f a functor of numbers (of type acc_t<T>) with at most three arguments.
template <class T, class F, class... In>
void elementwise(int64_t n, cudaStream_t stream, const F& f, T* output, const In*... inputs) {
  if (n == 0) return;
  const int64_t per_block = int64_t{kElementwiseThreads} * Pack<T>::kSize;
  const unsigned blocks = blocks_for(n, per_block);
  launch(elementwise_kernel<T, sizeof...(In), F>, blocks, kElementwiseThreads, 0, stream, n,
         same_alignment(output, inputs...), f, Inputs<T, sizeof...(In)>{{inputs...}}, output);
}

}  // namespace pyops::cuda
