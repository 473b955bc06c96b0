// The depthwise convolution with 3 x 3 taps of planes whose rows are shorter than a vector, in steps of 1 and
// as large there as here, on CPUs with permutations of two vectors.
//
// A plane is taken as one row: what a tap reads for it is the plane again, shifted by less than a vector. So
// a plane is read once; a vector of outputs has its neighbourhood in registers, and each tap takes a
// permutation and a product. What is left of the image's first column or right of its last must count as
// zero: taps to the left read a copy of the plane whose last column is zero, taps to the right one whose
// first column is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

#if defined(__AVX512F__)

inline constexpr bool kHasDepthwisePlanes = true;

// Whether an axis has the taps -1, 0 and 1 and as many outputs as elements.
inline bool is_neighbourhood(const math::CorrelationAxis& axis) {
  return axis.source_step == 1 && axis.target_step == 1 && axis.count == axis.source_size &&
         axis.taps.size() == 3 && axis.source_index(0, {0, 0, axis.min_shift}) == -1 &&
         axis.source_index(0, {0, 0, axis.max_shift}) == 1;
}

// Whether images in memory are planes that the axes read so, the farthest tap within a vector.
template <class T>
bool are_short_planes(const ImageSource<T>& x, const math::CorrelationAxis& h,
                      const math::CorrelationAxis& w) {
  return x.column_stride == 1 && x.row_stride == w.source_size && is_neighbourhood(h) &&
         is_neighbourhood(w) && w.count + 1 < Vec<float>::kLanes;
}

// The lanes of `lanes` from memory, which is not touched elsewhere, and zeros. What lies `ahead` is fetched:
// a plane is a few lines of the cache, too short for the CPU to follow.
template <bool kRelu, class T>
__m512 load_lanes_of(const ImageSource<T>& x, int64_t at, int64_t ahead, __mmask16 lanes) {
  const auto load = [&](const T* values) {
    __builtin_prefetch(values + at + ahead);
    if constexpr (std::is_same_v<T, float>) {
      return _mm512_maskz_loadu_ps(lanes, values + at);
    } else {
      return widen<T>(_mm256_maskz_loadu_epi16(lanes, values + at));
    }
  };
  const __m512 v = load(x.values);
  if constexpr (!kRelu) return v;
  const __mmask16 passed = _mm512_cmp_ps_mask(load(x.relu_output), _mm512_setzero_ps(), _CMP_NLE_UQ);
  return _mm512_maskz_mov_ps(passed, v);
}

// How the nine taps read a plane.
class PlaneTaps {
 public:
  static constexpr int n = Vec<float>::kLanes;
  static constexpr int kTaps = 9;

  template <class T>
  PlaneTaps(const math::CorrelationAxis& h, const math::CorrelationAxis& w, const ConvWeights<T>& weights)
      : pixels_(h.count * w.count), vectors_(ceil_div(pixels_, n)), lanes_(vectors_) {
    for (const math::ConvTap& row : h.taps) {
      for (const math::ConvTap& column : w.taps) {
        const int64_t down = h.source_index(0, row), right = w.source_index(0, column);
        const int64_t tap = 3 * (down + 1) + right + 1, shift = down * w.count + right;
        weights_[tap] = weights.tap_offset(row.kernel * weights.columns + column.kernel);
        for (int lane = 0; lane < n; ++lane)
          sources_[tap][lane] = static_cast<int32_t>(lane + shift + (shift < 0 ? n : 0));
      }
    }
    for (int64_t p = 0; p < pixels_; ++p) {
      const unsigned lane = 1u << p % n;
      Lanes& of = lanes_[p / n];
      of.all |= lane;
      if (p % w.count != 0) of.but_first |= lane;
      if (p % w.count != w.count - 1) of.but_last |= lane;
    }
  }

  int64_t pixels() const { return pixels_; }
  int64_t vectors() const { return vectors_; }
  // Where a group's weight of a tap is, from its first on.
  int64_t weight(int tap) const { return weights_[tap]; }
  __mmask16 pixels_of(int64_t vector) const { return static_cast<__mmask16>(lanes_[vector].all); }

