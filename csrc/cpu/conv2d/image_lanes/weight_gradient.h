// The gradients of weight and bias with an image in each lane of a vector: sums over pixels of all images are
// kept in lanes, which are added up when a chunk is through.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/image_lanes/lanes.h"
#include "cpu/conv2d/pack_gradient.h"
#include "cpu/conv2d/weight_sums.h"

namespace pyops::cpu {

// A source that moves in steps of 1, from the first element to the last that any tap reads or that exists.
struct PaddedAxis {
  explicit PaddedAxis(const math::CorrelationAxis& axis) {
    int64_t first = 0, last = axis.source_size - 1;
    for (const math::ConvTap& tap : axis.taps) {
      first = std::min(first, axis.source_index(0, tap));
      last = std::max(last, axis.source_index(axis.count - 1, tap));
    }
    before = -first;
    size = last + before + 1;
  }
  int64_t before;
  int64_t size;
};

// Pixels of a plane of lanes.
struct LanePixels {
  int64_t rows;
  int64_t columns;
  int64_t row_stride;  // of the input
};

// c[(tap, channel)] (+)= sum over pixels of x[offsets[tap] + ...] * grad[channel * grad_stride + ...], by
// lanes.
template <int taps, int channels, class Acc>
void lane_gradient_kernel(const LanePixels& pixels, const Acc* x, const int64_t* offsets, const Acc* grad,
                          int64_t grad_stride, Acc* c, int64_t ldc, bool accumulate) {
  using Native = typename Vec<Acc>::Native;
  constexpr int64_t n = Vec<Acc>::kLanes;
  Native sum[taps][channels] = {};
  for (int64_t row = 0; row < pixels.rows; ++row, x += pixels.row_stride, grad += pixels.columns * n) {
    const Acc* left[taps];
#pragma GCC unroll 8
    for (int i = 0; i < taps; ++i) left[i] = x + offsets[i];
#pragma GCC unroll 1
    for (int64_t at = 0; at < pixels.columns * n; at += n) {
      // A neighbour's vector is not worth a register until the next pixel: the compiler must not see it.
      asm("" : "+r"(at));
      Native right[channels];
#pragma GCC unroll 4
      for (int j = 0; j < channels; ++j) right[j] = load<Acc>(grad + j * grad_stride + at).v;
#pragma GCC unroll 8
      for (int i = 0; i < taps; ++i) {
        const Native value = load<Acc>(left[i] + at).v;
#pragma GCC unroll 4
        for (int j = 0; j < channels; ++j) sum[i][j] += value * right[j];
      }
    }
  }
  for (int i = 0; i < taps; ++i) {
    for (int j = 0; j < channels; ++j) {
      Acc* const to = c + i * ldc + j * n;
      store(to, Vec<Acc>(accumulate ? sum[i][j] + load<Acc>(to).v : sum[i][j]));
    }
  }
}

template <class Acc>
using LaneGradientKernel = void (*)(const LanePixels& pixels, const Acc* x, const int64_t* offsets,
                                    const Acc* grad, int64_t grad_stride, Acc* c, int64_t ldc,
                                    bool accumulate);

// Of 1 ... kDotWeights taps and 1 ... kDotChannels channels.
template <int taps, int channels, class Acc>
LaneGradientKernel<Acc> lane_gradient_kernel_of(int64_t wanted_taps, int64_t wanted_channels) {
  if constexpr (taps > 1) {
    if (wanted_taps < taps)
      return lane_gradient_kernel_of<taps - 1, channels, Acc>(wanted_taps, wanted_channels);
  }
  if constexpr (channels > 1) {
    if (wanted_channels < channels)
      return lane_gradient_kernel_of<taps, channels - 1, Acc>(wanted_taps, wanted_channels);
  }
  return lane_gradient_kernel<taps, channels, Acc>;
}

template <class T>
class LaneWeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit LaneWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        h_(problem.h),
        w_(problem.w),
        input_{problem.weights.inputs, h_.size, w_.size, h_.before, w_.before},
        grad_{problem.weights.outputs, problem.h.count, problem.w.count},
        input_places_(places_of_elements(problem.x, input_, problem.h.source_size, problem.w.source_size)),
        grad_places_(places_of_elements(problem.grad, grad_, problem.h.count, problem.w.count)),
        sums_(problem, problem.weights.taps(), 1, n) {
    constexpr int64_t kBatches = 2;  // of a chunk, at least: its sums' lanes are added up once
    sums_.cut({EvenSplit(problem.h.count, 1), EvenSplit(problem.w.count, 1), 1, n, kBatches, 1});
    for (int64_t c = 0; c < problem.weights.inputs; ++c) {
      for (const math::ConvTap& r : problem.h.taps) {
        for (const math::ConvTap& s : problem.w.taps)
          offsets_.push_back(input_.place(c, problem.h.source_index(0, r), problem.w.source_index(0, s)) * n);
      }
    }
  }

