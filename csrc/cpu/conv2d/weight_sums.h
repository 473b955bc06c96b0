// The sums of the gradients of weight and bias, over the pixels of all images.
//
// The pixels are cut into tiles and those into chunks, by the problem alone. Each chunk's sums are kept
// apart, in float32 (float64 for double), and merged in order, so the result has the same bits for any number
// of threads. A unit of work is a chunk, a block of input channels and a group or, where groups are small,
// several. A tile has the pixels of several images where images are small.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

template <class T>
class WeightSums {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  struct Unit {
    int64_t chunk;
    int64_t first_group;
    int64_t groups;
    int64_t block;
    bool weight;  // which of the gradients are wanted
    bool bias;
  };

  // How pixels are cut. A tile has `side` outputs for each of its rows and columns: 1, or 2 of a Winograd
  // tile.
  struct Tiles {
    EvenSplit rows;
    EvenSplit columns;
    int64_t side;
    int64_t most_images;  // in a tile that has all the pixels of an image
    int64_t chunk_tiles;  // of a chunk, at least
    int64_t groups_in_tile;
  };

  // Of each input channel there are `terms_` sums.
  WeightSums(const WeightGradientProblem<T>& problem_, int64_t terms_, int64_t block_count, int64_t columns)
      : problem(problem_),
        weights(problem_.weights),
        terms(terms_),
        blocks(weights.inputs, std::min(weights.inputs, block_count)),
        panels(weights.outputs, columns) {}

  void cut(const Tiles& tiles_) {
    tiles = tiles_;
    const bool shares = tiles.rows.parts * tiles.columns.parts == 1;
    constexpr int64_t kUnits = 8;  // that must remain
    const int64_t most = std::min(tiles.most_images, problem.images * blocks.parts * weights.groups / kUnits);
    batches = EvenSplit(problem.images,
                        std::max<int64_t>(1, ceil_div(problem.images, shares && most >= 2 ? most : 1)));
    count_ = problem.images == 0 ? 0 : batches.parts * tiles.rows.parts * tiles.columns.parts;
    choose_chunks();
  }

  // Forms the sums by sum(unit) and writes the gradients, either of which may be null. A tile takes about
  // `tile_work` multiplications for each sum. order(sums, line, taps) brings an input channel's sums
  // [term][line] into the order [tap][line] of the weight; with Order::kWholeVectors it also reads the
  // padding behind the output channels. It says whether all is finite, and so does the result.
  template <class Sum, class Order>
  bool run(T* weight, T* bias, double tile_work, const Sum& sum, const Order& order) {
    Scratch scratch;
    partial_ = scratch.take<Acc>(chunks.parts * chunk_size() + n);
    const int64_t channel_blocks = weight ? blocks.parts : 1, group_count = group_blocks();
    const double work = double(count_) * tile_work * double(weights.groups) * double(group_size());
    if (count_ > 0) {
      parallel_claim(chunks.parts * group_count * channel_blocks, work, [&](int64_t i) {
        const int64_t block = i % channel_blocks, rest = i / channel_blocks;
        const int64_t first_group = rest % group_count * tiles.groups_in_tile;
        sum(Unit{rest / group_count, first_group,
                 std::min(tiles.groups_in_tile, weights.groups - first_group), block, weight != nullptr,
                 bias != nullptr && block == 0});
      });
    }
    if (bias) merge_bias(bias);
    return weight == nullptr || merge_weight(weight, order);
  }

  // Calls f(images, tile, accumulate) for the tiles of a chunk, where `accumulate` is false for the first.
  template <class F>
  void for_each_tile(int64_t chunk, const F& f) const {
    const int64_t first = chunks.begin(chunk);
    for (int64_t i = first; i < first + chunks.size(chunk); ++i) {
      const int64_t column_tile = i % tiles.columns.parts, rest = i / tiles.columns.parts;
      const int64_t row_tile = rest % tiles.rows.parts, batch = rest / tiles.rows.parts;
      f(TileImages{batches.begin(batch), batches.size(batch)}, tile_at(row_tile, column_tile), i > first);
    }
  }

  // A chunk's sums: [group][input channel][term][padded output channel], then [group][padded] for the bias.
  Acc* weight(int64_t chunk, int64_t group) const {
    return partial_ + chunk * chunk_size() + group * group_size();
  }
  Acc* bias(int64_t chunk, int64_t group) const {
    return partial_ + chunk * chunk_size() + weights.groups * group_size() + group * panels.padded();
  }

