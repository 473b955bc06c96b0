// The gradients of weight and bias by direct sums (weight_sums.h): every product is formed. Serves every
// problem.
//
//   DirectWeightGradient  packs the input and the output's gradient of a tile and adds up its products
//   SingleGradientTerms   what the terms of a sum are and which micro-kernels multiply them: one pixel of the
//                         input and of the gradient each. bf16/bf16.cpp has another of its kind.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/direct/direct.h"
#include "cpu/conv2d/pack_gradient.h"
#include "cpu/conv2d/weight_sums.h"

namespace pyops::cpu {

// Whether several groups share a tile, so that neighbours in memory are read together.
template <class T>
bool joins_groups(const WeightGradientProblem<T>& p) {
  const int64_t terms = p.weights.inputs * static_cast<int64_t>(p.h.taps.size() * p.w.taps.size());
  return p.weights.groups > 1 && (p.x.channel_stride == 1 || p.grad.channel_stride == 1) &&
         (p.weights.inputs == 1 || terms <= kConvDepth) &&
         std::max(p.weights.inputs, p.weights.outputs) < Vec<acc_t<T>>::kLanes;
}

// The terms of an input channel's sums that read neighbours in the packed input: runs of taps, by length.
class TapRuns {
 public:
  TapRuns() = default;
  // `offsets` of the terms in the packed input, `in_row` taps of the kernel in each of its rows.
  TapRuns(const std::vector<int64_t>& offsets, int64_t in_row) {
    const int64_t count = static_cast<int64_t>(offsets.size());
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && offsets[end] == offsets[end - 1] + 1; ++end) {
        if (end % in_row == 0) break;
      }
      const EvenSplit parts(end - begin, ceil_div(end - begin, int64_t{kMostRun}));
      for (int64_t part = 0; part < parts.parts; ++part)
        by_length_[parts.size(part)].push_back(begin + parts.begin(part));
    }
  }

  // Calls f(length, count, first) for the runs of the first `depth` terms, as many of a length at a time as a
  // micro-kernel takes: first[i] is the first term of run i.
  template <class F>
  void for_each(int64_t depth, const F& f) const {
    for (int64_t length = 1; length <= kMostRun; ++length) {
      const std::vector<int64_t>& all = by_length_[length];  // in the order of channels
      const int64_t count = std::lower_bound(all.begin(), all.end(), depth) - all.begin();
      if (count == 0) continue;
      const EvenSplit parts(count, ceil_div(count, kWeights / length));
      for (int64_t part = 0; part < parts.parts; ++part)
        f(length, parts.size(part), all.data() + parts.begin(part));
    }
  }

 private:
  std::vector<int64_t> by_length_[kMostRun + 1];
};

// How the direct weight gradient cuts a problem.
template <class T>
struct DirectGradientPlan {
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // A block of input channels has about `block_terms` terms.
  DirectGradientPlan(const WeightGradientProblem<T>& problem_, int64_t block_terms)
      : problem(problem_),
        sums(problem, taps(), ceil_div(problem.weights.inputs * taps(), block_terms),
             std::min<int64_t>(problem.w.count, 4 * n)),
        shape(problem.h, problem.w, 1, 1) {
    const int64_t rows = problem.h.count, columns = problem.w.count;
    // A panel of the packed gradient stays in L1; DotKernel, which adds lanes up at the end, wants more.
    const bool along_channels = sums.panels.vectors_along_channels;
    const int64_t pixels = along_channels ? 24 * n : 64 * n;
    const EvenSplit column_tiles(columns, ceil_div(columns, pixels));
    const EvenSplit row_tiles(rows, ceil_div(rows, std::max<int64_t>(1, pixels / column_tiles.size(0))));
    shape = PackedInputShape(problem.h, problem.w, row_tiles.size(0), column_tiles.size(0));
    const ConvWeights<T>& weights = problem.weights;
    const int64_t groups =
        joins_groups(problem)
            ? std::min(weights.groups, ceil_div(n, std::min(weights.inputs, weights.outputs)))
            : 1;
    sums.cut({row_tiles, column_tiles, 1,
              along_channels ? pixels / std::max<int64_t>(1, problem.pixels()) : 1, 1, groups});
    offsets = shape.offsets(problem.h, problem.w, sums.blocks.size(0));
    runs = TapRuns(offsets, static_cast<int64_t>(problem.w.taps.size()));
  }

