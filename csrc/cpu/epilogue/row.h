// What follows a matrix product, or nothing at all, on neighbouring elements of one row:
//   y = residual + mask * activation(x + bias)
// and its gradient, with the mask made again from the seed. The ops of dropout.cpp call it on whole tensors,
// others on pieces of their output while it is in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/epilogue/activation.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"
#include "cpu/simd/philox.h"

namespace pyops::cpu {

// Dropout's mask of one tensor; one per thread, because it holds the draws.
template <class Acc>
class DropoutMask {
 public:
  // Without a seed nothing is dropped.
  DropoutMask(const int64_t* seed, double p)
      : rate_(math::DropoutRate<Acc>::of(p)),
        draws_(seed ? PhiloxSeed::load(seed) : PhiloxSeed{}, rate_.high, rate_.low),
        active_(seed != nullptr) {}

  bool active() const { return active_; }
  const math::DropoutRate<Acc>& rate() const { return rate_; }
  const uint16_t* draws(int64_t first, int64_t count) {
    return active_ ? draws_.fill(first, count) : nullptr;
  }

 private:
  math::DropoutRate<Acc> rate_;
  RandomDraws draws_;
  bool active_;
};

// One bias per element of a row, or one for the whole row: element i has values[i & wrap].
template <class Acc>
struct RowBias {
  // Copies of the one number; a multiple of the vector, and enough that sums kept apart hide an addition.
  static constexpr int64_t kCopies = 4 * Vec<Acc>::kLanes;

  const Acc* values = nullptr;  // null: no bias
  int64_t wrap = -1;

  static RowBias per_element(const Acc* values) { return {values, -1}; }
  static RowBias one(const Acc* copies) { return {copies, kCopies - 1}; }
  RowBias from(int64_t first) const { return {values ? values + (first & wrap) : nullptr, wrap}; }
};

// n elements of one row; `first` is the number of the first of them in the tensor that the mask belongs to.
// In may be the accumulation type. `y` may be `x`; `activation_input`, if not null, gets x + bias.
template <class In, class T, class Activation>
void epilogue_forward(const Activation& activation, DropoutMask<acc_t<T>>& mask, const In* x,
                      RowBias<acc_t<T>> bias, const T* residual, T* y, T* activation_input, int64_t n,
                      int64_t first) {
  using Acc = acc_t<T>;
  constexpr bool kOnPieces = Activation::kOnPieces;
  alignas(kVectorBytes) Acc piece[kOnPieces ? kDrawChunk : 1];
  const math::DropoutRate<Acc> rate = mask.rate();
  for (int64_t begin = 0; begin < n; begin += kDrawChunk) {
    const int64_t count = std::min(kDrawChunk, n - begin);
    const uint16_t* draws = mask.draws(first + begin, count);
    const RowBias<Acc> b = bias.from(begin);
    const T* r = residual ? residual + begin : nullptr;
    const auto with_bias = [&](int64_t i, int lanes) {
      Vec<Acc> v = load_lanes(x + begin + i, lanes);
      if (b.values) v = v + load_lanes(b.values + (i & b.wrap), lanes);
      if (activation_input) store_lanes(activation_input + begin + i, v, lanes);
      return v;
    };
    if constexpr (kOnPieces) {
      for_each_vector<Acc>(count,
                           [&](int64_t i, int lanes) { store_lanes(piece + i, with_bias(i, lanes), lanes); });
      activation.forward(piece, count);
    }
    for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
      Vec<Acc> v;
      if constexpr (kOnPieces) {
        v = load_lanes(piece + i, lanes);
      } else {
        v = activation.forward(with_bias(i, lanes));
      }
      if (draws) v = v * dropout_factor(draws + i, rate);
      if (r) v = v + load_lanes(r + i, lanes);
      store_lanes(y + begin + i, v, lanes);
    });
  }
}

// What epilogue_backward reads besides the gradient.
template <class T>
struct EpilogueSaved {
  const T* values;  // null where the activation is the identity
  bool is_output;   // the forward's output, mask included and without residual; otherwise its input
  RowBias<acc_t<T>> bias;

  EpilogueSaved from(int64_t first) const {
    return {values ? values + first : nullptr, is_output, bias.from(first)};
  }
};

// The gradient of the n elements of epilogue_forward. `bias_sums`, if not null, is added to: element i's
// gradient to bias_sums[i & sums_wrap], with `wrap` as in RowBias. `dx` may be `grad`.
template <class T, class Activation>
void epilogue_backward(const Activation& activation, DropoutMask<acc_t<T>>& mask, const T* grad,
                       const EpilogueSaved<T>& saved, T* dx, acc_t<T>* bias_sums, int64_t sums_wrap,
                       int64_t n, int64_t first) {
  using Acc = acc_t<T>;
  constexpr bool kOnPieces = Activation::kOnPieces;
  alignas(kVectorBytes) Acc grads[kOnPieces ? kDrawChunk : 1], values[kOnPieces ? kDrawChunk : 1];
  const math::DropoutRate<Acc> rate = mask.rate();
  const Acc unscale = mask.active() ? rate.inverse_scale : Acc(1);
  for (int64_t begin = 0; begin < n; begin += kDrawChunk) {
    const int64_t count = std::min(kDrawChunk, n - begin);
    const uint16_t* draws = mask.draws(first + begin, count);
    const EpilogueSaved<T> s = saved.from(begin);
    Acc* const sums = bias_sums ? bias_sums + (begin & sums_wrap) : nullptr;
    const auto masked = [&](int64_t i, int lanes) {
      const Vec<Acc> g = load_lanes(grad + begin + i, lanes);
      return draws ? g * dropout_factor(draws + i, rate) : g;
    };
    const auto kept = [&](int64_t i, int lanes) {
      const Vec<Acc> v = load_lanes(s.values + i, lanes);
      if (s.is_output) return v * unscale;
      return s.bias.values ? v + load_lanes(s.bias.values + (i & s.bias.wrap), lanes) : v;
    };
    if constexpr (kOnPieces) {
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        store_lanes(grads + i, masked(i, lanes), lanes);
        store_lanes(values + i, kept(i, lanes), lanes);
      });
      activation.backward(values, s.is_output, grads, count);
    }
    for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
      Vec<Acc> g;
      if constexpr (kOnPieces) {
        g = load_lanes(grads + i, lanes);
      } else {
        g = masked(i, lanes);
        if (s.values) g = activation.backward(kept(i, lanes), s.is_output, g);
      }
      store_lanes(dx + begin + i, g, lanes);
      if (sums) {
        Acc* const sum = sums + (i & sums_wrap);
        store_lanes(sum, load_lanes(sum, lanes) + g, lanes);
      }
    });
  }
}

}  // namespace pyops::cpu
