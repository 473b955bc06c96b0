// The direct correlation: every product is formed, tile by tile. It serves every problem, and the others'
// speed is measured against it.
//
//   DirectPlan         how a problem is cut: tiles, blocks of input channels, panels of output channels
//   DirectCorrelation  hands tiles to threads; packs a tile's input and visits its micro-tiles
//   SingleTerms        what the terms of a sum are and which micro-kernels multiply them: one element of the
//                      input and one weight each. bf16/bf16.cpp has another of its kind.
//
// What becomes of a tile's sums is the epilogue's business (epilogue.h). Every output is summed by one thread
// in an order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/packed_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

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

// A term is a product of one element of the input and one weight.
template <class T>
class SingleTerms {
 public:
  using Acc = acc_t<T>;
  using Plan = DirectPlan<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // Terms of a group for each tap.
  static int64_t inputs(const ConvWeights<T>& weights) { return weights.inputs; }

  explicit SingleTerms(const Plan& plan) : plan_(plan) {}

  std::vector<int64_t> offsets(const typename Plan::Phase& phase) const {
    return plan_.shape.offsets(*phase.h, *phase.w, plan_.blocks.size(0));
  }

  // Channels of the packed input, and how far apart its pixels are.
  int64_t packed_channels() const { return plan_.groups_in_tile * plan_.blocks.size(0); }
  int64_t pixel_stride() const { return 1; }

  void pack_tile(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
                 Acc* packed_input) const {
    pack_input(plan_.problem.x, image, channel, channels, plan_.h, plan_.w, plan_.shape, tile, packed_input);
  }

  void pack_panel_of_weights(int64_t group, int64_t block, int64_t panel, Acc* packed_weights) const {
    const ConvWeights<T>& weights = plan_.problem.weights;
    const int64_t width = plan_.panels.width(panel), line = round_up(width, n), taps = weights.taps();
    const int64_t first = plan_.panels.begin(panel), count = std::min(width, weights.outputs - first);
    const int64_t most = channels_in_block(taps);
    Scratch scratch;
    Acc* const read = scratch.take<Acc>(most * taps * line);
    for (int64_t c = 0; c < plan_.blocks.size(block); c += most) {
      const int64_t channels = std::min(most, plan_.blocks.size(block) - c);
      read_taps(weights, {group, plan_.blocks.begin(block) + c, channels, first, count}, line, read);
      for (const auto& phase : plan_.phases) {
        Acc* to = packed_weights + plan_.packed(phase, group, block, panel) + c * phase.taps * width;
        for (int64_t i = 0; i < channels; ++i) {
          for (const math::ConvTap& r : phase.h->taps) {
            for (const math::ConvTap& s : phase.w->taps) {
              std::copy_n(read + (i * taps + r.kernel * weights.columns + s.kernel) * line, width, to);
              to += width;
            }
          }
        }
      }
    }
  }

  // c[pixel, channel] (+)= the sums of `depth` terms, in chains.
  static void multiply_pixels(int64_t pixels, int64_t vectors, int64_t depth, const Acc* x,
                              const int64_t* offsets, const Acc* weight, Acc* c, int64_t ldc,
                              bool accumulate) {
    const auto kernel = pixel_kernel_of<Acc>(pixels, vectors);
    for_each_chain(depth, [&](int64_t begin, int64_t terms) {
      kernel(terms, x, offsets + begin, weight + begin * vectors * n, c, ldc, accumulate || begin > 0);
    });
  }
  static ChannelKernel<Acc> channel_kernel(int64_t channels, int64_t vectors) {
    return channel_kernel_of<Acc>(channels, vectors);
  }

 private:
  const Plan& plan_;
};

