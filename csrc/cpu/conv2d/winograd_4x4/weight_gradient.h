// The gradients of weight and bias by Winograd's F(4 x 4, 3 x 3) (transforms.h): sums (weight_sums.h) in its
// domain, transformed back once when they are merged.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/weight_sums.h"
#include "cpu/conv2d/winograd_4x4/microkernels.h"
#include "cpu/conv2d/winograd_4x4/transforms.h"

namespace pyops::cpu::winograd_4x4 {

template <class T>
class WeightGradient {
 public:
  explicit WeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        h_(problem.h),
        w_(problem.w),
        sums_(problem, kPositions, ceil_div(problem.weights.inputs, kSummedChannels), n) {
    const int64_t high = ceil_div(h_.count, kSide), wide = ceil_div(w_.count, kSide);
    const EvenSplit across(wide, ceil_div(wide, kSummedTiles));
    const int64_t rows = std::max<int64_t>(1, kSummedTiles / across.size(0));
    const EvenSplit down(high, ceil_div(high, rows));
    constexpr int64_t kFewestTiles = 8;
    sums_.cut({down, across, kSide, std::max<int64_t>(1, kSummedTiles / (high * wide)), kFewestTiles, 1});
    tile_count_ = sums_.batches.size(0) * down.size(0) * across.size(0);
  }

  // Whether the weight's gradient is what direct sums would give; if not, it is to be formed again. The
  // bias's is.
  bool run(T* weight, T* bias) {
    return sums_.run(
        weight, bias, double(tile_count_), [&](const Unit& unit) { sum_unit(unit); }, TransformBack{});
  }

 private:
  using Unit = typename WeightSums<T>::Unit;
  // Winograd tiles that are summed in one go, and their input channels. The sums, which do not fit the L2
  // cache, pass by for each tile, and the transformed input is to stay there.
  static constexpr int64_t kSummedTiles = 56, kSummedChannels = 32;

  // Brings a channel's sums from Winograd's domain into the order of the weight's taps.
  struct TransformBack {
    // The transform looks for infinities in whole vectors.
    static constexpr bool kWholeVectors = true;
    bool operator()(const float* sums, int64_t line, float* taps) const {
      return transform_weight_gradient(line, sums, taps);
    }
  };

  // A thread's memory for a unit of work.
  struct UnitScratch {
    UnitScratch(int64_t patch_size, int64_t input_size, int64_t grad_size)
        : patch(memory.take<float>(patch_size)),
          input(memory.take<float>(input_size)),
          grad(memory.take<float>(grad_size)) {}
    Scratch memory;
    float* patch;  // a vector of channels
    float* input;  // transformed, [position][Winograd tile][channel of a block]
    float* grad;   // transformed, [position][Winograd tile][output channel of a panel]
  };

  int64_t line() const { return round_up(sums_.blocks.size(0), n); }
  // One cache line more, so that what is stored to all positions does not fall into one set of the L1 cache.
  int64_t input_position() const { return tile_count_ * line() + n; }
  int64_t grad_position() const { return tile_count_ * ChannelPanels<float>::kWide + n; }

  void sum_unit(const Unit& unit) const {
    const int64_t rows = kSide * sums_.tiles.rows.size(0), columns = kSide * sums_.tiles.columns.size(0);
    const UnitScratch scratch((rows + 2) * (columns + 2) * n, kPositions * input_position(),
                              kPositions * grad_position());
    sums_.for_each_tile(unit.chunk, [&](const TileImages& images, const ConvTile& tile, bool accumulate) {
      const ConvTile whole = in_whole_tiles(tile);
      if (unit.weight) transform_images(images, unit.block, whole, scratch);
      for (int64_t panel = 0; panel < sums_.panels.parts; ++panel) {
        transform_gradients(unit, images, panel, whole, accumulate, scratch);
        if (unit.weight) {
          add_products(unit, panel, images.count * tiles_of(whole.rows, whole.columns), accumulate, scratch);
        }
      }
    });
  }

