// The depthwise correlation. A tile's sums are [row][column][channel] of some channels, those of all phases
// where they belong in the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/depthwise/channels.h"
#include "cpu/conv2d/depthwise/microkernels.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

template <class T>
class DepthwiseCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit DepthwiseCorrelation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        groups_(problem.weights.groups),
        h_(problem.h.front()),
        w_(problem.w.front()),
        all_h_(math::all_targets(problem.h)),
        all_w_(math::all_targets(problem.w)),
        together_(problem.x.channels_are_neighbours() || problem.epilogue->wants_neighbouring_channels()
                      ? kVectorsTogether
                      : 1),
        channels_(groups_, std::clamp(groups_ * problem.images / kTasks, together_ * n, kLine)),
        tiles_(problem.epilogue->cut(h_.count, w_.count, std::max(w_.count, kTilePixels / pixels_of_output()),
                                     1)) {}

  void run() const {
    if (problem_.images == 0 || problem_.pixels() == 0) return;
    Scratch scratch;
    Acc* const weights = scratch.take<Acc>(problem_.weights.taps() * line());
    read_taps(as_outputs(problem_.weights), {0, 0, 1, 0, groups_}, line(), weights);
    const int64_t tiles = tiles_.rows.parts() * tiles_.columns.parts();
    const double work = 4 * double(problem_.images) * double(groups_) * double(problem_.pixels()) *
                        double(problem_.weights.taps());
    parallel_claim(problem_.images * channels_.parts() * tiles, work, [&](int64_t i) {
      form_tile(i / tiles / channels_.parts(), i / tiles % channels_.parts(), i % tiles, weights);
    });
  }

 private:
  static constexpr int64_t kLine = 64 * n;  // channels of a task, at most,
  static constexpr int64_t kTasks = 32;     // if there are as many tasks
  // Of a tile's input or sums, of all channels that are packed together: they stay in the L2 cache.
  static constexpr int64_t kTilePixels = 1 << 11;

  // One phase of the output.
  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    DepthwiseTaps taps;
    std::vector<int64_t> offsets;  // of the runs, in the packed part
  };

  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(int64_t input_size, int64_t taps, int64_t sums_size)
        : input(memory.take<Acc>(input_size)),
          weights(memory.take<Acc>(taps * n)),
          sums(memory.take<Acc>(sums_size + n * n)) {}  // transposed in squares
    Scratch memory;
    Acc* input;
    Acc* weights;  // of a phase, in the order of its runs
    Acc* sums;
  };

  // Of a tile, its input's or its sums', for each output of the first phase.
  int64_t pixels_of_output() const {
    return together_ * std::max(h_.target_step * w_.target_step, h_.source_step * w_.source_step);
  }
  // Channels that a tap has room for.
  int64_t line() const { return round_up(groups_, n); }

  void form_tile(int64_t image, int64_t block, int64_t index, const Acc* weights) const {
    const int64_t row_tile = index / tiles_.columns.parts(), column_tile = index % tiles_.columns.parts();
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const ConvTile out = of_all_phases(tile, h_, all_h_, w_, all_w_);
    const PackedPart part(h_, w_, tile);
    const std::vector<Phase> phases = phases_of(part);
    const int64_t first = channels_.begin(block), end = first + channels_.size(block);
    const int64_t width = n * std::min(together_, ceil_div(end - first, n)),
                  plane = part.template plane<Acc>();
    const TileScratch scratch(width / n * plane, problem_.weights.taps(), out.rows * out.columns * width);
    std::fill_n(scratch.input, width / n * plane, Acc(0));
    for (int64_t channel = first; channel < end; channel += width) {
      const int64_t some = std::min(width, end - channel);
      pack_channels(problem_.x, image, channel, some, part, scratch.input);
      for (int64_t c = 0; c < some; c += n) {
        for (const Phase& phase : phases) {
          copy_weights(phase.taps, weights + channel + c, scratch.weights);
          form_phase(phase, part, tile, out, scratch.weights, scratch.input + c / n * plane, width,
                     scratch.sums + c);
        }
      }
      problem_.epilogue->take(image, channel, some, all_h_, all_w_, out,
                              TileSums<Acc>{scratch.sums, out.columns * width, width, 1});
    }
  }

  std::vector<Phase> phases_of(const PackedPart& part) const {
    std::vector<Phase> phases;
    for (const math::CorrelationAxis& h : problem_.h) {
      for (const math::CorrelationAxis& w : problem_.w) {
        Phase phase{&h, &w, DepthwiseTaps(h, w, part.columns, problem_.weights.columns), {}};
        for (const int64_t offset : phase.taps.offsets()) phase.offsets.push_back(offset * n);
        phases.push_back(std::move(phase));
      }
    }
    return phases;
  }

  // A vector of channels, in the order of the runs.
  void copy_weights(const DepthwiseTaps& taps, const Acc* weights, Acc* to) const {
    for (const int64_t tap : taps.taps()) {
      store(to, load<Acc>(weights + tap * line()));
      to += n;
    }
  }

  // A vector of channels of one phase; pixels of the sums are `width` apart.
  void form_phase(const Phase& phase, const PackedPart& part, const ConvTile& tile, const ConvTile& out,
                  const Acc* weights, const Acc* input, int64_t width, Acc* sums) const {
    const math::CorrelationAxis &h = *phase.h, &w = *phase.w;
    const int64_t rows = std::min(tile.rows, h.count - tile.row);
    const int64_t columns = std::min(tile.columns, w.count - tile.column);
    const auto form_row = depthwise_kernel_of<Acc>(phase.taps.length(), w.source_step);
    const DepthwiseRuns<Acc> runs{phase.taps.count(), phase.offsets.data(), weights};
    for (int64_t row = 0; row < rows; ++row) {
      form_row(runs, w.source_step, columns, input + row * h.source_step * part.columns * n,
               sums + ((row * h.target_step + h.target_first) * out.columns + w.target_first) * width,
               w.target_step * width);
    }
  }

  const CorrelationProblem<T>& problem_;
  int64_t groups_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  math::CorrelationAxis all_h_;  // the outputs of all phases
  math::CorrelationAxis all_w_;
  int64_t together_;  // vectors of channels
  VectorSplit<Acc> channels_;
  typename TileEpilogue<T>::Tiles tiles_;
};

}  // namespace pyops::cpu