  const WeightGradientProblem<T>& problem;
  const ConvWeights<T>& weights;
  int64_t terms;
  EvenSplit blocks;  // of input channels
  ChannelPanels<Acc> panels;
  Tiles tiles{{1, 1}, {1, 1}, 1, 1, 1, 1};
  EvenSplit batches{1, 1};  // of images
  EvenSplit chunks{1, 1};   // of tiles

 private:
  int64_t group_blocks() const { return ceil_div(weights.groups, tiles.groups_in_tile); }
  int64_t group_size() const { return weights.inputs * terms * panels.padded(); }
  int64_t chunk_size() const { return round_up(weights.groups * (group_size() + panels.padded()), n); }

  // Enough units for many threads, as long as the chunks' sums stay small and soon merged.
  void choose_chunks() {
    constexpr int64_t kUnits = 32, kMostBytes = int64_t{32} << 20;
    const int64_t wanted = ceil_div(kUnits, group_blocks() * blocks.parts);
    const int64_t affordable = kMostBytes / (chunk_size() * static_cast<int64_t>(sizeof(Acc)));
    const int64_t useful = count_ / tiles.chunk_tiles;
    chunks = EvenSplit(count_, std::max<int64_t>(1, std::min({wanted, affordable, useful})));
  }

  ConvTile tile_at(int64_t row_tile, int64_t column_tile) const {
    const int64_t row = tiles.side * tiles.rows.begin(row_tile);
    const int64_t column = tiles.side * tiles.columns.begin(column_tile);
    return {row, std::min(tiles.side * tiles.rows.size(row_tile), problem.h.count - row), column,
            std::min(tiles.side * tiles.columns.size(column_tile), problem.w.count - column)};
  }

  // Adds the later chunks' sums to the first's, at the `count` elements from `at`.
  void merge_chunks(const Acc* first, int64_t count, Acc* to) const {
    for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
      Vec<Acc> total = count_ > 0 ? load_lanes(first + i, lanes) : Vec<Acc>(Acc(0));
      for (int64_t chunk = 1; chunk < chunks.parts; ++chunk) {
        total += load_lanes(first + chunk * chunk_size() + i, lanes);
      }
      store_lanes(to + i, total, lanes);
    });
  }

  template <class Order>
  bool merge_weight(T* weight, const Order& order) const {
    constexpr int64_t kMergedChannels = 4 * n;  // output channels that are merged and written in one go
    const int64_t most = channels_in_block(weights.taps()), input_blocks = ceil_div(weights.inputs, most);
    const int64_t output_blocks = ceil_div(weights.outputs, kMergedChannels);
    const int64_t in_group = input_blocks * output_blocks;
    const int64_t cost = most * terms * kMergedChannels * (chunks.parts + 4);
    std::atomic<bool> finite{true};
    parallel_for(weights.groups * in_group, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t channel = task % in_group / output_blocks * most;
        const int64_t first = task % output_blocks * kMergedChannels;
        const TapRange range{task / in_group, channel, std::min(most, weights.inputs - channel), first,
                             std::min(kMergedChannels, weights.outputs - first)};
        if (!merge_block(range, order, weight)) finite.store(false, std::memory_order_relaxed);
      }
    });
    return finite.load();
  }

  template <class Order>
  bool merge_block(const TapRange& range, const Order& order, T* weight_gradient) const {
    const int64_t ld = panels.padded(), taps = weights.taps(), line = round_up(range.outputs, n);
    Scratch scratch;
    Acc* const merged = scratch.take<Acc>(range.inputs * terms * line);
    Acc* const ordered = scratch.take<Acc>(range.inputs * taps * line);
    const Acc* const from = weight(0, range.group) + range.first_input * terms * ld + range.first_output;
    const int64_t channels = Order::kWholeVectors ? line : range.outputs;
    for (int64_t row = 0; row < range.inputs * terms; ++row)
      merge_chunks(from + row * ld, channels, merged + row * line);
    bool finite = true;
    for (int64_t c = 0; c < range.inputs; ++c)
      finite &= order(merged + c * terms * line, line, ordered + c * taps * line);
    write_taps(weights, range, line, ordered, weight_gradient);
    return finite;
  }

  void merge_bias(T* to) const {
    Scratch scratch;
    Acc* const sums = scratch.take<Acc>(panels.padded() + n);
    for (int64_t group = 0; group < weights.groups; ++group) {
      merge_chunks(bias(0, group), weights.outputs, sums);
      for (int64_t k = 0; k < weights.outputs; ++k) to[group * weights.outputs + k] = from_acc<T>(sums[k]);
    }
  }

  int64_t count_ = 0;  // tiles
  Acc* partial_ = nullptr;
};

}  // namespace pyops::cpu
