// What follows the convolution's sums: bias, residual and activation, and how the result is written.
#pragma once

#include "cuda/conv2d/geometry.cuh"
#include "cuda/epilogue/fused.cuh"

namespace pyops::cuda {

// activation(sums + bias + residual), and where it goes. Null: not there, or not wanted.
template <class T>
struct ConvEpilogue {
  const T* bias;
  const T* residual;
  T* saved;  // the activation's input
  T* output;
  AnyActivation<acc_t<T>> activation;
  bool channels_inner;
  bool packs;  // 16 bytes of neighbouring channels can be accessed at once

  // The same for so many channels side by side.
  ConvEpilogue over(int64_t channels) const {
    ConvEpilogue epilogue = *this;
    epilogue.packs = channels_inner && channels % kChunk<T> == 0 && is_aligned(output) &&
                     is_aligned(residual) && is_aligned(saved);
    return epilogue;
  }

  // Elements `at`, at + stride, ..., of channels `channel`, channel + 1, ...
  template <int kSize>
  __device__ __forceinline__ void store(acc_t<T> (&values)[kSize], int64_t at, int64_t stride, int channel,
                                        int count) const {
    const bool whole = kSize == kChunk<T> && packs && count == kSize;
    if (bias) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] += k < count ? to_acc(bias[channel + k]) : acc_t<T>(0);
    }
    if (residual) {
      acc_t<T> more[kSize];
      bool loaded = false;
      if constexpr (kSize == kChunk<T>) {
        loaded = whole;
        if (whole) widen(load_pack(residual + at), more);
      }
      if (!loaded) {
#pragma unroll
        for (int k = 0; k < kSize; ++k) more[k] = k < count ? to_acc(residual[at + k * stride]) : acc_t<T>(0);
      }
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] += more[k];
    }
    if (saved) write(saved + at, values, stride, count, whole);
    if (!activation.params.is(math::ActivationKind::kIdentity)) activate(activation, values);
    write(output + at, values, stride, count, whole);
  }

 private:
  template <int kSize>
  static __device__ __forceinline__ void write(T* to, const acc_t<T> (&values)[kSize], int64_t stride,
                                               int count, bool whole) {
    if constexpr (kSize == kChunk<T>) {
      if (whole) return store_pack(to, values);
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (k < count) to[k * stride] = from_acc<T>(values[k]);
    }
  }
};

}  // namespace pyops::cuda