  void run() {
    sums_.run(
        problem_.weight, problem_.bias, double(problem_.pixels()) * n,
        [&](const Unit& unit) { sum_unit(unit); }, SameOrder{problem_.weights.taps()});
  }

 private:
  using Unit = typename WeightSums<T>::Unit;

  // A channel's sums have the order of the weight's taps.
  struct SameOrder {
    static constexpr bool kWholeVectors = false;
    int64_t taps;
    bool operator()(const Acc* sums, int64_t line, Acc* to) const {
      std::copy_n(sums, taps * line, to);
      return true;
    }
  };

  // A thread's memory for a unit of work, all in lanes.
  struct UnitScratch {
    UnitScratch(int64_t input_size, int64_t grad_size, int64_t weight_size, int64_t bias_size)
        : input(memory.take<Acc>(input_size)),
          grad(memory.take<Acc>(grad_size)),
          weight(memory.take<Acc>(weight_size)),
          bias(memory.take<Acc>(bias_size)) {}
    Scratch memory;
    Acc* input;   // [channel][padded row][padded column]
    Acc* grad;    // [output channel][row][column]
    Acc* weight;  // sums, [input channel and tap][output channel]
    Acc* bias;    // [output channel]
  };

  int64_t terms() const { return static_cast<int64_t>(offsets_.size()); }

  void sum_unit(const Unit& unit) const {
    const int64_t outputs = problem_.weights.outputs;
    const UnitScratch scratch(input_.elements() * n, grad_.elements() * n, terms() * outputs * n,
                              outputs * n);
    if (unit.weight) std::fill_n(scratch.input, input_.elements() * n, Acc(0));  // around the images
    sums_.for_each_tile(unit.chunk, [&](const TileImages& images, const ConvTile&, bool accumulate) {
      images_to_lanes(problem_.grad, images.first, images.count, grad_places_, scratch.grad);
      if (unit.bias) add_bias(scratch, accumulate);
      if (!unit.weight) return;
      images_to_lanes(problem_.x, images.first, images.count, input_places_, scratch.input);
      add_products(scratch, accumulate);
    });
    if (unit.bias) add_lanes(1, scratch.bias, sums_.bias(unit.chunk, 0));
    if (unit.weight) add_lanes(terms(), scratch.weight, sums_.weight(unit.chunk, 0));
  }

  void add_bias(const UnitScratch& scratch, bool accumulate) const {
    for (int64_t k = 0; k < problem_.weights.outputs; ++k) {
      const Acc* const from = scratch.grad + k * grad_.plane() * n;
      const Vec<Acc> total = sum_of_vectors(grad_.plane(), from, n);
      Acc* const to = scratch.bias + k * n;
      store(to, accumulate ? load<Acc>(to) + total : total);
    }
  }

  void add_products(const UnitScratch& scratch, bool accumulate) const {
    const int64_t outputs = problem_.weights.outputs;
    const LanePixels pixels{problem_.h.count, problem_.w.count, input_.columns * n};
    const EvenSplit parts(outputs, ceil_div(outputs, kDotChannels));
    const EvenSplit strips(terms(), ceil_div(terms(), kDotWeights));
    for (int64_t part = 0; part < parts.parts; ++part) {
      const Acc* const grad = scratch.grad + parts.begin(part) * grad_.plane() * n;
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t first = strips.begin(strip);
        lane_gradient_kernel_of<kDotWeights, kDotChannels, Acc>(strips.size(strip), parts.size(part))(
            pixels, scratch.input, offsets_.data() + first, grad, grad_.plane() * n,
            scratch.weight + (first * outputs + parts.begin(part)) * n, outputs * n, accumulate);
      }
    }
  }

  // Rows of sums in lanes, one of each output channel, to rows of sums.
  void add_lanes(int64_t rows, const Acc* from, Acc* to) const {
    const int64_t outputs = problem_.weights.outputs;
    for (int64_t row = 0; row < rows; ++row, from += outputs * n, to += sums_.panels.padded()) {
      for_each_vector<Acc>(outputs, [&](int64_t k, int some) {
        Vec<Acc> square[n];
        for (int i = 0; i < n; ++i) square[i] = i < some ? load<Acc>(from + (k + i) * n) : Vec<Acc>(Acc(0));
        transpose<Acc>(square);
        Vec<Acc> total = square[0];
        for (int i = 1; i < n; ++i) total += square[i];
        store_lanes(to + k, total, some);
      });
    }
  }

  const WeightGradientProblem<T>& problem_;
  PaddedAxis h_;
  PaddedAxis w_;
  LanePlanes input_;
  LanePlanes grad_;
  std::vector<int64_t> input_places_;
  std::vector<int64_t> grad_places_;
  WeightSums<T> sums_;
  std::vector<int64_t> offsets_;  // of the terms [input channel][tap] in the input's lanes
};

}  // namespace pyops::cpu