  void transform_images(const TileImages& images, int64_t block, const ConvTile& whole,
                        const UnitScratch& scratch) const {
    const Patch patch{whole.row + h_.min_shift + h_.source_first,
                      whole.rows + 2,
                      whole.column + w_.min_shift + w_.source_first,
                      whole.columns + 2,
                      h_.source_size,
                      w_.source_size};
    const int64_t in_image = tiles_of(whole.rows, whole.columns), channels = sums_.blocks.size(block);
    for (int64_t i = 0; i < images.count; ++i) {
      for (int64_t c = 0; c < channels; c += n) {
        const int some = static_cast<int>(std::min(n, channels - c));
        pack_patch(problem_.x, images.first + i, sums_.blocks.begin(block) + c, some, patch, scratch.patch);
        transform_input(scratch.patch, patch.columns, whole.rows / kSide, whole.columns / kSide,
                        input_position(), line(), scratch.input + i * in_image * line() + c);
      }
    }
  }

  // Of a panel's output channels; the bias's gradient are their sums.
  void transform_gradients(const Unit& unit, const TileImages& images, int64_t panel, const ConvTile& whole,
                           bool accumulate, const UnitScratch& scratch) const {
    const Patch patch{whole.row, whole.rows, whole.column, whole.columns, h_.count, w_.count};
    const int64_t in_image = tiles_of(whole.rows, whole.columns), width = sums_.panels.width(panel);
    for (int64_t i = 0; i < images.count; ++i) {
      for (int64_t k = 0; k < width; k += n) {
        const int64_t channel = sums_.panels.begin(panel) + k;
        const int some = static_cast<int>(std::clamp<int64_t>(problem_.weights.outputs - channel, 0, n));
        pack_patch(problem_.grad, images.first + i, channel, some, patch, scratch.patch);
        if (unit.bias) {
          float* const bias = sums_.bias(unit.chunk, 0) + channel;
          add_patch(patch, scratch.patch, bias, accumulate || i > 0);
        }
        if (!unit.weight) continue;
        transform_output_gradient(scratch.patch, whole.rows / kSide, whole.columns / kSide, grad_position(),
                                  width, scratch.grad + i * in_image * width + k);
      }
    }
  }

  static void add_patch(const Patch& patch, const float* from, float* sums, bool accumulate) {
    Vec<float> total = accumulate ? load<float>(sums) : Vec<float>(0.0f);
    for (int64_t i = 0; i < patch.rows; ++i) {
      Vec<float> row = 0.0f;
      for (int64_t j = 0; j < patch.columns; ++j, from += n) row += load<float>(from);
      total += row;
    }
    store(sums, total);
  }

  // sums[input channel][position][output channel] (+)= products over `tiles` Winograd tiles.
  void add_products(const Unit& unit, int64_t panel, int64_t tiles, bool accumulate,
                    const UnitScratch& scratch) const {
    const int64_t ld = sums_.panels.padded(), channels = sums_.blocks.size(unit.block);
    float* const to = sums_.weight(unit.chunk, 0) + sums_.blocks.begin(unit.block) * kPositions * ld +
                      sums_.panels.begin(panel);
    const EvenSplit strips(channels, ceil_div(channels, int64_t{kPixels}));
    for (int64_t position = 0; position < kPositions; ++position) {
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t first = strips.begin(strip);
        terms_kernel_of(strips.size(strip), sums_.panels.width(panel) / n)(
            tiles, scratch.input + position * input_position() + first, line(),
            scratch.grad + position * grad_position(), to + (first * kPositions + position) * ld,
            kPositions * ld, accumulate);
      }
    }
  }

  const WeightGradientProblem<T>& problem_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  WeightSums<T> sums_;
  int64_t tile_count_ = 0;  // Winograd tiles of a tile, at most
};

}  // namespace pyops::cpu::winograd_4x4