  // Calls f(vector, taps) for each vector of outputs of the plane at x.values + at: what the taps read for
  // it, from the upper left to the lower right. A plane that is needed soon lies `ahead`.
  template <bool kRelu, class T, class F>
  void for_each_vector(const ImageSource<T>& x, int64_t at, int64_t ahead, const F& f) const {
    const auto load = [&](int64_t vector) -> Copies {
      if (vector == vectors_) return Copies{};
      const Lanes& lanes = lanes_[vector];
      const __m512 v = load_lanes_of<kRelu>(x, at + vector * n, ahead, static_cast<__mmask16>(lanes.all));
      return {_mm512_maskz_mov_ps(static_cast<__mmask16>(lanes.but_last), v), v,
              _mm512_maskz_mov_ps(static_cast<__mmask16>(lanes.but_first), v)};
    };
    const auto from = [&](int tap, __m512 lower, __m512 upper) {
      return Vec<float>::Native(_mm512_permutex2var_ps(lower, _mm512_load_si512(sources_[tap]), upper));
    };
    Copies before{}, here = load(0);
#pragma GCC unroll 1
    for (int64_t v = 0; v < vectors_; ++v) {
      const Copies after = load(v + 1);
      const Vec<float>::Native taps[kTaps] = {from(0, before.left, here.left),
                                              from(1, before.middle, here.middle),
                                              from(2, before.right, here.right),
                                              from(3, before.left, here.left),
                                              here.middle,
                                              from(5, here.right, after.right),
                                              from(6, here.left, after.left),
                                              from(7, here.middle, after.middle),
                                              from(8, here.right, after.right)};
      f(v, taps);
      before = here;
      here = after;
    }
  }

 private:
  // A vector of a plane as taps to the left, above and below, and to the right read it.
  struct Copies {
    __m512 left;
    __m512 middle;
    __m512 right;
  };
  struct Lanes {
    unsigned all = 0;
    unsigned but_first = 0;  // column
    unsigned but_last = 0;
  };

  int64_t pixels_;
  int64_t vectors_;
  int64_t weights_[kTaps];
  // Of two vectors, the lanes that outputs read.
  alignas(kVectorBytes) int32_t sources_[kTaps][n];
  std::vector<Lanes> lanes_;
};

// The correlation. A task has some channels' planes of an image.
template <class T>
class DepthwisePlanes {
 public:
  static constexpr int64_t n = Vec<float>::kLanes;

  // Pooling wants channels of planar sums without a gap between them, which vectors leave (pool.h).
  static bool serves(const CorrelationProblem<T>& p) {
    return p.has_one_phase() && are_short_planes(p.x, p.h.front(), p.w.front()) &&
           dynamic_cast<const ImageEpilogue<T>*>(p.epilogue) != nullptr;
  }

  explicit DepthwisePlanes(const CorrelationProblem<T>& problem)
      : problem_(problem),
        h_(problem.h.front()),
        w_(problem.w.front()),
        taps_(h_, w_, problem.weights),
        plane_(round_up(taps_.pixels(), n)) {}

  void run() const {
    const int64_t groups = problem_.weights.groups;
    const EvenSplit parts(groups, ceil_div(groups, kChannels));
    const double work = 4 * double(problem_.images) * double(groups) * double(plane_) * PlaneTaps::kTaps;
    parallel_claim(problem_.images * parts.parts, work, [&](int64_t i) {
      const int64_t part = i % parts.parts;
      form(i / parts.parts, parts.begin(part), parts.size(part));
    });
  }

 private:
  static constexpr int64_t kChannels = 32;  // of a task
  static constexpr int64_t kAhead = 16;     // planes

  void form(int64_t image, int64_t first, int64_t channels) const {
    Scratch scratch;
    // Planes are read up to a square of vectors behind their end.
    float* const sums = scratch.take<float>(channels * plane_ + n * n);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = image * problem_.x.image_stride + (first + c) * problem_.x.channel_stride;
      const T* const weights = problem_.weights.values + (first + c) * problem_.weights.group_stride;
      problem_.x.relu_output == nullptr ? form_plane<false>(at, weights, sums + c * plane_)
                                        : form_plane<true>(at, weights, sums + c * plane_);
    }
    problem_.epilogue->take(image, first, channels, h_, w_, {0, h_.count, 0, w_.count},
                            {sums, w_.count, 1, plane_});
  }

  template <bool kRelu>
  void form_plane(int64_t at, const T* weights, float* to) const {
    Vec<float>::Native weight[PlaneTaps::kTaps];
    PYOPS_UNROLL
    for (int t = 0; t < PlaneTaps::kTaps; ++t) weight[t] = Vec<float>(to_acc(weights[taps_.weight(t)])).v;
    taps_.template for_each_vector<kRelu>(
        problem_.x, at, kAhead * problem_.x.channel_stride, [&](int64_t v, const auto& taps) {
          // In three chains.
          Vec<float>::Native sum[3] = {taps[0] * weight[0], taps[1] * weight[1], taps[2] * weight[2]};
          PYOPS_UNROLL
          for (int t = 3; t < PlaneTaps::kTaps; ++t) sum[t % 3] += taps[t] * weight[t];
          store(to + v * n, Vec<float>(sum[0] + sum[1] + sum[2]));
        });
  }

  const CorrelationProblem<T>& problem_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  PlaneTaps taps_;
  int64_t plane_;
};

