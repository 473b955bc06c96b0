// The direct correlation: every product is formed, tile by tile. It serves every problem, and the others'
// speed is measured against it.
//
//   DirectPlan         how a problem is cut (plan.h)
//   DirectCorrelation  hands tiles to threads; packs a tile's input and visits its micro-tiles
//   SingleTerms        what the terms of a sum are and which micro-kernels multiply them: one element of the
//                      input and one weight each. bf16/bf16.cpp has another of its kind.
//
// What becomes of a tile's sums is the epilogue's business (epilogue.h). Every output is summed by one thread
// in an order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/direct/plan.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/packed_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/conv2d/winograd_4x4/microkernels.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// A term is a product of one element of the input and one weight.
template <class T>
class SingleTerms {
 public:
  using Acc = acc_t<T>;
  using Plan = DirectPlan<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // Terms of a group for each tap.
  static int64_t inputs(const ConvWeights<T>& weights) { return weights.inputs; }

  explicit SingleTerms(const Plan& plan) : plan_(plan) {
    const ImageSource<T>& x = plan.problem.x;
    if constexpr (std::is_same_v<Acc, float>) {
      if (!plan.is_pointwise() || !plan.keeps_channels_together()) return;
      stride_ = odd_stride(plan.blocks.size(0));
      in_place_ = std::is_same_v<T, float> && x.relu_output == nullptr;
    }
  }

  std::vector<int64_t> offsets(const typename Plan::Phase& phase) const {
    return plan_.shape.offsets(*phase.h, *phase.w, plan_.blocks.size(0));
  }

  // Channels of the packed input.
  int64_t packed_channels() const {
    return stride_ > 1 ? stride_ : plan_.groups_in_tile * plan_.blocks.size(0);
  }
  InputStrides strides() const {
    const ImageSource<T>& x = plan_.problem.x;
    if (in_place_) return {plan_.h.source_step * x.row_stride, plan_.w.source_step * x.column_stride, true};
    return {plan_.shape.columns * stride_, stride_, false};
  }
  // A tile's input in place.
  const Acc* place(int64_t image, int64_t channel, const ConvTile& tile) const {
    return reinterpret_cast<const Acc*>(plan_.first_element(image, channel, tile));
  }

  void pack_tile(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
                 Acc* packed_input) const {
    const ImageSource<T>& x = plan_.problem.x;
    if (stride_ == 1) {
      pack_input(x, image, channel, channels, plan_.h, plan_.w, plan_.shape, tile, packed_input);
      return;
    }
    const int64_t first = plan_.first_element(image, channel, tile) - x.values;
    for (int64_t i = 0; i < tile.rows * tile.columns; ++i, packed_input += stride_) {
      const int64_t at = first + i / tile.columns * plan_.h.source_step * x.row_stride +
                         i % tile.columns * plan_.w.source_step * x.column_stride;
      for_each_vector<Acc>(channels,
                           [&](int64_t c, int lanes) { store(packed_input + c, x.vector(at + c, lanes)); });
    }
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
  void multiply_pixels(int64_t pixels, int64_t vectors, int64_t depth, const Acc* x, const int64_t* offsets,
                       const Acc* weight, Acc* c, int64_t ldc, bool accumulate) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (stride_ > 1) {  // of a point each term is a channel
        const auto kernel = rows_kernel_of(pixels, vectors);
        const int64_t stride = strides().pixel;
        for_each_chain(depth, [&](int64_t begin, int64_t terms) {
          kernel(terms, x + begin, stride, weight + begin * vectors * n, c, ldc, accumulate || begin > 0);
        });
        return;
      }
    }
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
  int64_t stride_ = 1;  // of pixels in the packed input: where it is not 1, channels are neighbours there
  bool in_place_ = false;
};

