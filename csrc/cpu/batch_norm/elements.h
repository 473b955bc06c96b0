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

// What is read and written of neighbouring elements, and of those of the rows behind them; residual and mask
// may be null.
template <class T>
struct NormElements {
  const T* x;
  const T* residual;
  T* y;
  uint8_t* mask;
  int64_t stride = 0, mask_stride = 0;  // between rows

  NormElements row(int64_t r) const {
    return {x + r * stride, residual ? residual + r * stride : nullptr,
            y + r * stride, mask ? mask + r * mask_stride : nullptr,
            stride,         mask_stride};
  }
};

// Calls f(rows, first) for `count` rows, two at a time: what they need of their channels is then loaded once.
// `rows` is a compile-time constant.
template <class F>
void for_each_pair(int64_t count, const F& f) {
  int64_t first = 0;
  for (; first + 2 <= count; first += 2) f(std::integral_constant<int, 2>{}, first);
  if (first < count) f(std::integral_constant<int, 1>{}, first);
}
// The last rows first.
template <class F>
void for_each_pair_backwards(int64_t count, const F& f) {
  if (count % 2) f(std::integral_constant<int, 1>{}, --count);
  for (; count > 0; count -= 2) f(std::integral_constant<int, 2>{}, count - 2);
}

// y = activation(normalised x + residual) of n elements of kRows rows.
template <int kRows, class T, class Activation, class Channels>
void normalize_elements(const Activation& activation, const Channels& channels, const NormElements<T>& all,
                        int64_t n, bool stream) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const auto sum = [](const NormElements<T>& of, const auto& at, int64_t i, int lanes)
                       __attribute__((always_inline)) {
                         const V v = math::normalized(load_lanes(of.x + i, lanes) - at.center(i, lanes),
                                                      at.scale(i, lanes), at.shift(i, lanes));
                         return of.residual ? v + load_lanes(of.residual + i, lanes) : v;
                       };
  stream = can_stream(all.y, stream) && (kRows == 1 || can_stream(all.y + all.stride, stream));
  if constexpr (Activation::kOnPieces) {
    alignas(kVectorBytes) Acc piece[kNormPiece];
    for (int row = 0; row < kRows; ++row) {
      const NormElements<T> of = all.row(row);
      for (int64_t begin = 0; begin < n; begin += kNormPiece) {
        const int64_t count = std::min(kNormPiece, n - begin);
        for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
          store_lanes(piece + i, sum(of, channels, begin + i, lanes), lanes);
        });
        activation.forward(piece, count);
        for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
          put(of.y + begin + i, load_lanes(piece + i, lanes), lanes, stream && lanes == V::kLanes);
        });
      }
    }
  } else {
    NormElements<T> of_rows[kRows];
    for (int row = 0; row < kRows; ++row) of_rows[row] = all.row(row);
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const auto& at = held(channels, i, lanes, false);
      PYOPS_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const NormElements<T>& of = of_rows[row];
        const V v = sum(of, at, i, lanes);
        if (of.mask) {
          store_bits<V::kLanes>(of.mask, i, lanes, bits_above(v, math::largest_stored_as_zero<T>()));
        }
        put(of.y + i, activation.forward(v), lanes, stream && lanes == V::kLanes);
      }
    });
  }
}

// ---- backward -------------------------------------------------------------------------------------------

// How the gradient of an activation's output becomes that of its input.
enum class GradientOf { kIdentity, kRelu, kMaskedRelu, kOther };

// What the gradient of neighbouring elements is made of, and that of those of the rows behind them.
template <class T>
struct GradientInputs {
  const T* grad;
  const T* x;
  const T* residual;                    // for kRelu and kOther; may be null
  const uint8_t* mask;                  // of kMaskedRelu
  int64_t stride = 0, mask_stride = 0;  // between rows

  // From element `at`, whose bit is the lowest of the mask's byte `bit`.
  GradientInputs from(int64_t at, int64_t bit) const {
    return {grad + at, x + at,     residual ? residual + at : nullptr, mask ? mask + bit : nullptr,
            stride,    mask_stride};
  }
  GradientInputs row(int64_t r) const { return from(r * stride, r * mask_stride); }
};

// The gradients of the normalised values plus residual, made of the activation's piece by piece.
template <class T, class Channels>
void gradient_piece(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                    const GradientInputs<T>& from, int64_t begin, int64_t count, acc_t<T>* grads) {
  using Acc = acc_t<T>;
  alignas(kVectorBytes) Acc values[kNormPiece];
  for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
    const int64_t at = begin + i;
    Vec<Acc> z = math::normalized(load_lanes(from.x + at, lanes) - channels.center(at, lanes),
                                  channels.scale(at, lanes), channels.shift(at, lanes));
    if (from.residual) z = z + load_lanes(from.residual + at, lanes);
    store_lanes(values + i, z, lanes);
    store_lanes(grads + i, load_lanes(from.grad + at, lanes), lanes);
  });
  activation.backward(values, false, grads, count);
}

