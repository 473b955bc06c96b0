// The gradients of weight and bias by Winograd's algorithm (transforms.h): sums (weight_sums.h) in
// its domain, transformed back once when they are merged.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/pack_gradient.h"
#include "cpu/conv2d/weight_sums.h"
#include "cpu/conv2d/winograd/transforms.h"

namespace pyops::cpu {

template <class T>
class WinogradWeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit WinogradWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        sub_kernels_(problem.h, problem.w),
        sums_(problem, 16 * sub_kernels_.count(),
              ceil_div(problem.weights.inputs * sub_kernels_.count(), kBlockChannels),
              std::min<int64_t>(problem.w.count, 4 * n)),
        shape_(problem.h, problem.w, 1, 1) {
    // As many Winograd tiles as the micro-kernel's constant allows.
    const int64_t high = ceil_div(problem.h.count, 2), wide = ceil_div(problem.w.count, 2);
    const EvenSplit across(wide, ceil_div(wide, kWinogradTiles));
    const int64_t columns = across.size(0), rows = 1 + (kWinogradTiles - round_up(columns, n)) / columns;
    const EvenSplit down(high, ceil_div(high, rows));
    shape_ = PackedInputShape(problem.h, problem.w, 2 * down.size(0), 2 * columns);
    const int64_t in_image = WinogradLayout<Acc>::of(1, problem.h.count, problem.w.count).tiles;
    constexpr int64_t kFewestTiles = 8;
    sums_.cut({down, across, 2, 1 + (kWinogradTiles - in_image) / (high * wide), kFewestTiles, 1});
  }

  // Whether the weight's gradient is what direct sums would give; if not, it is to be formed again. The
  // bias's is.
  bool run(T* weight, T* bias) {
    return sums_.run(
        weight, bias, double(shape_.plane()), [&](const Unit& unit) { sum_unit(unit); },
        TransformBack(problem_, sub_kernels_));
  }

 private:
  using Unit = typename WeightSums<T>::Unit;
  static constexpr int64_t kBlockChannels =
      128;  // input channels, times sub-kernels, that are summed together

  // Brings a channel's sums from Winograd's domain, in place, and then into the order of the weight's taps.
  class TransformBack {
   public:
    // The transform looks for infinities in whole vectors: what lies behind the channels must be theirs, too.
    static constexpr bool kWholeVectors = true;

    TransformBack(const WeightGradientProblem<T>& p, const SubKernels& sub_kernels)
        : sub_kernels_(sub_kernels), places_(p.weights.taps()) {
      for (const math::ConvTap& r : p.h.taps) {
        for (const math::ConvTap& s : p.w.taps) {
          places_[r.kernel * p.weights.columns + s.kernel] =
              16 * sub_kernels.sub_kernel(r, s) + sub_kernels.tap(r, s);
        }
      }
    }

    bool operator()(Acc* sums, int64_t line, Acc* taps) const {
      bool finite = true;
      for (int64_t sub_kernel = 0; sub_kernel < sub_kernels_.count(); ++sub_kernel) {
        Acc* const first = sums + sub_kernel * 16 * line;
        for (int64_t position = 0; position < 16; ++position) {
          if (!sub_kernels_.has(sub_kernel, position)) std::fill_n(first + position * line, line, Acc(0));
        }
        finite &= transform_weight_gradient(line, first);
      }
      for (size_t tap = 0; tap < places_.size(); ++tap)
        std::copy_n(sums + places_[tap] * line, line, taps + static_cast<int64_t>(tap) * line);
      return finite;
    }

   private:
    const SubKernels& sub_kernels_;
    std::vector<int64_t> places_;
  };

  // A thread's memory for a unit of work.
  struct UnitScratch {
    UnitScratch(int64_t grad_size, int64_t input_size, int64_t output_size)
        : grad(memory.take<Acc>(grad_size + n)),
          input(memory.take<Acc>(input_size + n)),
          output(memory.take<Acc>(output_size)) {}
    Scratch memory;
    Acc* grad;    // packed panels
    Acc* input;   // transformed, [sub-kernel][input channel][position][Winograd tile]
    Acc* output;  // transformed gradient, [position][panel][Winograd tile][output channel of the panel]
  };

