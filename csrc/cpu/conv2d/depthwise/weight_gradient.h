// The gradients of a depthwise convolution's weight and bias. Each channel's are sums over its pixels alone:
// those of up to nine taps stay in registers while a region's pixels (channels.h) pass by.
//
// Sums are formed in chains, added up over an image and then over a chunk of images; chunks are merged in
// order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/depthwise/channels.h"
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
        transposes_(!problem.x.channels_are_neighbours() || !problem.grad.channels_are_neighbours()),
        channels_(groups_, kLine),
        chunks_(problem.images,
                std::max<int64_t>(1, std::min(problem.images, ceil_div(kUnits, channels_.parts())))),
        row_tiles_(problem.h.count, std::clamp<int64_t>(problem.pixels() / kPixels, 1, problem.h.count)) {}

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
  static constexpr int64_t kPixels = 1 << 10;  // of a tile
  static constexpr int64_t kUnits = 32;        // of work

  // A chunk's sums: [tap, then bias][channel].
  int64_t line() const { return round_up(groups_, n); }
  int64_t chunk_size() const { return (taps_ + 1) * line(); }

  void sum_unit(int64_t block, int64_t chunk, Acc* partial) const {
    const int64_t channel = channels_.begin(block), channels = channels_.size(block);
    Scratch scratch;
    Acc* const image_sums = scratch.take<Acc>(chunk_size());  // as a chunk's, some channels of them
    Acc* const sums = partial + chunk * chunk_size();
    const auto clear = [&](Acc* at) {
      for (int64_t t = 0; t <= taps_; ++t)
        std::fill_n(at + t * line() + channel, round_up(channels, n), Acc(0));
    };
    clear(sums);
    std::vector<TapRegions> regions;
    for (int64_t i = 0; i < row_tiles_.parts; ++i) regions.push_back(regions_of(tile_at(i)));
    for (int64_t i = 0; i < chunks_.size(chunk); ++i) {
      clear(image_sums);
      add_image(chunks_.begin(chunk) + i, channel, channels, regions, image_sums);
      for (int64_t t = 0; t <= taps_; ++t) {
        for (int64_t c = channel; c < channel + channels; c += n) {
          Acc* const to = sums + t * line() + c;
          store(to, load<Acc>(to) + load<Acc>(image_sums + t * line() + c));
        }
      }
    }
  }

  ConvTile tile_at(int64_t index) const {
    return {row_tiles_.begin(index), row_tiles_.size(index), 0, problem_.w.count};
  }

  TapRegions regions_of(const ConvTile& tile) const {
    const InsideRange columns = source_range(problem_.w, 0, problem_.w.count);
    TapRegions regions(transposes_ ? (columns.end - columns.begin) * n : problem_.x.row_stride,
                       transposes_ ? n : problem_.x.column_stride, problem_.weights.columns, line());
    regions.add(problem_.h, problem_.w, tile);
    return regions;
  }

  void add_image(int64_t image, int64_t channel, int64_t channels, const std::vector<TapRegions>& regions,
                 Acc* sums) const {
    const ImageSource<T>&x = problem_.x, &grad = problem_.grad;
    for (int64_t i = 0; i < row_tiles_.parts; ++i) {
      const ConvTile tile = tile_at(i);
      if (!transposes_) {
        const ChannelsSource<T> left{x, image * x.image_stride + channel, channels};
        const ChannelsSource<T> right{grad, image * grad.image_stride + channel, channels};
        grad.relu_output ? add_tile<true>(left, right, tile, regions[i], sums + channel)
                         : add_tile<false>(left, right, tile, regions[i], sums + channel);
        continue;
      }
      const InsideRange rows = source_range(problem_.h, tile.row, tile.rows);
      const InsideRange columns = source_range(problem_.w, 0, tile.columns);
      for (int64_t c = channel; c < channel + channels; c += n) {
        Scratch scratch;
        const int64_t some = std::min(n, channel + channels - c), end = tile.row + tile.rows;
        const auto left = pack_channels(x, image, c, some, rows, columns, scratch);
        const auto right = pack_channels(grad, image, c, some, InsideRange(-tile.row, 1, end, end),
                                         InsideRange(0, 1, tile.columns, tile.columns), scratch);
        add_tile<false>(left, right, tile, regions[i], sums + c);
      }
    }
  }

  template <bool masked, class S>
  void add_tile(const ChannelsSource<S>& x, const ChannelsSource<S>& grad, const ConvTile& tile,
                const TapRegions& regions, Acc* sums) const {
    if (problem_.bias != nullptr) {
      for (int64_t row = tile.row; row < tile.row + tile.rows; ++row)
        add_row_of_bias<masked>(grad, row, sums + taps_ * line());
    }
    if (problem_.weight == nullptr) return;
    for (const TapRegion& region : regions.all()) {
      const EvenSplit chains(region.rows,
                             std::min(region.rows, ceil_div(region.rows * region.columns, kChainedTerms)));
      for (int64_t chain = 0; chain < chains.parts; ++chain) {
        TapRegion some = region;
        some.row += chains.begin(chain);
        some.rows = chains.size(chain);
        for (int64_t t = 0; t < region.taps;) {
          const auto add = [&](auto count) {
            add_products<decltype(count)::value, masked>(x, grad, regions, some, t, sums);
            t += decltype(count)::value;
          };
          const int64_t rest = region.taps - t;
          rest >= 9   ? add(std::integral_constant<int, 9>{})
          : rest >= 6 ? add(std::integral_constant<int, 6>{})
          : rest >= 4 ? add(std::integral_constant<int, 4>{})
          : rest >= 2 ? add(std::integral_constant<int, 2>{})
                      : add(std::integral_constant<int, 1>{});
        }
      }
    }
  }

  // Adds the products of some taps, from number `first` of a region's on, over its pixels to their sums.
  template <int taps, bool masked, class S>
  void add_products(const ChannelsSource<S>& x, const ChannelsSource<S>& grad, const TapRegions& regions,
                    const TapRegion& region, int64_t first, Acc* sums) const {
    const ImageSource<S> left = without_relu(x.source);
    const ImageSource<S> right = masked ? grad.source : without_relu(grad.source);
    const int64_t left_step = problem_.w.source_step * left.column_stride, right_step = right.column_stride;
    const int64_t* const offsets = regions.offsets(region) + first;
    const int64_t* const to = regions.weights(region) + first;
    for_each_vector_of_channels<Acc>(x.channels, [&](int64_t c, auto lanes) {
      typename V::Native sum[taps] = {};
      for (int64_t row = region.row; row < region.row + region.rows; ++row) {
        int64_t from = x.origin + regions.source(region, row, region.column) + c;
        int64_t by = grad.origin + row * right.row_stride + region.column * right_step + c;
        for (int64_t i = 0; i < region.columns; ++i, from += left_step, by += right_step) {
          const typename V::Native g = right.vector(by, lanes).v;
#pragma GCC unroll 9
          for (int t = 0; t < taps; ++t) sum[t] += left.vector(from + offsets[t], lanes).v * g;
        }
      }
#pragma GCC unroll 9
      for (int t = 0; t < taps; ++t) {
        Acc* const at = sums + to[t] + c;
        store(at, V(load<Acc>(at).v + sum[t]));
      }
    });
  }

  template <bool masked, class S>
  void add_row_of_bias(const ChannelsSource<S>& grad, int64_t row, Acc* sums) const {
    const ImageSource<S> right = masked ? grad.source : without_relu(grad.source);
    for_each_vector_of_channels<Acc>(grad.channels, [&](int64_t c, auto lanes) {
      V total = Acc(0);
      int64_t by = grad.origin + row * right.row_stride + c;
      for (int64_t i = 0; i < problem_.w.count; ++i, by += right.column_stride)
        total += right.vector(by, lanes);
      store(sums + c, load<Acc>(sums + c) + total);
    });
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
  bool transposes_;
  VectorSplit<Acc> channels_;
  EvenSplit chunks_;  // of images
  EvenSplit row_tiles_;
};

}  // namespace pyops::cpu
