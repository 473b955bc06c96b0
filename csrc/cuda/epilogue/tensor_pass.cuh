// The epilogue as one pass over whole tensors, and its gradient.
#pragma once

#include "binding/dropout.h"
#include "cuda/device/blocks.cuh"
#include "cuda/epilogue/fused.cuh"

namespace pyops::cuda {

constexpr int kEpilogueThreads = 256;
constexpr int64_t kSmall = int64_t{1} << 31;  // indices below need no 64-bit division

// The bias of elements of a tensor [outer, channels, inner].
template <class T>
struct ChannelBias {
  using Acc = acc_t<T>;
  const T* bias;  // null: none
  int64_t channels;
  int64_t inner;
  bool small;       // all indices are below kSmall
  bool neighbours;  // a group's elements have neighbouring channels, at a 16-byte boundary
  bool shared;      // a group's elements have one channel

  static ChannelBias of(const T* bias, const ReducedShape& s) {
    return {bias,
            s.classes,
            s.inner,
            s.rows() * s.classes < kSmall,
            s.inner == 1 && s.classes % kGroup == 0 && is_aligned(bias),
            s.inner % kGroup == 0};
  }

  __device__ __forceinline__ int64_t divide(int64_t a, int64_t b) const {
    return small ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
  }

  __device__ __forceinline__ void add(int64_t element, Acc (&values)[1]) const {
    if (!bias) return;
    const int64_t row = divide(element, inner);
    values[0] += to_acc(bias[row - divide(row, channels) * channels]);
  }

  __device__ __forceinline__ void add(int64_t element, Acc (&values)[kGroup]) const {
    if (!bias) return;
    const int64_t row = divide(element, inner);
    int64_t channel = row - divide(row, channels) * channels;
    if (neighbours) {
      Acc loaded[kGroup];
      load_group(bias + channel, {0, kGroup}, true, loaded);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += loaded[k];
    } else if (shared) {
      const Acc loaded = to_acc(bias[channel]);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += loaded;
    } else {
      int64_t left = inner - (element - row * inner);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        values[k] += to_acc(bias[channel]);
        if (--left > 0) continue;
        left = inner;
        if (++channel == channels) channel = 0;
      }
    }
  }
};

template <class T, class Activation>
struct EpilogueForward {
  using Acc = acc_t<T>;
  static constexpr int kWidth = kGroup;  // elements that a thread takes at once
  const T* input;
  const T* residual;  // null: none
  T* output;
  ChannelBias<T> bias;
  DropoutMask<Acc> mask;
  Activation activation;
  bool aligned;

  __device__ __forceinline__ void group(int64_t element, GroupRange range) const {
    Acc values[kGroup];
    load_group(input + element, range, aligned, values);
    bias.add(element, values);
    activate(activation, values);
    mask.apply(element, values);
    if (residual) {
      Acc added[kGroup];
      load_group(residual + element, range, aligned, added);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += added[k];
    }
    store_group(output + element, range, aligned, values);
  }
};

template <class T, class Activation>
struct EpilogueBackward {
  using Acc = acc_t<T>;
  // The functions that float64 calls leave too few registers for a group of elements.
  static constexpr int kWidth = std::is_same_v<Activation, AnyActivation<double>> ? 1 : kGroup;
  const T* grad_output;
  const T* saved;  // null: the activation is the identity
  T* grad_input;   // null: only the bias's gradient is wanted
  ChannelBias<T> bias;
  DropoutMask<Acc> mask;
  Activation activation;
  bool saved_is_output;
  bool aligned;

  __device__ __forceinline__ void group(int64_t element, GroupRange range) const {
    Acc grad[kWidth];
    gradient(element, range, grad, [&](Acc(&values)[kWidth]) { bias.add(element, values); });
  }

  // Writes the group's gradient and leaves it in `grad`, with zeros out of range. add_bias(values) adds the
  // bias.
  template <class AddBias>
  __device__ __forceinline__ void gradient(int64_t element, GroupRange range, Acc (&grad)[kGroup],
                                           const AddBias& add_bias) const {
    load_group(grad_output + element, range, aligned, grad);
    mask.apply(element, grad);
    if (saved) {
      Acc values[kGroup];
      load_group(saved + element, range, aligned, values);
      finish(values, grad, add_bias);
    }
    if (grad_input) store_group(grad_input + element, range, aligned, grad);
  }

  // The same for one element anywhere.
  template <class AddBias>
  __device__ __forceinline__ void gradient(int64_t element, GroupRange, Acc (&grad)[1],
                                           const AddBias& add_bias) const {
    grad[0] = to_acc(grad_output[element]);
    mask.apply(element, grad);
    if (saved) {
      Acc values[1] = {to_acc(saved[element])};
      finish(values, grad, add_bias);
    }
    if (grad_input) grad_input[element] = from_acc<T>(grad[0]);
  }

  template <int kCount, class AddBias>
  __device__ __forceinline__ void finish(Acc (&values)[kCount], Acc (&grad)[kCount],
                                         const AddBias& add_bias) const {
    if (saved_is_output) {
      const Acc unscale = mask.unscale();
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] *= unscale;
    } else {
      add_bias(values);
    }
    differentiate(activation, saved_is_output, values, grad);
  }
};

template <class Work>
__global__ void __launch_bounds__(kEpilogueThreads) epilogue_kernel(Work work, int64_t n) {
  constexpr int kWidth = Work::kWidth;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kWidth;
  int64_t element = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  for (; element < n; element += step) {
    const int64_t left = n - element;
    work.group(element, {0, left < kWidth ? static_cast<int>(left) : kWidth});
  }
}

template <class Work>
void launch_epilogue(const Work& work, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  constexpr int64_t kPerBlock = int64_t{kEpilogueThreads} * Work::kWidth;
  launch(epilogue_kernel<Work>, blocks_for(n, kPerBlock), kEpilogueThreads, 0, stream, work, n);
}

}  // namespace pyops::cuda
