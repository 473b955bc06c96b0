// What a convolution is, as every algorithm sees it: tensors by their strides, axes (math/conv2d.h), and what
// becomes of the sums. The forward pass and the input gradient are one kind of problem, a correlation; the
// gradients of weight and bias are the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/simd/loops.h"
#include "math/conv2d.h"

namespace pyops::cpu {

// Images in memory, channels_last or not. With `relu_output`, of the same strides, values count as zero where
// it is not positive: that is ReLU's gradient, from the upstream gradient and the output.
template <class T>
struct ImageSource {
  const T* values;
  const T* relu_output;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;

  Vec<acc_t<T>> vector(int64_t at, int lanes) const {
    using V = Vec<acc_t<T>>;
    const V v = load_lanes(values + at, lanes);
    if (relu_output == nullptr) return v;
    return select_at_most(load_lanes(relu_output + at, lanes), V(acc_t<T>(0)), V(acc_t<T>(0)), v);
  }
  // Lanes [first, last) from memory, which is not touched elsewhere, zeros around them.
  Vec<acc_t<T>> window(int64_t at, int first, int last) const {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
      const __mmask16 lanes = static_cast<__mmask16>((1u << last) - (1u << first));
      const __m512 v = _mm512_maskz_loadu_ps(lanes, values + at);
      if (relu_output == nullptr) return Vec<float>::Native(v);
      const __m512 y = _mm512_maskz_loadu_ps(lanes, relu_output + at);  // NaN passes
      return Vec<float>::Native(
          _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NLE_UQ), v));
    }
#endif
    acc_t<T> lanes[Vec<acc_t<T>>::kLanes] = {};
    for (int i = first; i < last; ++i) lanes[i] = scalar(at + i);
    return load<acc_t<T>>(lanes);
  }
  acc_t<T> scalar(int64_t at) const {
    return relu_output != nullptr && to_acc(relu_output[at]) <= 0 ? acc_t<T>(0) : to_acc(values[at]);
  }

  bool channels_are_neighbours() const { return channel_stride == 1 && column_stride != 1; }
};

// Weights as a correlation sees them: from `inputs` to `outputs` channels in each group. Either the taps are
// neighbours in memory or the channels of one of the two kinds are.
template <class T>
struct ConvWeights {
  const T* values;
  int64_t groups;
  int64_t inputs;
  int64_t outputs;
  int64_t rows;
  int64_t columns;
  int64_t group_stride;
  int64_t input_stride;
  int64_t output_stride;
  int64_t row_stride;
  int64_t column_stride;

  int64_t taps() const { return rows * columns; }
  int64_t tap_offset(int64_t tap) const { return tap / columns * row_stride + tap % columns * column_stride; }
};

// A tile of outputs: its first row and column, its size, and its number along each axis.
struct ConvTile {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
  int64_t row_part = 0;
  int64_t column_part = 0;
};

// The outputs of all phases for a tile of the first of them, `h` and `w`; all_h and all_w are all_targets().
inline ConvTile of_all_phases(const ConvTile& tile, const math::CorrelationAxis& h,
                              const math::CorrelationAxis& all_h, const math::CorrelationAxis& w,
                              const math::CorrelationAxis& all_w) {
  ConvTile out = tile;
  out.row *= h.target_step;
  out.column *= w.target_step;
  out.rows = std::min(tile.rows * h.target_step, all_h.count - out.row);
  out.columns = std::min(tile.columns * w.target_step, all_w.count - out.column);
  return out;
}

// Neighbouring images that share a tile.
struct TileImages {
  int64_t first;
  int64_t count;
};

template <class T>
class TileEpilogue;

struct PackedWeights;

// The forward pass or the input gradient. Each axis has one entry for each phase of the output; all phases
// read the same part of the source, and the first is the longest.
template <class T>
struct CorrelationProblem {
  using Value = T;

  ImageSource<T> x;
  ConvWeights<T> weights;
  std::vector<math::CorrelationAxis> h;
  std::vector<math::CorrelationAxis> w;
  int64_t images;
  TileEpilogue<T>* epilogue;        // takes the sums; the choice of an algorithm does not depend on it
  PackedWeights* packed = nullptr;  // weights that outlive the call (packed_weights.h)

  const math::CorrelationAxis& longest_h() const { return h.front(); }
  const math::CorrelationAxis& longest_w() const { return w.front(); }
  bool has_one_phase() const { return h.size() * w.size() == 1; }
  int64_t pixels() const { return h.front().count * w.front().count; }
};

// The gradients of weight and bias. `weights` describes the weight's gradient; its values are not read.
template <class T>
struct WeightGradientProblem {
  using Value = T;

  ImageSource<T> x;
  ImageSource<T> grad;
  ConvWeights<T> weights;
  math::CorrelationAxis h;
  math::CorrelationAxis w;
  int64_t images;
  T* weight;  // where the gradients go; null where one is not wanted
  T* bias;

  const math::CorrelationAxis& longest_h() const { return h; }
  const math::CorrelationAxis& longest_w() const { return w; }
  bool has_one_phase() const { return true; }
  int64_t pixels() const { return h.count * w.count; }
};

template <class Problem>
inline constexpr bool kIsCorrelation = std::is_same_v<Problem, CorrelationProblem<typename Problem::Value>>;

}  // namespace pyops::cpu
