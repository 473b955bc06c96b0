// The gradients of a depthwise convolution's weight and bias. Each channel's are sums over its pixels alone:
// those of up to nine taps stay in registers while a tile's pixels (channels.h) pass by.
//
// Sums are formed in chains, added up over an image and then over a chunk of images; chunks are merged in
// order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/depthwise/channels.h"
#include "cpu/conv2d/depthwise/microkernels.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

template <class T>
class DepthwiseWeightGradient {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int64_t n = V::kLanes;

  explicit DepthwiseWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        groups_(problem.weights.groups),
        taps_(problem.weights.taps()),
        grad_h_(identity_axis(problem.h.count)),
        grad_w_(identity_axis(problem.w.count)),
        together_(problem.x.channels_are_neighbours() || problem.grad.channels_are_neighbours()
                      ? kVectorsTogether
                      : 1),
        channels_(groups_, kLine),
        chunks_(problem.images,
                std::max<int64_t>(1, std::min(problem.images, ceil_div(kUnits, channels_.parts())))),
        row_tiles_(problem.h.count,
                   std::clamp<int64_t>(together_ * source_pixels() / kPixels, 1, problem.h.count)) {}

  void run() const {
    Scratch scratch;
    Acc* const partial = scratch.take<Acc>(chunks_.parts * chunk_size());
    const double work =
        4 * double(problem_.images) * double(groups_) * double(problem_.pixels()) * double(taps_);
    parallel_claim(channels_.parts() * chunks_.parts, work,
                   [&](int64_t i) { sum_unit(i % channels_.parts(), i / channels_.parts(), partial); });
    merge(partial);
  }

 private:
  static constexpr int64_t kLine = 8 * n;      // channels of a unit
  static constexpr int64_t kPixels = 1 << 10;  // of a tile's input or gradient
  static constexpr int64_t kUnits = 32;        // of work

  // A tile as it is packed, some channels at a time.
  struct PackedTile {
    PackedTile(const DepthwiseWeightGradient& of, const ConvTile& tile_)
        : tile(tile_),
          input(of.problem_.h, of.problem_.w, tile),
          grad(of.grad_h_, of.grad_w_, tile),
          taps(of.problem_.h, of.problem_.w, input.columns, of.problem_.weights.columns) {
      for (const int64_t run : taps.offsets()) {
        for (int64_t i = 0; i < taps.length(); ++i) offsets.push_back((run + i) * n);
      }
    }
    ConvTile tile;
    PackedPart input;
    PackedPart grad;
    DepthwiseTaps taps;
    std::vector<int64_t> offsets;  // of the taps, in the packed input
  };

  // A thread's memory for a unit of work.
  struct UnitScratch {
    UnitScratch(int64_t image_sums_size, int64_t input_size, int64_t grad_size)
        : image_sums(memory.take<Acc>(image_sums_size)),
          input(memory.take<Acc>(input_size)),
          grad(memory.take<Acc>(grad_size)) {}
    Scratch memory;
    Acc* image_sums;  // as a chunk's, some channels of them
    Acc* input;
    Acc* grad;
  };

  int64_t source_pixels() const {
    return problem_.pixels() * problem_.h.source_step * problem_.w.source_step;
  }
  // A chunk's sums: [tap, then bias][channel].
  int64_t line() const { return round_up(groups_, n); }
  int64_t chunk_size() const { return (taps_ + 1) * line(); }

  void sum_unit(int64_t block, int64_t chunk, Acc* partial) const {
    const int64_t channel = channels_.begin(block), channels = channels_.size(block);
    std::vector<PackedTile> tiles;
    int64_t input_size = 0, grad_size = 0;
    const int64_t vectors = std::min(together_, ceil_div(channels, n));
    for (int64_t i = 0; i < row_tiles_.parts; ++i) {
      tiles.emplace_back(*this, ConvTile{row_tiles_.begin(i), row_tiles_.size(i), 0, problem_.w.count});
      input_size = std::max(input_size, vectors * tiles.back().input.template plane<Acc>());
      grad_size = std::max(grad_size, vectors * tiles.back().grad.template plane<Acc>());
    }
    const UnitScratch scratch(chunk_size(), input_size, grad_size);
    Acc* const sums = partial + chunk * chunk_size();
    const auto clear = [&](Acc* at) {
      for (int64_t t = 0; t <= taps_; ++t)
        std::fill_n(at + t * line() + channel, round_up(channels, n), Acc(0));
    };
    clear(sums);
    for (int64_t i = 0; i < chunks_.size(chunk); ++i) {
      clear(scratch.image_sums);
      for (const PackedTile& tile : tiles)
        add_tile(tile, chunks_.begin(chunk) + i, channel, channels, scratch);
      for (int64_t t = 0; t <= taps_; ++t) {
        for (int64_t c = channel; c < channel + channels; c += n) {
          Acc* const to = sums + t * line() + c;
          store(to, load<Acc>(to) + load<Acc>(scratch.image_sums + t * line() + c));
        }
      }
    }
  }