  int64_t taps() const { return static_cast<int64_t>(problem.h.taps.size() * problem.w.taps.size()); }
  // Pixels of a tile of one image.
  int64_t tile_pixels() const { return sums.tiles.rows.size(0) * sums.tiles.columns.size(0); }

  const WeightGradientProblem<T>& problem;
  WeightSums<T> sums;
  PackedInputShape shape;
  std::vector<int64_t> offsets;  // of a block's terms in the packed input
  TapRuns runs;
};

// The packed input and gradient of a tile and the group's sums, which their products are added to or become.
template <class Acc>
struct GradientProducts {
  WeightKernelPixels pixels;
  int64_t depth;  // terms
  const Acc* input;
  int64_t packed_pixels;  // of the gradient
  const Acc* grad;
  Acc* sums;
  bool accumulate;
};

// sums (+)= products by the runs of taps, with the micro-kernels of kernel_of(length, runs, vectors).
template <class T, class Acc, class KernelOf>
void add_tap_runs(const DirectGradientPlan<T>& plan, const GradientProducts<Acc>& p,
                  const KernelOf& kernel_of) {
  const ChannelPanels<Acc>& panels = plan.sums.panels;
  for (int64_t panel = 0; panel < panels.parts; ++panel) {
    const Acc* const right = p.grad + panels.begin(panel) * p.packed_pixels;
    Acc* const to = p.sums + panels.begin(panel);
    plan.runs.for_each(p.depth, [&](int64_t length, int64_t count, const int64_t* first) {
      kernel_of(length, count, panels.width(panel) / ChannelPanels<Acc>::n)(
          p.pixels, p.input, plan.offsets.data(), first, right, to, panels.padded(), p.accumulate);
    });
  }
}

// A term is a product of one pixel of the input and of the gradient.
template <class T>
class SingleGradientTerms {
 public:
  using Acc = acc_t<T>;
  using Plan = DirectGradientPlan<T>;
  static constexpr int64_t kBlockTerms = kConvDepth;

  explicit SingleGradientTerms(const Plan& plan) : plan_(plan) {}

  // Channels of the packed input.
  int64_t packed_channels() const { return plan_.sums.tiles.groups_in_tile * plan_.sums.blocks.size(0); }

  void pack_tile(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
                 Acc* packed_input) const {
    pack_input(plan_.problem.x, image, channel, channels, plan_.problem.h, plan_.problem.w, plan_.shape, tile,
               packed_input);
  }

  // Packs a tile of one group's gradient, image after image; returns its pixels.
  int64_t pack_gradients(const TileImages& images, int64_t group, const ConvTile& tile, Acc* packed) const {
    return cpu::pack_gradients(plan_.problem, images, group, tile, plan_.sums.panels, packed);
  }
  void add_to_bias(int64_t pixels, const Acc* packed, Acc* sums, bool accumulate) const {
    add_packed(plan_.sums.panels, pixels, packed, sums, accumulate);
  }
  void add_products(const GradientProducts<Acc>& products) const {
    add_tap_runs(plan_, products, weight_kernel_of<Acc>);
  }

 private:
  const Plan& plan_;
};