// The gradients of weight and bias: a channel's are sums over its planes, whose lanes stay apart to the end.
template <class T>
class DepthwisePlanesGradient {
 public:
  static constexpr int64_t n = Vec<float>::kLanes;

  static bool serves(const WeightGradientProblem<T>& p) {
    return are_short_planes(p.x, p.h, p.w) && p.grad.column_stride == 1 && p.grad.row_stride == p.w.count;
  }

  explicit DepthwisePlanesGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        taps_(problem.h, problem.w, problem.weights),
        chunks_(problem.images, std::min(problem.images, ceil_div(kUnits, problem.weights.groups))),
        chains_(ceil_div(problem.images, chunks_.parts) * taps_.vectors() / kChainedTerms + 1) {}

  void run() const {
    const int64_t groups = problem_.weights.groups, size = kTaps + 1;
    Scratch scratch;
    float* const partial = scratch.take<float>(chunks_.parts * groups * size);  // [chunk][group][tap, bias]
    const double work = 4 * double(problem_.images) * double(groups) * double(taps_.vectors() * n) * kTaps;
    parallel_claim(chunks_.parts * groups, work,
                   [&](int64_t i) { sum_unit(i / groups, i % groups, partial + i * size); });
    for (int64_t g = 0; g < groups; ++g) {
      const auto merged = [&](int64_t k) {
        float sum = 0;
        for (int64_t chunk = 0; chunk < chunks_.parts; ++chunk)
          sum += partial[(chunk * groups + g) * size + k];
        return from_acc<T>(sum);
      };
      for (int64_t t = 0; problem_.weight != nullptr && t < kTaps; ++t)
        problem_.weight[g * problem_.weights.group_stride + taps_.weight(t)] = merged(t);
      if (problem_.bias != nullptr) problem_.bias[g] = merged(kTaps);
    }
  }

 private:
  static constexpr int64_t kUnits = 32;  // of work
  static constexpr int64_t kAhead = 4;   // images
  static constexpr int kTaps = PlaneTaps::kTaps;

  // The sums of the taps and of the gradient over a chunk of images.
  void sum_unit(int64_t chunk, int64_t group, float* to) const {
    const EvenSplit chains(chunks_.size(chunk), std::min(chunks_.size(chunk), chains_));
    Vec<float> total[kTaps + 1];
    for (Vec<float>& one : total) one = 0.0f;
    for (int64_t chain = 0; chain < chains.parts; ++chain) {
      const int64_t begin = chunks_.begin(chunk) + chains.begin(chain), end = begin + chains.size(chain);
      problem_.grad.relu_output == nullptr ? add_chain<false>(begin, end, group, total)
                                           : add_chain<true>(begin, end, group, total);
    }
    for (int t = 0; t <= kTaps; ++t) to[t] = horizontal_sum(total[t]);
  }

  template <bool kRelu>
  void add_chain(int64_t begin, int64_t end, int64_t group, Vec<float>* total) const {
    const ImageSource<T> x = problem_.x, gradient = problem_.grad;
    Vec<float>::Native sum[kTaps + 1] = {};
    for (int64_t image = begin; image < end; ++image) {
      const int64_t grad = image * gradient.image_stride + group * gradient.channel_stride;
      const int64_t at = image * x.image_stride + group * x.channel_stride;
      taps_.template for_each_vector<false>(x, at, kAhead * x.image_stride, [&](int64_t v, const auto& taps) {
        const __mmask16 pixels = taps_.pixels_of(v);
        const Vec<float>::Native g =
            load_lanes_of<kRelu>(gradient, grad + v * n, kAhead * gradient.image_stride, pixels);
        PYOPS_UNROLL  // taps of lanes behind the plane may be infinite, and then zero times them is not zero
            for (int t = 0; t < kTaps; ++t) sum[t] = _mm512_mask3_fmadd_ps(taps[t], g, sum[t], pixels);
        sum[kTaps] += g;
      });
    }
    PYOPS_UNROLL
    for (int t = 0; t <= kTaps; ++t) total[t] += Vec<float>(sum[t]);
  }

  const WeightGradientProblem<T>& problem_;
  PlaneTaps taps_;
  EvenSplit chunks_;  // of images
  int64_t chains_;    // of a chunk
};

#else

inline constexpr bool kHasDepthwisePlanes = false;
template <class T>
class DepthwisePlanes;
template <class T>
class DepthwisePlanesGradient;

#endif

}  // namespace pyops::cpu