// The same of one vector, for the other kinds.
template <GradientOf kOf, class T>
PYOPS_HD Vec<acc_t<T>> gradient_vector(const OneChannel<acc_t<T>>& at, const GradientInputs<T>& from,
                                       Vec<acc_t<T>> deviation, int64_t i, int lanes) {
  using V = Vec<acc_t<T>>;
  const V g = load_lanes(from.grad + i, lanes);
  if constexpr (kOf == GradientOf::kRelu) {
    V z = math::normalized(deviation, at.same.scale, at.same.shift);
    if (from.residual) z = z + load_lanes(from.residual + i, lanes);
    return select_at_most(z, V(math::largest_stored_as_zero<T>()), V(acc_t<T>(0)), g);
  }
  if constexpr (kOf == GradientOf::kMaskedRelu) {
    return where_bit(load_bits<V::kLanes>(from.mask, i, lanes), g);
  }
  return g;
}

// Calls use(i, lanes, at, g, d) for each vector of n elements of kRows rows: arrays of the rows' gradients of
// the normalised value plus residual, and of their x - center; `at` is what they need of their channels.
template <GradientOf kOf, int kRows, class T, class Channels, class Use>
PYOPS_HD void for_each_gradient(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                                const GradientInputs<T>& all, bool through, int64_t n, const Use& use) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  GradientInputs<T> rows[kRows];
  for (int row = 0; row < kRows; ++row) rows[row] = all.row(row);
  const auto call = [&](int64_t i, int lanes, const auto& gradient) __attribute__((always_inline)) {
    const OneChannel<Acc>& at = held(channels, i, lanes, through);
    V g[kRows], d[kRows];
    PYOPS_UNROLL
    for (int row = 0; row < kRows; ++row) {
      d[row] = load_lanes(rows[row].x + i, lanes) - at.same.center;
      g[row] = gradient(at, d[row], row);
    }
    use(i, lanes, at, g, d);
  };
  if constexpr (kOf == GradientOf::kOther) {
    alignas(kVectorBytes) Acc grads[kRows][kNormPiece];
    for (int64_t begin = 0; begin < n; begin += kNormPiece) {
      const int64_t count = std::min(kNormPiece, n - begin);
      for (int row = 0; row < kRows; ++row) {
        gradient_piece(activation, channels, rows[row], begin, count, grads[row]);
      }
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        call(begin + i, lanes, [&](const auto&, V, int row) { return load_lanes(grads[row] + i, lanes); });
      });
    }
  } else {
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      call(i, lanes, [&](const auto& at, V deviation, int row) __attribute__((always_inline)) {
        return gradient_vector<kOf>(at, rows[row], deviation, i, lanes);
      });
    });
  }
}

// Adds to the sums of n columns those over kRows rows of the gradient and of its product with x - center.
template <GradientOf kOf, int kRows, class T, class Channels>
void add_gradients(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                   const GradientInputs<T>& all, int64_t n, acc_t<T>* grads, acc_t<T>* products) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  for_each_gradient<kOf, kRows>(activation, channels, all, false, n,
                                [&](int64_t i, int lanes, const auto&, const V(&g)[kRows], const V(&d)[kRows])
                                    __attribute__((always_inline)) {
                                      V grad = load_lanes(grads + i, lanes),
                                        product = load_lanes(products + i, lanes);
                                      PYOPS_UNROLL
                                      for (int row = 0; row < kRows; ++row) {
                                        grad += g[row];
                                        product = multiply_add(g[row], d[row], product);
                                      }
                                      store_lanes(grads + i, grad, lanes);
                                      store_lanes(products + i, product, lanes);
                                    });
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

// The gradients of n elements of kRows rows.
template <GradientOf kOf, int kRows, class T, class Channels>
void write_gradients(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                     const GradientInputs<T>& from, const GradientOutputs<T>& to, int64_t n) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  T *const dx = to.dx, *const dresidual = to.dresidual;
  const int64_t stride = from.stride;
  const bool through = to.through_statistics;
  const auto can = [&](T* p) {
    return can_stream(p, to.stream) && (kRows == 1 || can_stream(p + stride, true));
  };
  const bool stream_x = can(dx), stream_r = can(dresidual);
  for_each_gradient<kOf, kRows>(
      activation, channels, from, through, n,
      [&](int64_t i, int lanes, const OneChannel<Acc>& at, const V(&g)[kRows], const V(&d)[kRows])
          __attribute__((always_inline)) {
            const bool full = lanes == V::kLanes;
            const auto& [center, scale, shift, slope, offset] = at.same;
            PYOPS_UNROLL
            for (int row = 0; row < kRows; ++row) {
              if (dresidual) put(dresidual + row * stride + i, g[row], lanes, stream_r && full);
              if (!dx) continue;
              const V gradient =
                  through ? math::input_gradient(g[row], d[row], scale, slope, offset) : g[row] * scale;
              put(dx + row * stride + i, gradient, lanes, stream_x && full);
            }
          });
}

}  // namespace pyops::cpu