template <class T, class Terms>
class DirectWeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit DirectWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        plan_(problem, Terms::kBlockTerms),
        terms_(plan_),
        grad_h_(identity_axis(problem.h.count)),
        grad_w_(identity_axis(problem.w.count)) {}
  DirectWeightGradient(const DirectWeightGradient&) = delete;  // terms_ knows where plan_ is

  void run(T* weight, T* bias) {
    plan_.sums.run(
        weight, bias, double(plan_.shape.plane()), [&](const Unit& unit) { sum_unit(unit); },
        TapOrder(problem_));
  }

 private:
  using Unit = typename WeightSums<T>::Unit;

  // Brings a channel's sums from the order in which a correlation visits the taps into that of the weight.
  class TapOrder {
   public:
    static constexpr bool kWholeVectors = false;
    explicit TapOrder(const WeightGradientProblem<T>& p) : places_(p.weights.taps()) {
      int64_t visited = 0;
      for (const math::ConvTap& r : p.h.taps) {
        for (const math::ConvTap& s : p.w.taps) places_[r.kernel * p.weights.columns + s.kernel] = visited++;
      }
    }
    bool operator()(const Acc* sums, int64_t line, Acc* taps) const {
      for (size_t tap = 0; tap < places_.size(); ++tap)
        std::copy_n(sums + places_[tap] * line, line, taps + static_cast<int64_t>(tap) * line);
      return true;
    }

   private:
    std::vector<int64_t> places_;
  };

  // A thread's memory for a unit of work.
  struct UnitScratch {
    UnitScratch(int64_t input_size, int64_t grad_size)
        : packed_input(memory.take<Acc>(input_size + n)), grad(memory.take<Acc>(grad_size + n)) {}
    Scratch memory;
    Acc* packed_input;
    Acc* grad;  // packed in panels or, for DotKernel, planar
  };

  void sum_unit(const Unit& unit) const {
    const WeightSums<T>& sums = plan_.sums;
    const int64_t first_channel = sums.blocks.begin(unit.block), channels = sums.blocks.size(unit.block);
    const int64_t image_input = terms_.packed_channels() * plan_.shape.channel();
    const int64_t outputs = problem_.weights.outputs;
    const bool along_channels = sums.panels.vectors_along_channels;
    const int64_t grad_size = along_channels
                                  ? sums.batches.size(0) * plan_.tile_pixels() * sums.panels.padded()
                                  : sums.tiles.groups_in_tile * outputs * plan_.tile_pixels();
    const UnitScratch scratch(sums.batches.size(0) * image_input, grad_size);
    sums.for_each_tile(unit.chunk, [&](const TileImages& images, const ConvTile& tile, bool accumulate) {
      for (int64_t k = 0; unit.weight && k < images.count; ++k) {
        terms_.pack_tile(images.first + k, unit.first_group * problem_.weights.inputs + first_channel,
                         unit.groups * channels, tile, scratch.packed_input + k * image_input);
      }
      if (!along_channels) {
        const PackedInputShape planes(grad_h_, grad_w_, sums.tiles.rows.size(0), sums.tiles.columns.size(0));
        pack_input(problem_.grad, images.first, unit.first_group * outputs, unit.groups * outputs, grad_h_,
                   grad_w_, planes, tile, scratch.grad);
      }
      for (int64_t g = 0; g < unit.groups; ++g) {
        const int64_t group = unit.first_group + g;
        Acc* const to = sums.weight(unit.chunk, group) + first_channel * sums.terms * sums.panels.padded();
        Acc* const bias = unit.bias ? sums.bias(unit.chunk, group) : nullptr;
        const Acc* const input = scratch.packed_input + g * channels * plan_.shape.channel();
        const int64_t depth = channels * sums.terms;
        if (!along_channels) {
          const Acc* const planes = scratch.grad + g * outputs * plan_.tile_pixels();
          if (bias) {
            add_planes(tile, outputs, sums.tiles.columns.size(0), plan_.tile_pixels(), planes, bias,
                       accumulate);
          }
          if (unit.weight) add_dots(tile, input, depth, planes, to, accumulate);
          continue;
        }
        const int64_t pixels = terms_.pack_gradients(images, group, tile, scratch.grad);
        if (bias) terms_.add_to_bias(pixels, scratch.grad, bias, accumulate);
        if (!unit.weight) continue;
        terms_.add_products({{images.count, image_input, tile.rows, plan_.shape.columns, tile.columns},
                             depth,
                             input,
                             pixels,
                             scratch.grad,
                             to,
                             accumulate});
      }
    });
  }

  void add_dots(const ConvTile& tile, const Acc* packed_input, int64_t depth, const Acc* planes, Acc* sums,
                bool accumulate) const {
    const int64_t line = plan_.tile_pixels(), ld = plan_.sums.panels.padded();
    const EvenSplit strips(depth, ceil_div(depth, kDotWeights));
    const EvenSplit parts(problem_.weights.outputs, ceil_div(problem_.weights.outputs, kDotChannels));
    for (int64_t part = 0; part < parts.parts; ++part) {
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        dot_kernel_of<Acc>(strips.size(strip), parts.size(part))(
            tile.rows, tile.columns, packed_input, plan_.shape.columns,
            plan_.offsets.data() + strips.begin(strip), planes + parts.begin(part) * line,
            plan_.sums.tiles.columns.size(0), line, sums + strips.begin(strip) * ld + parts.begin(part), ld,
            accumulate);
      }
    }
  }

  const WeightGradientProblem<T>& problem_;
  DirectGradientPlan<T> plan_;
  Terms terms_;
  math::CorrelationAxis grad_h_;  // the gradient's pixels as they lie
  math::CorrelationAxis grad_w_;
};

}  // namespace pyops::cpu
