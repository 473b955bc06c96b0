// What follows a matrix product, a convolution or nothing at all, on groups of neighbouring elements:
//   y = residual + mask * activation(x + bias)
// and its gradient, with the mask made again from the seed. One evaluation of Philox serves a group of 8
// elements that starts at a multiple of 8, so that is what a thread takes: 16 bytes or more of each tensor.
#pragma once

#include "common/philox.h"
#include "cuda/device/memory.cuh"
#include "math/activation.h"
#include "math/dropout.h"

namespace pyops::cuda {

constexpr int kGroup = kDrawsPerBlock;

// Elements [first, last) of a group; the others are neither read nor written.
struct GroupRange {
  int first;
  int last;
  __device__ __forceinline__ bool whole() const { return first == 0 && last == kGroup; }
  __device__ __forceinline__ bool has(int k) const { return first <= k && k < last; }
};

// `aligned`: p is at a 16-byte boundary.
template <class T>
__device__ __forceinline__ void load_group(const T* p, GroupRange range, bool aligned,
                                           acc_t<T> (&values)[kGroup]) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && range.whole()) {
#pragma unroll
    for (int first = 0; first < kGroup; first += kSize) {
      acc_t<T> part[kSize];
      widen(load_pack(p + first), part);
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[first + k] = part[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) values[k] = range.has(k) ? to_acc(p[k]) : acc_t<T>(0);
  }
}

template <class T>
__device__ __forceinline__ void store_group(T* p, GroupRange range, bool aligned,
                                            const acc_t<T> (&values)[kGroup]) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && range.whole()) {
#pragma unroll
    for (int first = 0; first < kGroup; first += kSize) {
      acc_t<T> part[kSize];
#pragma unroll
      for (int k = 0; k < kSize; ++k) part[k] = values[first + k];
      store_pack(p + first, part);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (range.has(k)) p[k] = from_acc<T>(values[k]);
    }
  }
}

// Dropout's mask of one tensor; without a seed nothing is dropped.
template <class Acc>
struct DropoutMask {
  const int64_t* seed;
  math::DropoutRate<Acc> rate;

  static DropoutMask of(const int64_t* seed, double p) { return {seed, math::DropoutRate<Acc>::of(p)}; }

  // Multiplies element k of the group that starts at `element`, a multiple of kGroup.
  __device__ __forceinline__ void apply(int64_t element, Acc (&values)[kGroup]) const {
    if (!seed) return;
    const PhiloxBlock block = philox(PhiloxSeed::load(seed), static_cast<uint64_t>(element) / kGroup);
    const uint32_t limit = rate.limit(block.low());
#pragma unroll
    for (int k = 0; k < kGroup; ++k) values[k] *= rate.factor(block.high(k), limit);
  }

  // The same for one element anywhere.
  __device__ __forceinline__ void apply(int64_t element, Acc (&values)[1]) const {
    if (!seed) return;
    const PhiloxBlock block = philox(PhiloxSeed::load(seed), static_cast<uint64_t>(element) / kGroup);
    const int slot = static_cast<int>(element % kGroup);  // words[slot / 2] would put them in memory
    const uint32_t low = slot & 2 ? block.words[1] : block.words[0];
    const uint32_t high = slot & 2 ? block.words[3] : block.words[2];
    const uint32_t draw = (slot & 4 ? high : low) >> (slot % 2 * 16) & 0xffffu;
    values[0] *= rate.factor(draw, rate.limit(block.low()));
  }

  // What the activation's output is, relative to the kept one.
  __device__ __forceinline__ Acc unscale() const { return seed ? rate.inverse_scale : Acc(1); }
};

// An activation chosen at run time: one kernel serves all but the commonest, which have small kernels of
// their own. visit(f) calls f(functor).
template <class Acc>
struct AnyActivation {
  math::ActivationParams params;
  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    math::dispatch_activation<Acc>(params, f);
  }
};

template <class Functor>
struct OneActivation {
  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    f(Functor{});
  }
};

// values = activation(values)
template <class Activation, class Acc, int kCount>
__device__ __forceinline__ void activate(const Activation& activation, Acc (&values)[kCount]) {
  activation.visit([&](const auto& f) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = f.forward(values[k]);
  });
}

// grad = activation'(saved) grad. `saved` is the activation's output or, with the bias added, its input.
template <class Activation, class Acc, int kCount>
__device__ __forceinline__ void differentiate(const Activation& activation, bool saved_is_output,
                                              const Acc (&saved)[kCount], Acc (&grad)[kCount]) {
  activation.visit([&](const auto& f) {
    const math::FromInput<std::decay_t<decltype(f)>> from_input{f};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      grad[k] = saved_is_output ? f.backward(saved[k], grad[k]) : from_input(saved[k], grad[k]);
    }
  });
}

// Calls f(activation), for an argument of the kernels, on the host.
template <class Acc, class F>
void with_activation(const math::ActivationParams& params, const F& f) {
  switch (static_cast<math::ActivationKind>(params.kind)) {
    case math::ActivationKind::kIdentity:
      return f(OneActivation<math::Identity<Acc>>{});
    case math::ActivationKind::kRelu:
      return f(OneActivation<math::Relu<Acc>>{});
    default:
      return f(AnyActivation<Acc>{params});
  }
}

}  // namespace pyops::cuda
