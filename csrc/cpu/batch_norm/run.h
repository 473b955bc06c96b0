// Batch normalisation of neighbouring elements: a run of one channel, or a part of a row in which channels
// alternate.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/epilogue/fused.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"
#include "cpu/simd/multiply_add.h"
#include "math/batch_norm.h"

namespace pyops::cpu {

// ---- what elements need of their channels ---------------------------------------------------------------

template <class Acc>
struct NormVectors {
  Vec<Acc> center, scale, shift, slope, offset;
};

// Numbers of all channels, or of all columns of a row, one array after another.
template <class Acc>
struct NormTable {
  static constexpr int kArrays = 5;  // as in NormVectors; a forward leaves out the last two
  int64_t width;
  const Acc* values;

  Acc at(int array, int64_t i) const { return values[array * width + i]; }
  Vec<Acc> load(int array, int64_t i, int lanes) const {
    return load_lanes(values + array * width + i, lanes);
  }
};

// A run of one channel.
template <class Acc>
struct OneChannel {
  NormVectors<Acc> same;

  static OneChannel of(const NormTable<Acc>& table, int64_t channel, bool gradient) {
    const auto at = [&](int array) { return Vec<Acc>(table.at(array, channel)); };
    NormVectors<Acc> same{at(0), at(1), at(2), Vec<Acc>(Acc(0)), Vec<Acc>(Acc(0))};
    if (gradient) same.slope = at(3), same.offset = at(4);
    return {same};
  }
  Vec<Acc> center(int64_t, int) const { return same.center; }
  Vec<Acc> scale(int64_t, int) const { return same.scale; }
  Vec<Acc> shift(int64_t, int) const { return same.shift; }
  Vec<Acc> slope(int64_t, int) const { return same.slope; }
  Vec<Acc> offset(int64_t, int) const { return same.offset; }
};

// Columns of a row from number `first`.
template <class Acc>
struct EachColumn {
  NormTable<Acc> table;
  int64_t first;

  Vec<Acc> center(int64_t i, int lanes) const { return table.load(0, first + i, lanes); }
  Vec<Acc> scale(int64_t i, int lanes) const { return table.load(1, first + i, lanes); }
  Vec<Acc> shift(int64_t i, int lanes) const { return table.load(2, first + i, lanes); }
  Vec<Acc> slope(int64_t i, int lanes) const { return table.load(3, first + i, lanes); }
  Vec<Acc> offset(int64_t i, int lanes) const { return table.load(4, first + i, lanes); }
};

// ---- one bit per element --------------------------------------------------------------------------------

// Bit l is set unless x[l] <= limit: NaN passes.
template <class Acc>
PYOPS_HD uint32_t bits_above(Vec<Acc> x, Acc limit) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Acc, float>) {
    return _mm512_cmp_ps_mask(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ);
  } else {
    return _mm512_cmp_pd_mask(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<Acc, float>) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ));
  } else {
    return _mm256_movemask_pd(_mm256_cmp_pd(x.v, Vec<Acc>(limit).v, _CMP_NLE_UQ));
  }
#else
  uint32_t bits = 0;
  for (int l = 0; l < Vec<Acc>::kLanes; ++l) bits |= (x.v[l] <= limit ? 0u : 1u) << l;
  return bits;
#endif
}

// The bits of elements [i, i + lanes) of a row whose first element has the lowest bit of *row.
template <int kLanes>
PYOPS_HD void store_bits(uint8_t* row, int64_t i, int lanes, uint32_t bits) {
  bits &= (uint32_t{1} << lanes) - 1u;
  if constexpr (kLanes >= 8) {
    memcpy(row + i / 8, &bits, (lanes + 7) / 8);
  } else {
    const int at = static_cast<int>(i % 8);
    row[i / 8] = static_cast<uint8_t>((at == 0 ? 0 : row[i / 8]) | bits << at);
  }
}

template <int kLanes>
PYOPS_HD uint32_t load_bits(const uint8_t* row, int64_t i, int lanes) {
  if constexpr (kLanes >= 8) {
    uint32_t bits = 0;
    memcpy(&bits, row + i / 8, (lanes + 7) / 8);
    return bits;
  } else {
    return row[i / 8] >> (i % 8);
  }
}

// x where the lane's bit is set, otherwise 0.
template <class Acc>
PYOPS_HD Vec<Acc> where_bit(uint32_t bits, Vec<Acc> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Acc, float>) {
    return typename Vec<Acc>::Native(_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), x.v));
  } else {
    return typename Vec<Acc>::Native(_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), x.v));
  }
