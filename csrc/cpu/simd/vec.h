// SIMD vectors of float or double, as wide as the instruction set this file is compiled for.
//
// Built on the compiler's vector extensions, so one source serves SSE2, AVX2, AVX-512 and any other
// target; intrinsics appear only where the compiler cannot be led to the right instruction. Memory may
// hold 16-bit types: loads widen to float, stores round once.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/dtypes.h"
#include "common/fast_math.h"

namespace pyops::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// The compiler's own vector types, spelt out per lane type because the attribute is lost on a dependent one.
template <class T>
struct NativeVectors;
template <>
struct NativeVectors<float> {
  typedef float Lanes __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
};
template <>
struct NativeVectors<double> {
  typedef double Lanes __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
};

template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  using Native = typename NativeVectors<T>::Lanes;
  using NativeInt = typename NativeVectors<T>::Bits;
  using NativeWords = typename NativeVectors<T>::Words;  // whose sums may wrap

  Native v;

  Vec() = default;
  PYOPS_HD Vec(Native native) : v(native) {}
  PYOPS_HD Vec(T scalar) : v(scalar - Native{}) {}

  PYOPS_HD Vec& operator+=(Vec other) {
    v += other.v;
    return *this;
  }
};

template <class T>
PYOPS_HD Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
PYOPS_HD Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
PYOPS_HD Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
PYOPS_HD Vec<T> operator+(Vec<T> a, T b) {
  return a.v + Vec<T>(b).v;
}
template <class T>
PYOPS_HD Vec<T> operator-(Vec<T> a, T b) {
  return a.v - Vec<T>(b).v;
}
template <class T>
PYOPS_HD Vec<T> operator*(Vec<T> a, T b) {
  return a.v * Vec<T>(b).v;
}

template <class T>
PYOPS_HD Vec<T> select_greater(Vec<T> a, Vec<T> b, Vec<T> if_greater, Vec<T> otherwise) {
  return Vec<T>(a.v > b.v ? if_greater.v : otherwise.v);
}

template <class T>
PYOPS_HD Vec<T> select_at_most(Vec<T> a, Vec<T> b, Vec<T> if_at_most, Vec<T> otherwise) {
  return Vec<T>(a.v <= b.v ? if_at_most.v : otherwise.v);
}

// Keeps the first operand's NaN out of the result: max(NaN, b) is b. (The sum of exp carries the NaN.)
PYOPS_HD Vec<float> max(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return Vec<float>::Native(_mm512_max_ps(a.v, b.v));
#elif defined(__AVX2__)
  return Vec<float>::Native(_mm256_max_ps(a.v, b.v));
#else
  return Vec<float>(a.v > b.v ? a.v : b.v);
#endif
}
PYOPS_HD Vec<double> max(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return Vec<double>::Native(_mm512_max_pd(a.v, b.v));
#elif defined(__AVX2__)
  return Vec<double>::Native(_mm256_max_pd(a.v, b.v));
#else
  return Vec<double>(a.v > b.v ? a.v : b.v);
#endif
}

