// The forward pass and the input gradient by tiles (plan.h).
//
// As the direct algorithm, tile by tile: packs the input of a tile of outputs, multiplies, hands the sums to
// the epilogue. The weights are packed once per call, in the order in which they are used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/amx/microkernels.h"
#include "cpu/conv2d/amx/pack.h"
#include "cpu/conv2d/amx/plan.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

#if defined(__AVX512F__)

namespace pyops::cpu::amx {

template <class Tiles>
class Correlation {
 public:
  explicit Correlation(const CorrelationProblem<bfloat16>& problem) : plan_(problem) {}

  void run() {
    const CorrelationProblem<bfloat16>& p = plan_.problem;
    if (p.images == 0 || p.pixels() == 0) return;
    plan_.choose_tiles();
    Scratch scratch;
    float* const weights = scratch.take<float>(plan_.groups * plan_.group_tiles * kTileFloats);
    pack_weights(weights);
    const double work = double(p.images) * double(p.pixels()) * double(plan_.groups * plan_.group_tiles);
    parallel_claim(plan_.tile_count(), kProductWork * work,
                   [&](int64_t tile) { multiply_tile(tile, weights); });
  }

 private:
  using Phase = CorrelationPlan::Phase;
  using Layout = CorrelationPlan::Layout;
  static constexpr int64_t kTileFloats = kTileBytes / static_cast<int64_t>(sizeof(float));
  // A product of tiles takes as long as so many multiplications of float32 for each of its pixels.
  static constexpr double kProductWork = 32;

  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(const CorrelationPlan& plan, int64_t images)
        : input(memory.take<char>(images * plan.image_bytes() + plan.slack_bytes())),
          folded(memory.take<char>(images * plan.folded_bytes())),
          sums(memory.take<float>(images * plan.image_sums() + kTileFloats)) {
    }  // transposition reads past it
    Scratch memory;
    char* input;
    char* folded;
    float* sums;
  };