template <class T, class Terms>
class DirectCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit DirectCorrelation(const CorrelationProblem<T>& problem)
      : plan_(problem, Terms::inputs(problem.weights)),
        all_h_(math::all_targets(problem.h)),
        all_w_(math::all_targets(problem.w)),
        terms_(plan_) {
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
    const TileImages images{plan_.batches.begin(batch), plan_.batches.size(batch)};
    const int64_t groups = std::min(plan_.groups_in_tile, plan_.groups - first_group);
    const ConvTile tile = tile_at(row_tile, column_tile);
    const ConvTile out = of_all_phases(tile, plan_.h, all_h_, plan_.w, all_w_);
    const SumsLayout<T> layout(plan_, tile, out, range);
    const bool in_place = terms_.strides().in_place;
    const int64_t image_input = in_place ? 0 : terms_.packed_channels() * plan_.shape.channel();
    const TileScratch scratch(images.count * image_input, images.count * layout.image);
    for (int64_t block = 0; block < plan_.blocks.parts; ++block) {
      const int64_t block_channels = plan_.blocks.size(block);
      const int64_t channel = first_group * plan_.inputs + plan_.blocks.begin(block);
      for (int64_t i = 0; !in_place && i < images.count; ++i) {
        terms_.pack_tile(images.first + i, channel, groups * block_channels, tile,
                         scratch.packed_input + i * image_input);
      }
      for (size_t p = 0; p < plan_.phases.size(); ++p) {
        const Phase& phase = plan_.phases[p];
        const ConvTile part = phase.part(tile);
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t panel = range.begin; panel < range.end; ++panel) {
            const Acc* const weight = packed_weights + plan_.packed(phase, first_group + g, block, panel);
            for (int64_t i = 0; i < images.count; ++i) {
              const Acc* const from = in_place ? terms_.place(images.first + i, channel, tile)
                                               : scratch.packed_input + i * image_input +
                                                     g * block_channels * plan_.shape.channel();
              Acc* const to =
                  scratch.sums + i * layout.image + layout.of_phase(plan_, p, range) + g * layout.group;
              layout.along_channels ? sweep_pixels(phase, part, layout, range, from, weight, panel, block, to)
                                    : sweep_channels(phase, part, layout, from, weight, panel, block, to);
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < images.count; ++i) {
      hand_over(images.first + i, first_group, groups, range, tile, out, layout,
                scratch.sums + i * layout.image);
    }
  }

  // Gives the epilogue the sums of some groups of an image.
  void hand_over(int64_t image, int64_t first_group, int64_t groups, const PanelRange& range,
                 const ConvTile& tile, const ConvTile& out, const SumsLayout<T>& layout, Acc* sums) const {
    const TileEpilogue<T>& epilogue = *plan_.problem.epilogue;
    if (!layout.along_channels) {
      for (const Phase& phase : plan_.phases) {
        epilogue.take(image, first_group * plan_.outputs, groups * plan_.outputs, *phase.h, *phase.w,
                      phase.part(tile), TileSums<Acc>{sums, layout.line, 1, layout.plane});
        sums += layout.phase;
      }
      return;
    }
    for (int64_t g = 0; g < groups; ++g) {
      epilogue.take(image, (first_group + g) * plan_.outputs + range.first, range.count, all_h_, all_w_, out,
                    TileSums<Acc>{sums + g * layout.group, layout.line, range.padded, 1});
    }
  }

  void sweep_pixels(const Phase& phase, const ConvTile& tile, const SumsLayout<T>& layout,
                    const PanelRange& range, const Acc* packed_input, const Acc* weight, int64_t panel,
                    int64_t block, Acc* sums) const {
    if (tile.columns == 0) return;
    const int64_t depth = plan_.blocks.size(block) * phase.taps;
    const int64_t ld = phase.w->target_step * range.padded, line = phase.h->target_step * layout.line;
    const int64_t vectors = plan_.panels.width(panel) / n;
    const InputStrides strides = terms_.strides();
    const EvenSplit strips(tile.columns, ceil_div(tile.columns, kPixels));
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t column = strips.begin(strip);
        terms_.multiply_pixels(
            strips.size(strip), vectors, depth, packed_input + row * strides.row + column * strides.pixel,
            phase.offsets.data(), weight,
            sums + row * line + column * ld + plan_.panels.begin(panel) - range.first, ld, block > 0);
      }
    }
  }

  // Vectors of pixels are numbered through the tile's rows and taken several at a time.
  void sweep_channels(const Phase& phase, const ConvTile& tile, const SumsLayout<T>& layout,
                      const Acc* packed_input, const Acc* weight, int64_t panel, int64_t block,
                      Acc* sums) const {
    const int64_t depth = plan_.blocks.size(block) * phase.taps, rows = plan_.panels.width(panel);
    const int64_t in_row = layout.line / n, vectors = tile.rows * in_row, ld = layout.plane;
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
  math::CorrelationAxis all_h_;  // the outputs of all phases
  math::CorrelationAxis all_w_;
  Terms terms_;
};

}  // namespace pyops::cpu