#else
  using Bits = typename Vec<Acc>::NativeInt;
  Bits lane;
  for (int l = 0; l < Vec<Acc>::kLanes; ++l) lane[l] = 1 << l;
  const Bits set = (Bits{} + static_cast<int32_t>(bits)) & lane;
  return typename Vec<Acc>::Native(set != 0 ? x.v : Vec<Acc>(Acc(0)).v);
#endif
}

// ---- forward --------------------------------------------------------------------------------------------

// Elements that an activation of the other kind (cpu/epilogue/fused.h) works on at a time.
constexpr int64_t kNormPiece = 1024;

// Stores that go past the caches, for outputs that would not be found there again.
template <class T>
PYOPS_HD void put(T* p, Vec<acc_t<T>> v, int lanes, [[maybe_unused]] bool stream) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (stream) return _mm512_stream_ps(p, v.v);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    if (stream) return _mm256_stream_ps(p, v.v);
  }
#endif
  store_lanes(p, v, lanes);
}

template <class T>
bool can_stream(const T* p, bool wanted) {
  return wanted && reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

// y = activation(normalised x + residual); residual and mask may be null.
template <class T, class Activation, class Channels>
void normalize_run(const Activation& activation, const Channels& channels, const T* x, const T* residual,
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

// The gradient behind the activation becomes that of its input: how, by the activation.
enum class GradientOf { kIdentity, kRelu, kMaskedRelu, kOther };

// What a run's gradient is made of.
template <class T>
struct GradientRun {
  const T* grad;
  const T* x;
  const T* residual;    // for kRelu and kOther; may be null
  const uint8_t* mask;  // of kMaskedRelu

  // From element `at`, whose bit is the lowest of the mask's byte `bit`.
  GradientRun from(int64_t at, int64_t bit) const {
    return {grad + at, x + at, residual ? residual + at : nullptr, mask ? mask + bit : nullptr};
  }
};

// Calls use(i, lanes, g, x - center) with each vector's gradient of the normalised value plus residual.
template <GradientOf kOf, class T, class Channels, class Use>
PYOPS_HD void for_each_gradient(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                                const GradientRun<T>& run, int64_t n, const Use& use) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const auto deviation = [&](int64_t i, int lanes) {
    return load_lanes(run.x + i, lanes) - channels.center(i, lanes);
  };
  if constexpr (kOf == GradientOf::kOther) {
    alignas(kVectorBytes) Acc values[kNormPiece], grads[kNormPiece];
    for (int64_t begin = 0; begin < n; begin += kNormPiece) {
      const int64_t count = std::min(kNormPiece, n - begin);
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        const int64_t at = begin + i;
        V z = math::normalized(deviation(at, lanes), channels.scale(at, lanes), channels.shift(at, lanes));
        if (run.residual) z = z + load_lanes(run.residual + at, lanes);
        store_lanes(values + i, z, lanes);
        store_lanes(grads + i, load_lanes(run.grad + at, lanes), lanes);
      });
      activation.backward(values, false, grads, count);
      for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
        use(begin + i, lanes, load_lanes(grads + i, lanes), deviation(begin + i, lanes));
      });
    }
  } else {
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const V d = deviation(i, lanes);
      V g = load_lanes(run.grad + i, lanes);
      if constexpr (kOf == GradientOf::kRelu) {
        V z = math::normalized(d, channels.scale(i, lanes), channels.shift(i, lanes));
        if (run.residual) z = z + load_lanes(run.residual + i, lanes);
        g = select_at_most(z, V(math::largest_stored_as_zero<T>()), V(Acc(0)), g);
      } else if constexpr (kOf == GradientOf::kMaskedRelu) {
        g = where_bit(load_bits<V::kLanes>(run.mask, i, lanes), g);
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
void gradient_run(const AnyActivation<acc_t<T>>& activation, const Channels& channels,
                  const GradientRun<T>& run, const GradientOutputs<T>& to, int64_t n) {
  using V = Vec<acc_t<T>>;
  T *const dx = to.dx, *const dresidual = to.dresidual;
  const bool through = to.through_statistics;
  const bool stream_x = can_stream(dx, to.stream), stream_r = can_stream(dresidual, to.stream);
  for_each_gradient<kOf>(activation, channels, run, n, [&](int64_t i, int lanes, V g, V d) {
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