  void pack_weights(float* packed) const {
    const int64_t panels = plan_.panels();
    const int64_t blocks = plan_.layout == Layout::kFolded ? 1 : plan_.channel_blocks();
    const int64_t cost = plan_.group_tiles * kTileFloats / (panels * blocks);
    parallel_for(plan_.groups * panels * blocks, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        pack_weights(task / blocks / panels, task / blocks % panels, task % blocks, packed);
    });
  }

  // Those of one group, 16 outputs and a block of 32 input channels or, where taps are folded, of all.
  void pack_weights(int64_t group, int64_t panel, int64_t block, float* packed) const {
    const ConvWeights<bfloat16>& weights = plan_.problem.weights;
    const bool folded = plan_.layout == Layout::kFolded;
    const int64_t first = panel * kTileRows, count = std::min<int64_t>(kTileRows, plan_.outputs - first);
    const int64_t channel = block * kTileDepth, taps = weights.taps();
    const int64_t channels = folded ? plan_.inputs : std::min(kTileDepth, plan_.inputs - channel);
    // Panels by twos lie side by side.
    const int64_t wide = std::min<int64_t>(2, plan_.panels() - panel / 2 * 2);
    Scratch scratch;
    float* const read = scratch.take<float>(channels * taps * kTileRows);
    read_taps(weights, {group, channel, channels, first, count}, kTileRows, read);
    for (const Phase& phase : plan_.phases) {
      float* const to =
          packed +
          (group * plan_.group_tiles + phase.packed + panel / 2 * 2 * phase.steps + panel % 2) * kTileFloats;
      const int64_t columns = static_cast<int64_t>(phase.w->taps.size());
      const auto row = [&](int64_t c, int64_t visited) {
        const int64_t r = phase.h->taps[visited / columns].kernel,
                      s = phase.w->taps[visited % columns].kernel;
        return read + (c * taps + r * weights.columns + s) * kTileRows;
      };
      const int64_t steps = folded ? phase.steps : phase.taps;
      for (int64_t step = 0; step < steps; ++step) {
        const auto term = [&](int64_t i) -> const float* {
          if (!folded) return i < channels ? row(i, step) : nullptr;
          const int64_t at = step * kTileDepth + i;
          return at < channels * phase.taps ? row(at / phase.taps, at % phase.taps) : nullptr;
        };
        pack_tile_of_weights(term, plan_.layout != Layout::kPixels,
                             to + (block * phase.taps + step) * wide * kTileFloats);
      }
    }
  }

  void multiply_tile(int64_t index, const float* packed_weights) const {
    const auto &rows = plan_.tiles.rows, &columns = plan_.tiles.columns;
    const int64_t column_tile = index % columns.parts(), row_tile = index / columns.parts() % rows.parts();
    index /= columns.parts() * rows.parts();
    const int64_t group = index % plan_.groups, batch = index / plan_.groups;
    const int64_t first_image = plan_.batches.begin(batch), images = plan_.batches.size(batch);
    const ConvTile tile{rows.begin(row_tile),
                        rows.size(row_tile),
                        columns.begin(column_tile),
                        columns.size(column_tile),
                        row_tile,
                        column_tile};
    const TileScratch scratch(plan_, images);
    for (int64_t i = 0; i < images; ++i)
      pack_image(first_image + i, group, tile, scratch.input + i * plan_.image_bytes());
    typename Tiles::Scope scope;
    for (const Phase& phase : plan_.phases) {
      const ConvTile part = phase.part(tile);
      if (part.rows == 0 || part.columns == 0) continue;
      for (int64_t i = 0; plan_.layout == Layout::kFolded && i < images; ++i)
        fold(phase, part, scratch.input + i * plan_.image_bytes(), scratch.folded + i * plan_.folded_bytes());
      const float* const weights = packed_weights + (group * plan_.group_tiles + phase.packed) * kTileFloats;
      for (int64_t panel = 0; panel < plan_.panels(); panel += 2) {
        for (int64_t i = 0; i < images; ++i) {
          sweep(phase, part, input_of(scratch, first_image + i, i, group, tile),
                weights + panel * phase.steps * kTileFloats, panel, scratch.sums + i * plan_.image_sums());
        }
      }
      for (int64_t i = 0; i < images; ++i)
        hand_over(first_image + i, group, phase, part, scratch.sums + i * plan_.image_sums());
    }
  }

  // A tile's input, from which a phase's offsets count.
  const char* input_of(const TileScratch& scratch, int64_t image, int64_t i, int64_t group,
                       const ConvTile& tile) const {
    if (plan_.layout == Layout::kFolded) return scratch.folded + i * plan_.folded_bytes();
    if (!plan_.in_place) return scratch.input + i * plan_.image_bytes();
    const ImageSource<bfloat16>& x = plan_.problem.x;
    const int64_t row = plan_.h.source_index(tile.row, plan_.h.taps[0]);
    const int64_t column = plan_.w.source_index(tile.column, plan_.w.taps[0]);
    return reinterpret_cast<const char*>(x.values + image * x.image_stride + group * plan_.inputs +
                                         row * x.row_stride + column * x.column_stride);
  }

  void pack_image(int64_t image, int64_t group, const ConvTile& tile, char* packed) const {
    if (plan_.in_place) return;
    const int64_t channel = group * plan_.inputs;
    const ImageSource<bfloat16>& x = plan_.problem.x;
    const math::CorrelationAxis &h = plan_.h, &w = plan_.w;
    const PackedInputShape& shape = plan_.shape;
    float* const pairs = reinterpret_cast<float*>(packed);
    if (plan_.layout == Layout::kPixels) {
      bf16_pack::pack_channel_pairs_by_pixel(x, image, channel, plan_.inputs, h, w, shape, tile,
                                             plan_.pixel_pairs(), pairs);
    } else if (plan_.layout == Layout::kFolded) {
      bf16_pack::pack_singles(x, image, channel, plan_.inputs, h, w, shape, tile,
                              reinterpret_cast<bfloat16*>(packed));
    } else {
      bf16_pack::pack_channel_pairs(x, image, channel, plan_.inputs, h, w, shape, tile, pairs);
      const int64_t there = ceil_div(plan_.inputs, 2) * shape.channel();
      std::fill(pairs + there, pairs + plan_.channel_blocks() * kTileRows * shape.channel(), 0.0f);
    }
  }

  void fold(const Phase& phase, const ConvTile& part, const char* singles, char* folded) const {
    fold_pairs(reinterpret_cast<const bfloat16*>(singles), phase.terms,
               (part.rows - 1) * plan_.shape.columns + part.columns, phase.steps * kTileRows, plan_.fold_line,
               reinterpret_cast<float*>(folded));
  }

  // All pixels of a part and one or two panels of weights.
  void sweep(const Phase& phase, const ConvTile& part, const char* input, const float* weights, int64_t panel,
             float* sums) const {
    const bool pixels_are_rows = plan_.layout == Layout::kPixels;
    const int64_t wide = std::min<int64_t>(2, plan_.panels() - panel), plane = plan_.plane;
    const int64_t ld = pixels_are_rows ? plan_.padded_outputs() : plane;
    const int64_t pixel_step = pixels_are_rows ? plan_.pixel_bytes() : kPairBytes;
    const int64_t stride = pixels_are_rows                   ? plan_.pixel_bytes()
                           : plan_.layout == Layout::kFolded ? plan_.fold_line * kPairBytes
                                                             : plan_.shape.channel() * kPairBytes;
    const char* const tiles = reinterpret_cast<const char*>(weights);
    const TileOperand outputs{{tiles, tiles + kTileBytes},
                              kTileRowBytes,
                              (wide == 2 ? plan_.pair_offsets : plan_.weight_offsets).data(),
                              {0, pixels_are_rows ? kTileRows : kTileRows * plane}};
    float* const to = sums + panel * kTileRows * (pixels_are_rows ? 1 : plane);
    const PixelRuns runs(part.rows, part.columns, plan_.shape.columns);
    for (int64_t i = 0; i < runs.count(); i += 2) {
      const int64_t count = std::min<int64_t>(2, runs.count() - i);
      const int64_t begin = runs.begin(i), next = count == 2 ? runs.begin(i + 1) : begin;
      const int64_t place = pixels_are_rows ? ld : 1;
      const TileOperand pixels{{input + begin * pixel_step, input + next * pixel_step},
                               stride,
                               phase.offsets.data(),
                               {begin * place, next * place}};
      pixels_are_rows ? multiply_tiles<Tiles>(count, wide, phase.steps, pixels, outputs, to, ld, false)
                      : multiply_tiles<Tiles>(wide, count, phase.steps, outputs, pixels, to, ld, false);
    }
  }

  void hand_over(int64_t image, int64_t group, const Phase& phase, const ConvTile& part, float* sums) const {
    const int64_t line = plan_.shape.columns, padded = plan_.padded_outputs();
    const TileSums<float> tile = plan_.layout == Layout::kPixels
                                     ? TileSums<float>{sums, line * padded, padded, 1}
                                     : TileSums<float>{sums, line, 1, plan_.plane};
    plan_.problem.epilogue->take(image, group * plan_.outputs, plan_.outputs, *phase.h, *phase.w, part, tile);
  }

  CorrelationPlan plan_;
};

}  // namespace pyops::cpu::amx

#endif