  void add_tile(const PackedTile& tile, int64_t image, int64_t channel, int64_t channels,
                const UnitScratch& scratch) const {
    const int64_t width = n * std::min(together_, ceil_div(channels, n));
    const int64_t input_plane = tile.input.template plane<Acc>(), end = channel + channels;
    std::fill_n(scratch.input, width / n * input_plane, Acc(0));
    for (int64_t first = channel; first < end; first += width) {
      const int64_t some = std::min(width, end - first);
      pack_channels(problem_.grad, image, first, some, tile.grad, scratch.grad);
      if (problem_.weight != nullptr)
        pack_channels(problem_.x, image, first, some, tile.input, scratch.input);
      for (int64_t c = 0; c < some; c += n) {
        const Acc* const grad = scratch.grad + c / n * tile.grad.template plane<Acc>();
        Acc* const sums = scratch.image_sums + first + c;
        if (problem_.bias != nullptr) add_to_bias(tile, grad, sums + taps_ * line());
        if (problem_.weight != nullptr) add_products(tile, scratch.input + c / n * input_plane, grad, sums);
      }
    }
  }

  static void add_to_bias(const PackedTile& tile, const Acc* grad, Acc* sums) {
    for (int64_t row = 0; row < tile.grad.rows; ++row) {
      V total = Acc(0);
      for (int64_t i = 0; i < tile.grad.columns; ++i, grad += n) total += load<Acc>(grad);
      store(sums, load<Acc>(sums) + total);
    }
  }

  void add_products(const PackedTile& tile, const Acc* input, const Acc* grad, Acc* sums) const {
    const int64_t rows = tile.tile.rows, columns = tile.tile.columns;
    const int64_t row_step = problem_.h.source_step * tile.input.columns * n;
    const EvenSplit chains(rows, std::min(rows, ceil_div(rows * columns, kChainedTerms)));
    for (int64_t chain = 0; chain < chains.parts; ++chain) {
      const int64_t row = chains.begin(chain);
      for (int64_t t = 0; t < taps_;) {
        const auto add = [&](auto count) {
          constexpr int some = decltype(count)::value;
          Acc* to[some];
          for (int i = 0; i < some; ++i) to[i] = sums + tile.taps.taps()[t + i] * line();
          depthwise_gradient<some, Acc>(chains.size(chain), columns, input + row * row_step, row_step,
                                        problem_.w.source_step * n, tile.offsets.data() + t,
                                        grad + row * columns * n, to);
          t += some;
        };
        const int64_t rest = taps_ - t;
        rest >= 9   ? add(std::integral_constant<int, 9>{})
        : rest >= 6 ? add(std::integral_constant<int, 6>{})
        : rest >= 4 ? add(std::integral_constant<int, 4>{})
        : rest >= 2 ? add(std::integral_constant<int, 2>{})
                    : add(std::integral_constant<int, 1>{});
      }
    }
  }

  void merge(Acc* sums) const {
    for (int64_t chunk = 1; chunk < chunks_.parts; ++chunk) {
      for (int64_t k = 0; k < chunk_size(); k += n)
        store(sums + k, load<Acc>(sums + k) + load<Acc>(sums + chunk * chunk_size() + k));
    }
    if (problem_.weight != nullptr)
      write_taps(as_outputs(problem_.weights), {0, 0, 1, 0, groups_}, line(), sums, problem_.weight);
    for (int64_t g = 0; problem_.bias != nullptr && g < groups_; ++g)
      problem_.bias[g] = from_acc<T>(sums[taps_ * line() + g]);
  }

  const WeightGradientProblem<T>& problem_;
  int64_t groups_;
  int64_t taps_;
  math::CorrelationAxis grad_h_;  // the gradient's pixels as they lie
  math::CorrelationAxis grad_w_;
  int64_t together_;  // vectors of channels
  VectorSplit<Acc> channels_;
  EvenSplit chunks_;  // of images
  EvenSplit row_tiles_;
};

}  // namespace pyops::cpu