// Folds the lanes in halves: a fixed tree, so the result depends on the vector alone.
template <class T, class Join>
PYOPS_HD T fold_lanes(Vec<T> x, const Join& join) {
  T lanes[Vec<T>::kLanes];
  memcpy(lanes, &x.v, sizeof(lanes));
  for (int width = Vec<T>::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = join(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}

template <class T>
PYOPS_HD T horizontal_sum(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_reduce_add_ps(x.v);
#endif
  return fold_lanes(x, [](T a, T b) { return a + b; });
}

template <class T>
PYOPS_HD T horizontal_max(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_reduce_max_ps(x.v);
#endif
  return fold_lanes(x, [](T a, T b) { return a > b ? a : b; });
}

// Coefficients of exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2)/2. float: Cephes expf (Moshier), relative error
// 2e-8; double: the Taylor series to r^13, whose first dropped term is below 2^-57.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kOverflow = 88.7228394f;
  static constexpr float kUnderflow = -87.3365479f;  // below, the result would be subnormal; it becomes 0
  static constexpr int kMantissaBits = 23;
  static constexpr float kPolynomial[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                          4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1;
  static constexpr double kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kRoundMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kOverflow = 709.782712893383973;
  static constexpr double kUnderflow = -708.39641853226408;
  static constexpr int kMantissaBits = 52;
  static constexpr double kPolynomial[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                           1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                           1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
};

// 2^n of a whole n, which is the number nearest to some x.
template <class T>
struct PowerOfTwo {
  Vec<T> exponent;

  static PYOPS_HD PowerOfTwo nearest(Vec<T> x) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) return {typename Vec<T>::Native(_mm512_roundscale_ps(x.v, 0))};
#endif
    return {(x + ExpConstants<T>::kRoundMagic) - ExpConstants<T>::kRoundMagic};
  }

  // y 2^n, or 0 where x < lowest. The product must be a normal number.
  PYOPS_HD Vec<T> times(Vec<T> y, Vec<T> x, T lowest) const {
    using V = Vec<T>;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
      const __mmask16 inside = _mm512_cmp_ps_mask(x.v, V(lowest).v, _CMP_NLT_UQ);
      return typename V::Native(_mm512_maskz_scalef_ps(inside, y.v, exponent.v));
    }
#endif
    // Adding n to the exponent's bits.
    const typename V::NativeInt bits = __builtin_convertvector(exponent.v, typename V::NativeInt)
                                       << ExpConstants<T>::kMantissaBits;
    const typename V::Native scaled = (typename V::Native)((typename V::NativeInt)y.v + bits);
    return x.v < V(lowest).v ? V(T(0)).v : scaled;
  }
};

// exp(x) = 2^n exp(r), x = n ln 2 + r. NaN stays NaN, -inf gives 0, large x gives infinity.
template <class T>
PYOPS_HD Vec<T> exp(Vec<T> x) {
  using K = ExpConstants<T>;
  using V = Vec<T>;
  const PowerOfTwo<T> n = PowerOfTwo<T>::nearest(x * K::kLog2e);
  const V r = (x - n.exponent * K::kLn2High) - n.exponent * K::kLn2Low;
  V p = K::kPolynomial[0];
  for (size_t i = 1; i < sizeof(K::kPolynomial) / sizeof(T); ++i) p = p * r + K::kPolynomial[i];
  const V y = p * (r * r) + (r + T(1));
  const V scaled = n.times(y, x, K::kUnderflow);
  return x.v > V(K::kOverflow).v ? V(math::infinity<T>()).v : scaled.v;
}

// ---- memory ------------------------------------------------------------------------------------

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// x rounded to bfloat16 (common/dtypes.h), in the high halves of the lanes; the low halves are anything.
PYOPS_HD Words bfloat16_in_high_bits(Vec<float> x) {
  const Words bits = (Words)x.v;
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return x.v == x.v ? rounded : Words{} + 0x7fc00000u;
}

#if defined(__AVX512F__)
// 16 numbers of 16 bits as float32, and back.
template <class T>
PYOPS_HD __m512 widen(__m256i halves) {
  if constexpr (std::is_same_v<T, float16>) return _mm512_maskz_cvtph_ps(0xffff, halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
template <class T>
PYOPS_HD __m256i narrow(Vec<float> x) {
  if constexpr (std::is_same_v<T, float16>) {
    return _mm512_maskz_cvtps_ph(0xffff, x.v, _MM_FROUND_TO_NEAREST_INT);
  }
  return _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)(bfloat16_in_high_bits(x) >> 16));
}
#endif

template <class Acc, class T>
PYOPS_HD Vec<Acc> load(const T* p) {
  using V = Vec<Acc>;
  if constexpr (std::is_same_v<T, Acc>) {
    typename V::Native v;
    memcpy(&v, p, sizeof(v));
    return v;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
    Half bits;
    memcpy(&bits, p, sizeof(bits));
    return (typename V::Native)(__builtin_convertvector(bits, Word) << 16);
  } else {
#if defined(__AVX512F__)
    return typename V::Native(widen<T>(_mm256_loadu_si256((const __m256i*)p)));
#elif defined(__F16C__)
    return typename V::Native(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#else
    Acc lanes[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) lanes[i] = to_acc(p[i]);
    return load<Acc>(lanes);
#endif
  }
}

template <class T, class Acc>
PYOPS_HD void store(T* p, Vec<Acc> x) {
  if constexpr (std::is_same_v<T, Acc>) {
    memcpy(p, &x.v, sizeof(x.v));
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)p, narrow<T>(x));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < Vec<Acc>::kLanes; ++i) p[i] = from_acc<T>(x.v[i]);
#endif
  } else {
    typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    const Half halves = __builtin_convertvector(bfloat16_in_high_bits(x) >> 16, Half);
    memcpy(p, &halves, sizeof(halves));
  }
}