template <class T, class Terms>
class DirectCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit DirectCorrelation(const CorrelationProblem<T>& problem)
      : plan_(problem, Terms::inputs(problem.weights)), terms_(plan_) {
    for (Phase& phase : plan_.phases) phase.offsets = terms_.offsets(phase);
  }
  DirectCorrelation(const DirectCorrelation&) = delete;  // terms_ knows where plan_ is

  void run() const {
    const CorrelationProblem<T>& p = plan_.problem;
    if (p.images == 0 || p.pixels() == 0) return;
    Scratch scratch;
    const Acc* const weights = packed_weights(p, packed_order(), plan_.groups * plan_.group_weights + n,
                                              scratch, [&](Acc* to) { pack_weights(to); });
    if (weights == nullptr) return;
    double taps = 0;
    for (const Phase& phase : plan_.phases) taps += double(phase.taps);
    const double work = double(p.images) * double(p.pixels()) * double(plan_.groups) *
                        double(plan_.outputs * plan_.inputs) * taps;
    parallel_claim(plan_.task_count(), work, [&](int64_t task) {
      const int64_t parts = plan_.panel_parts.parts();
      multiply_tile(task / parts, plan_.panel_parts.range(plan_.panels, task % parts), weights);
    });
  }

 private:
  using Phase = typename DirectPlan<T>::Phase;

  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(int64_t input_size, int64_t sums_size)
        : packed_input(memory.take<Acc>(input_size + n)),  // vectors of pixels read past the end of a row
          sums(memory.take<Acc>(sums_size + n * n)) {}     // transposition reads past that of the sums
    Scratch memory;
    Acc* packed_input;
    Acc* sums;
  };

  PackedOrder packed_order() const {
    return {'d',
            plan_.groups,
            plan_.inputs,
            plan_.outputs,
            plan_.blocks.parts,
            plan_.panels.parts,
            plan_.panels.vectors_along_channels,
            static_cast<int64_t>(plan_.phases.size()),
            plan_.problem.weights.rows,
            plan_.problem.weights.columns,
            plan_.h.source_step,
            plan_.w.source_step};
  }

  void pack_weights(Acc* packed) const {
    const int64_t in_group = plan_.blocks.parts * plan_.panels.parts;
    parallel_for(plan_.groups * in_group, plan_.group_weights / in_group, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        terms_.pack_panel_of_weights(task / in_group, task % in_group / plan_.panels.parts,
                                     task % plan_.panels.parts, packed);
      }
    });
  }

  ConvTile tile_at(int64_t row, int64_t column) const {
    const auto &rows = plan_.tiles.rows, &columns = plan_.tiles.columns;
    return {rows.begin(row), rows.size(row), columns.begin(column), columns.size(column), row, column};
  }

  void multiply_tile(int64_t index, const PanelRange& range, const Acc* packed_weights) const {
    const int64_t column_tile = index % plan_.tiles.columns.parts();
    index /= plan_.tiles.columns.parts();
    const int64_t row_tile = index % plan_.tiles.rows.parts();
    index /= plan_.tiles.rows.parts();
    const int64_t first_group = index % plan_.group_blocks() * plan_.groups_in_tile;
    const int64_t batch = index / plan_.group_blocks();
    const int64_t first_image = plan_.batches.begin(batch), images = plan_.batches.size(batch);
    const int64_t groups = std::min(plan_.groups_in_tile, plan_.groups - first_group);
    const ConvTile tile = tile_at(row_tile, column_tile);
    const bool along_channels = plan_.panels.vectors_along_channels;
    const int64_t line = along_channels ? tile.columns : round_up(tile.columns, n);  // of a row's sums
    const int64_t channels = along_channels ? range.padded : plan_.outputs;
    // [image][phase][group] of both.
    const int64_t group_sums = channels * tile.rows * line, phase_sums = plan_.groups_in_tile * group_sums;
    const int64_t image_sums = static_cast<int64_t>(plan_.phases.size()) * phase_sums;
    const int64_t image_input = terms_.packed_channels() * plan_.shape.channel();
    const TileScratch scratch(images * image_input, images * image_sums);
    for (int64_t block = 0; block < plan_.blocks.parts; ++block) {
      const int64_t block_channels = plan_.blocks.size(block);
      for (int64_t i = 0; i < images; ++i) {
        terms_.pack_tile(first_image + i, first_group * plan_.inputs + plan_.blocks.begin(block),
                         groups * block_channels, tile, scratch.packed_input + i * image_input);
      }
      for (size_t p = 0; p < plan_.phases.size(); ++p) {
        const Phase& phase = plan_.phases[p];
        const ConvTile part = phase.part(tile);
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t panel = range.begin; panel < range.end; ++panel) {
            const Acc* const weight = packed_weights + plan_.packed(phase, first_group + g, block, panel);
            for (int64_t i = 0; i < images; ++i) {
              const Acc* const from =
                  scratch.packed_input + i * image_input + g * block_channels * plan_.shape.channel();
              Acc* const to = scratch.sums + i * image_sums + p * phase_sums + g * group_sums;
              along_channels
                  ? sweep_pixels(phase, part, line, range, from, weight, panel, block, to)
                  : sweep_channels(phase, part, line, tile.rows * line, from, weight, panel, block, to);
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < images; ++i) {
      for (size_t p = 0; p < plan_.phases.size(); ++p) {
        const Phase& phase = plan_.phases[p];
        hand_over(first_image + i, first_group, groups, range, phase, phase.part(tile), line,
                  tile.rows * line, scratch.sums + i * image_sums + p * phase_sums);
      }
    }
  }

  // Gives the epilogue the sums of some groups of an image, a group's planes `plane` apart.
  void hand_over(int64_t image, int64_t first_group, int64_t groups, const PanelRange& range,
                 const Phase& phase, const ConvTile& part, int64_t line, int64_t plane, Acc* sums) const {
    const TileEpilogue<T>& epilogue = *plan_.problem.epilogue;
    if (!plan_.panels.vectors_along_channels) {
      epilogue.take(image, first_group * plan_.outputs, groups * plan_.outputs, *phase.h, *phase.w, part,
                    TileSums<Acc>{sums, line, 1, plane});
      return;
    }
    for (int64_t g = 0; g < groups; ++g) {
      epilogue.take(image, (first_group + g) * plan_.outputs + range.first, range.count, *phase.h, *phase.w,
                    part,
                    TileSums<Acc>{sums + g * range.padded * plane, line * range.padded, range.padded, 1});
    }
  }

  void sweep_pixels(const Phase& phase, const ConvTile& tile, int64_t line, const PanelRange& range,
                    const Acc* packed_input, const Acc* weight, int64_t panel, int64_t block,
                    Acc* sums) const {
    if (tile.columns == 0) return;
    const int64_t depth = plan_.blocks.size(block) * phase.taps, ld = range.padded;
    const int64_t vectors = plan_.panels.width(panel) / n, stride = terms_.pixel_stride();
    const EvenSplit strips(tile.columns, ceil_div(tile.columns, kPixels));
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t column = strips.begin(strip);
        terms_.multiply_pixels(
            strips.size(strip), vectors, depth, packed_input + (row * plan_.shape.columns + column) * stride,
            phase.offsets.data(), weight,
            sums + (row * line + column) * ld + plan_.panels.begin(panel) - range.first, ld, block > 0);
      }
    }
  }

  // Vectors of pixels are numbered through the tile's rows and taken several at a time.
  void sweep_channels(const Phase& phase, const ConvTile& tile, int64_t line, int64_t ld,
                      const Acc* packed_input, const Acc* weight, int64_t panel, int64_t block,
                      Acc* sums) const {
    const int64_t depth = plan_.blocks.size(block) * phase.taps, rows = plan_.panels.width(panel);
    const int64_t in_row = line / n, vectors = tile.rows * in_row;
    const int64_t* const offsets = phase.offsets.data();
    Acc* const to = sums + plan_.panels.begin(panel) * ld;
    for (int64_t v = 0, taken; v < vectors; v += taken) {
      int64_t starts[kMostPixelVectors];
      taken = vectors - v;
      taken = taken >= kMostPixelVectors && rows <= kFewChannels ? kMostPixelVectors
              : taken >= kPixelVectors                           ? kPixelVectors
                                                                 : 1;
      for (int64_t j = 0; j < taken; ++j)
        starts[j] = (v + j) / in_row * plan_.shape.columns + (v + j) % in_row * n;
      const auto kernel = terms_.channel_kernel(rows, taken);
      for_each_chain(depth, [&](int64_t begin, int64_t terms) {
        kernel(terms, packed_input, starts, offsets + begin, weight + begin * rows, to + v * n, ld,
               block + begin > 0);
      });
    }
  }

  DirectPlan<T> plan_;
  Terms terms_;
};

}  // namespace pyops::cpu