  static constexpr WinogradLayout<Acc> kLayout{kWinogradTiles};

  int64_t sub_kernel_size() const { return sums_.blocks.size(0) * kLayout.channel(); }

  void sum_unit(const Unit& unit) const {
    const int64_t first_channel = sums_.blocks.begin(unit.block), ld = sums_.panels.padded();
    const int64_t tile_pixels = 4 * sums_.tiles.rows.size(0) * sums_.tiles.columns.size(0);
    const UnitScratch scratch(sums_.batches.size(0) * tile_pixels * ld,
                              sub_kernels_.count() * sub_kernel_size(), 16 * kWinogradTiles * ld);
    sums_.for_each_tile(unit.chunk, [&](const TileImages& images, const ConvTile& tile, bool accumulate) {
      const int64_t group = unit.first_group;
      const int64_t pixels = pack_gradients(problem_, images, group, tile, sums_.panels, scratch.grad);
      if (unit.bias)
        add_packed(sums_.panels, pixels, scratch.grad, sums_.bias(unit.chunk, group), accumulate);
      if (!unit.weight) return;
      const ConvTile whole = in_winograd_tiles(tile);
      transform(images, group * problem_.weights.inputs + first_channel, sums_.blocks.size(unit.block), tile,
                whole, scratch);
      add_products(images.count * whole.rows * whole.columns / 4, sums_.blocks.size(unit.block), scratch,
                   sums_.weight(unit.chunk, group) + first_channel * sums_.terms * ld, accumulate);
    });
  }

  // A tile of the input and of the packed gradient.
  void transform(const TileImages& images, int64_t first_channel, int64_t channels, const ConvTile& tile,
                 const ConvTile& whole, const UnitScratch& scratch) const {
    const int64_t in_image = whole.rows * whole.columns / 4, pixels = tile.rows * tile.columns;
    const int64_t ld = sums_.panels.padded();
    for (int64_t i = 0; i < images.count; ++i) {
      transform_channels(problem_.x, images.first + i, first_channel, channels, problem_.h, problem_.w,
                         sub_kernels_, shape_, whole, {kLayout.channel(), sub_kernel_size(), kWinogradTiles},
                         scratch.input + i * in_image);
      for (int64_t panel = 0; panel < sums_.panels.parts; ++panel) {
        const int64_t begin = sums_.panels.begin(panel), width = sums_.panels.width(panel);
        transform_output_gradient(scratch.grad + (begin * images.count + i * width) * pixels, tile.rows,
                                  tile.columns, width, kWinogradTiles * ld,
                                  scratch.output + begin * kWinogradTiles + i * in_image * width);
      }
    }
  }

  // sums[input channel][sub-kernel][position][output channel] (+)= products over `tiles` Winograd tiles.
  void add_products(int64_t tiles, int64_t channels, const UnitScratch& scratch, Acc* sums,
                    bool accumulate) const {
    const int64_t ld = sums_.panels.padded(), terms = sums_.terms;
    const EvenSplit strips(channels, ceil_div(channels, kPixels));
    for (int64_t at = 0; at < 16 * sub_kernels_.count(); ++at) {
      const int64_t position = at / sub_kernels_.count(), sub_kernel = at % sub_kernels_.count();
      if (!sub_kernels_.has(sub_kernel, position)) continue;
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t first = strips.begin(strip);
        const Acc* const left = scratch.input + sub_kernel * sub_kernel_size() + first * kLayout.channel() +
                                position * kWinogradTiles;
        for (int64_t panel = 0; panel < sums_.panels.parts; ++panel) {
          const int64_t begin = sums_.panels.begin(panel);
          const auto kernel = winograd_kernel_of<Acc>(strips.size(strip), sums_.panels.width(panel) / n);
          kernel(tiles, left, scratch.output + (position * ld + begin) * kWinogradTiles,
                 sums + (first * terms + sub_kernel * 16 + position) * ld + begin, terms * ld, accumulate);
        }
      }
    }
  }

  const WeightGradientProblem<T>& problem_;
  SubKernels sub_kernels_;
  WeightSums<T> sums_;
  PackedInputShape shape_;
};

}  // namespace pyops::cpu