// GCC would read a vector that it needs twice from memory twice.
template <class V>
PYOPS_HD void keep_in_register([[maybe_unused]] V& v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#endif
}

// Two vectors' worth of elements from memory. Where they are `parted`, one vector has those at even and one
// those at odd places: to part and to join bfloat16 takes half the instructions of widening and narrowing
// each.
template <class T, bool parted = std::is_same_v<T, bfloat16>>
struct TwoVectors {
  using Acc = acc_t<T>;
  Vec<Acc> first, second;

  static PYOPS_HD TwoVectors load(const T* p) {
    if constexpr (parted) {
      Words pairs;
      memcpy(&pairs, p, sizeof(pairs));
      keep_in_register(pairs);
      return {Vec<float>::Native(pairs << 16), Vec<float>::Native(pairs & 0xffff0000u)};
    } else {
      return {cpu::load<Acc>(p), cpu::load<Acc>(p + Vec<Acc>::kLanes)};
    }
  }
  PYOPS_HD void store(T* p) const {
    if constexpr (parted) {
      const Words pairs = bfloat16_in_high_bits(first) >> 16 | (bfloat16_in_high_bits(second) & 0xffff0000u);
      memcpy(p, &pairs, sizeof(pairs));
    } else {
      cpu::store(p, first);
      cpu::store(p + Vec<Acc>::kLanes, second);
    }
  }
};

// The first `count` lanes from memory, the others `fill`. Never touches memory past `count`.
template <class Acc, class T>
PYOPS_HD Vec<Acc> load_partial(const T* p, int count, Acc fill) {
  using V = Vec<Acc>;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    return typename V::Native(_mm512_mask_loadu_ps(V(fill).v, __mmask16((1u << count) - 1u), p));
  } else if constexpr (std::is_same_v<T, double>) {
    return typename V::Native(_mm512_mask_loadu_pd(V(fill).v, __mmask8((1u << count) - 1u), p));
  } else {
    const __mmask16 lanes = __mmask16((1u << count) - 1u);
    return typename V::Native(
        _mm512_mask_mov_ps(V(fill).v, lanes, widen<T>(_mm256_maskz_loadu_epi16(lanes, p))));
  }
#endif
  Acc lanes[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) lanes[i] = i < count ? to_acc(p[i]) : fill;
  return load<Acc>(lanes);
}

template <class T, class Acc>
PYOPS_HD void store_partial(T* p, Vec<Acc> x, int count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1u), x.v);
  } else if constexpr (std::is_same_v<T, double>) {
    return _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1u), x.v);
  } else {
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1u), narrow<T>(x));
  }
#endif
  T lanes[Vec<Acc>::kLanes];
  store(lanes, x);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// The first `lanes` elements of a vector at p: all of them in most calls.
template <class T>
Vec<acc_t<T>> load_lanes(const T* p, int lanes, acc_t<T> fill = 0) {
  return lanes == Vec<acc_t<T>>::kLanes ? load<acc_t<T>>(p) : load_partial<acc_t<T>>(p, lanes, fill);
}

template <class T>
void store_lanes(T* p, Vec<acc_t<T>> x, int lanes) {
  if (lanes == Vec<acc_t<T>>::kLanes) {
    store(p, x);
  } else {
    store_partial(p, x, lanes);
  }
}

// The first `lanes` lanes, zeros behind them.
template <class Acc>
Vec<Acc> first_lanes(Vec<Acc> v, int lanes) {
  Acc values[Vec<Acc>::kLanes];
  store(values, v);
  return load_lanes(values, lanes);
}

}  // namespace pyops::cpu
