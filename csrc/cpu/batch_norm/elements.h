// Batch normalisation of neighbouring elements: a run of one channel, or a part of a row in which channels
// alternate.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/batch_norm/channels.h"
#include "cpu/epilogue/activation.h"
#include "cpu/simd/bits.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"
#include "cpu/simd/multiply_add.h"
#include "cpu/simd/stream.h"
#include "math/batch_norm.h"

namespace pyops::cpu {

inline bool streams(const Tensor& output) {
  return output.numel() * static_cast<int64_t>(output.element_size()) >= kStreamBytes;
}

// Fetches the elements of a run: a short one is over before the hardware has seen that it goes on.
template <class T>
void fetch(const T* run, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(run + i);
}

// ---- forward --------------------------------------------------------------------------------------------

// Elements that AnyActivation works on at a time.
constexpr int64_t kNormPiece = 1024;

// y = activation(normalised x + residual); residual and mask may be null.
template <class T, class Activation, class Channels>
void normalize_elements(const Activation& activation, const Channels& channels, const T* x, const T* residual,
                        T* y, uint8_t* mask, int64_t n, bool stream) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  constexpr bool kOnPieces = Activation::kOnPieces;
  alignas(kVectorBytes) Acc piece[kOnPieces ? kNormPiece : 1];
  const auto sum = [&](int64_t i, int lanes) {
    V v = math::normalized(load_lanes(x + i, lanes) - channels.center(i, lanes), channels.scale(i, lanes),
                           channels.shift(i, lanes));
    return residual ? v + load_lanes(residual + i, lanes) : v;
  };
  stream = can_stream(y, stream);
  if constexpr (kOnPieces) {
    for (int64_t begin = 0; begin < n; begin += kNormPiece) {
      const int64_t count = std::min(kNormPiece, n - begin);
      for_each_vector<Acc>(
          count, [&](int64_t i, int lanes) { store_lanes(piece + i, sum(begin + i, lanes), lanes); });
      activation.forward(piece, count);
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        put(y + begin + i, load_lanes(piece + i, lanes), lanes, stream && lanes == V::kLanes);
      });
    }
  } else {
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const V v = sum(i, lanes);
      if (mask) {
        store_bits<V::kLanes>(mask, i, lanes, bits_above(v, math::largest_stored_as_zero<T>()));
      }
      put(y + i, activation.forward(v), lanes, stream && lanes == V::kLanes);
    });
  }
}

// ---- backward -------------------------------------------------------------------------------------------

// How the gradient of an activation's output becomes that of its input.
enum class GradientOf { kIdentity, kRelu, kMaskedRelu, kOther };

// What the gradient of neighbouring elements is made of.
template <class T>
struct GradientInputs {
  const T* grad;
  const T* x;
  const T* residual;    // for kRelu and kOther; may be null
  const uint8_t* mask;  // of kMaskedRelu

  // From element `at`, whose bit is the lowest of the mask's byte `bit`.
  GradientInputs from(int64_t at, int64_t bit) const {
    return {grad + at, x + at, residual ? residual + at : nullptr, mask ? mask + bit : nullptr};
  }
};

// Calls use(i, lanes, g, x - center) with each vector's gradient of the normalised value plus residual.
template <GradientOf kOf, class T, class Channels, class Use>
PYOPS_HD void for_each_gradient(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                                const GradientInputs<T>& from, int64_t n, const Use& use) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const auto deviation = [&](int64_t i, int lanes) {
    return load_lanes(from.x + i, lanes) - channels.center(i, lanes);
  };
  if constexpr (kOf == GradientOf::kOther) {
    alignas(kVectorBytes) Acc values[kNormPiece], grads[kNormPiece];
    for (int64_t begin = 0; begin < n; begin += kNormPiece) {
      const int64_t count = std::min(kNormPiece, n - begin);
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        const int64_t at = begin + i;
        V z = math::normalized(deviation(at, lanes), channels.scale(at, lanes), channels.shift(at, lanes));
        if (from.residual) z = z + load_lanes(from.residual + at, lanes);
        store_lanes(values + i, z, lanes);
        store_lanes(grads + i, load_lanes(from.grad + at, lanes), lanes);
      });
      activation.backward(values, false, grads, count);
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        use(begin + i, lanes, load_lanes(grads + i, lanes), deviation(begin + i, lanes));
      });
    }
  } else {
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const V d = deviation(i, lanes);
      V g = load_lanes(from.grad + i, lanes);
      if constexpr (kOf == GradientOf::kRelu) {
        V z = math::normalized(d, channels.scale(i, lanes), channels.shift(i, lanes));
        if (from.residual) z = z + load_lanes(from.residual + i, lanes);
        g = select_at_most(z, V(math::largest_stored_as_zero<T>()), V(Acc(0)), g);
      } else if constexpr (kOf == GradientOf::kMaskedRelu) {
        g = where_bit(load_bits<V::kLanes>(from.mask, i, lanes), g);
      }
      use(i, lanes, g, d);
    });
  }
}

// Where backward writes: the gradients of the input and of the residual, of which either may be null.
template <class T>
struct GradientOutputs {
  T* dx;
  T* dresidual;
  bool through_statistics;  // whether the input's gradient has a part through the batch's mean and variance
  bool stream;

  GradientOutputs from(int64_t at) const {
    return {dx ? dx + at : nullptr, dresidual ? dresidual + at : nullptr, through_statistics, stream};
  }
};

template <GradientOf kOf, class T, class Channels>
void write_gradients(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                     const GradientInputs<T>& from, const GradientOutputs<T>& to, int64_t n) {
  using V = Vec<acc_t<T>>;
  T *const dx = to.dx, *const dresidual = to.dresidual;
  const bool through = to.through_statistics;
  const bool stream_x = can_stream(dx, to.stream), stream_r = can_stream(dresidual, to.stream);
  for_each_gradient<kOf>(activation, channels, from, n, [&](int64_t i, int lanes, V g, V d) {
    const bool full = lanes == V::kLanes;
    if (dresidual) put(dresidual + i, g, lanes, stream_r && full);
    if (dx) {
      const V scale = channels.scale(i, lanes);
      const V gradient =
          through ? math::input_gradient(g, d, scale, channels.slope(i, lanes), channels.offset(i, lanes))
                  : g * scale;
      put(dx + i, gradient, lanes, stream_x && full);
    }
  });
}

}  // namespace pyops::cpu
