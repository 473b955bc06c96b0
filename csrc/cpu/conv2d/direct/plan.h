// How the direct correlation (direct.h) cuts a problem: tiles, blocks of input channels, panels of output
// channels; and where a tile's sums lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

// Terms of a block of sums: its panel of weights, about 40 KB, stays in the L1 cache while pixels pass by.
inline constexpr int64_t kConvDepth = 320;
// Bytes of a tile's sums; they and the packed input stay in the L2 cache.
inline constexpr int64_t kTileSumsBytes = 192 << 10;
// Pixels that should share a panel of weights while it is in the L1 cache.
inline constexpr int64_t kSharedPixels = 128;

template <class T>
struct DirectPlan {
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // One phase of the output.
  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    int64_t taps;
    int64_t packed;                // where its weights begin within a group's
    std::vector<int64_t> offsets;  // of a block's terms in the packed input

    // The part of a tile that this phase, which may be shorter than the first, has.
    ConvTile part(const ConvTile& tile) const {
      ConvTile part = tile;
      part.rows = std::max<int64_t>(0, std::min(tile.rows, h->count - tile.row));
      part.columns = std::max<int64_t>(0, std::min(tile.columns, w->count - tile.column));
      return part;
    }
  };

  // `inputs_` channels of a group make terms.
  DirectPlan(const CorrelationProblem<T>& problem_, int64_t inputs_)
      : problem(problem_),
        inputs(inputs_),
        outputs(problem_.weights.outputs),
        groups(problem_.weights.groups),
        h(problem_.h.front()),
        w(problem_.w.front()),
        blocks(1, 1),
        panels(outputs, std::min<int64_t>(w.count, 4 * n)),
        shape(h, w, 1, 1) {
    int64_t taps = 0;
    for (const math::CorrelationAxis& rows : problem.h) {
      for (const math::CorrelationAxis& columns : problem.w) {
        const int64_t count = static_cast<int64_t>(rows.taps.size() * columns.taps.size());
        phases.push_back({&rows, &columns, count, group_weights, {}});
        group_weights += round_up(panels.padded() * inputs * count, n);
        taps = std::max(taps, count);
      }
    }
    const int64_t parts = std::max<int64_t>(1, ceil_div(inputs * taps, kConvDepth));
    blocks = EvenSplit(inputs, std::min(inputs, parts));
    if (h.count > 0 && w.count > 0) choose_tiles();
  }

  int64_t group_blocks() const { return ceil_div(groups, groups_in_tile); }
  int64_t tile_count() const {
    return batches.parts * group_blocks() * tiles.rows.parts() * tiles.columns.parts();
  }
  int64_t task_count() const { return tile_count() * panel_parts.parts(); }
  // Whether each output reads one pixel, which is inside of the image.
  bool is_pointwise() const {
    const auto is_plain = [](const math::CorrelationAxis& axis) {
      return axis.taps.size() == 1 && axis.phases == 1 && axis.source_first == 0 && axis.min_shift == 0 &&
             axis.max_shift == 0;
    };
    return phases.size() == 1 && is_plain(h) && is_plain(w);
  }
  // Whether channels may stay neighbours in the packed input: pixels are then some way apart.
  bool keeps_channels_together() const {
    return problem.x.channels_are_neighbours() && panels.vectors_along_channels && groups_in_tile == 1;
  }
  // The first element of the tensor that a tile reads of an image, of a pointwise plan.
  const T* first_element(int64_t image, int64_t channel, const ConvTile& tile) const {
    const ImageSource<T>& x = problem.x;
    return x.values + image * x.image_stride + channel * x.channel_stride +
           tile.row * h.source_step * x.row_stride + tile.column * w.source_step * x.column_stride;
  }
  // Where a panel's weights of a block of input channels lie: panels of a block one after the other.
  int64_t packed(const Phase& phase, int64_t group, int64_t block, int64_t panel) const {
    return group * group_weights + phase.packed + blocks.begin(block) * phase.taps * panels.padded() +
           panels.begin(panel) * blocks.size(block) * phase.taps;
  }

  const CorrelationProblem<T>& problem;
  int64_t inputs;
  int64_t outputs;
  int64_t groups;
  const math::CorrelationAxis& h;
  const math::CorrelationAxis& w;
  EvenSplit blocks;  // of input channels
  ChannelPanels<Acc> panels;
  PackedInputShape shape;
  std::vector<Phase> phases;
  int64_t group_weights = 0;  // packed weights of a group
  typename TileEpilogue<T>::Tiles tiles;
  EvenSplit batches{1, 1};  // of images
  int64_t groups_in_tile = 1;
  PanelParts<Acc> panel_parts;  // of a tile's output channels

 private:
  void choose_tiles() {
    constexpr int64_t kMostPixels = 1024;
    const int64_t sums = std::max(panels.padded() * static_cast<int64_t>(phases.size()), blocks.base + 1);
    const int64_t pixels = std::min<int64_t>(
        kMostPixels,
        std::max<int64_t>(4 * kPixels, kTileSumsBytes / static_cast<int64_t>(sizeof(Acc)) / sums));
    tiles = problem.epilogue->cut(h.count, w.count, pixels, 1);
    shape = PackedInputShape(h, w, tiles.rows.largest(), tiles.columns.largest());
    batches = batched(problem.images, tiles, kSharedPixels / (h.count * w.count));
    // Few channels in a group: several groups at a time, so that neighbours in memory are read together.
    const bool together = problem.x.channel_stride == 1 || problem.epilogue->wants_neighbouring_channels();
    if (together && blocks.parts == 1 && std::max(inputs, outputs) < n)
      groups_in_tile = std::min(groups, ceil_div(n, std::min(inputs, outputs)));
    panel_parts = PanelParts<Acc>(panels, tile_count(), ThreadPool().threads());
  }
};

// How far apart pixels are that have `count` neighbouring channels: an odd number of cache lines, so that
// they do not all fall into one set of the cache.
inline int64_t odd_stride(int64_t count) {
  constexpr int64_t n = Vec<float>::kLanes;
  return round_up(count, n) + (round_up(count, n) / n % 2 == 0 ? n : 0);
}

// How far apart the input's rows and pixels are that a tile's micro-kernels read, in the packed input or, for
// plans that need none, in the tensor.
struct InputStrides {
  int64_t row;
  int64_t pixel;
  bool in_place;
};

// Where a tile's sums lie: [image][group] and then, if vectors lie along channels, [row][column][channel]
// of the outputs of all phases; else [image][phase][group][channel][row][column of whole vectors].
template <class T>
struct SumsLayout {
  SumsLayout(const DirectPlan<T>& plan, const ConvTile& tile, const ConvTile& out, const PanelRange& range)
      : along_channels(plan.panels.vectors_along_channels) {
    const int64_t phases = along_channels ? 1 : static_cast<int64_t>(plan.phases.size());
    line = along_channels ? out.columns * range.padded : round_up(tile.columns, DirectPlan<T>::n);
    plane = tile.rows * line;
    group = along_channels ? out.rows * line : plan.outputs * plane;
    phase = plan.groups_in_tile * group;
    image = phases * phase;
  }
  int64_t of_phase(const DirectPlan<T>& plan, size_t number, const PanelRange& range) const {
    if (!along_channels) return static_cast<int64_t>(number) * phase;
    const typename DirectPlan<T>::Phase& one = plan.phases[number];
    return one.h->target_first * line + one.w->target_first * range.padded;
  }
  bool along_channels;
  int64_t line;   // of a row
  int64_t plane;  // of a channel
  int64_t group;
  int64_t phase;
  int64_t image;
};

}  // namespace pyops::cpu
