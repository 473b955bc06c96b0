// The depthwise correlation. A tile's sums are [row][column][channel], those of all phases where they belong
// in the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/depthwise/channels.h"
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
  using V = Vec<Acc>;
  static constexpr int64_t n = V::kLanes;

  explicit DepthwiseCorrelation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        groups_(problem.weights.groups),
        h_(problem.h.front()),
        w_(problem.w.front()),
        target_h_(target(problem.h)),
        target_w_(target(problem.w)),
        transposes_(!problem.x.channels_are_neighbours()),
        channels_(groups_, std::clamp(groups_ * problem.images / kTasks, kBlock, kLine)),
        tiles_(problem.epilogue->cut(
            h_.count, w_.count,
            std::max(w_.count, kTileSums / ((transposes_ ? n : std::min(kBlock, channels_.width())) *
                                            h_.target_step * w_.target_step)),
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
  static constexpr int64_t kLine = 64 * n;       // channels of a task, at most,
  static constexpr int64_t kTasks = 32;          // if there are as many tasks
  static constexpr int64_t kBlock = 8 * n;       // channels whose inputs and sums are in the L1 cache
  static constexpr int64_t kTileSums = 1 << 14;  // of a tile and a block, about
  static constexpr int kPixels = 4;              // whose sums are in registers at a time

  // The axis of the outputs of all phases.
  static math::CorrelationAxis target(const std::vector<math::CorrelationAxis>& phases) {
    math::CorrelationAxis all = phases.front();
    all.target_first = 0;
    all.target_step = 1;
    all.count = 0;
    for (const math::CorrelationAxis& phase : phases) all.count += phase.count;
    return all;
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
    const int64_t channel = channels_.begin(block), channels = channels_.size(block);
    const ImageSource<T>& x = problem_.x;
    if (!transposes_) {
      const ChannelsSource<T> source{x, image * x.image_stride + channel, channels};
      const TapRegions regions = regions_of(tile, x.row_stride, x.column_stride);
      x.relu_output ? form_channels<true>(source, regions, image, channel, tile, weights)
                    : form_channels<false>(source, regions, image, channel, tile, weights);
      return;
    }
    const InsideRange rows = source_range(h_, tile.row, tile.rows);
    const InsideRange columns = source_range(w_, tile.column, tile.columns);
    const TapRegions regions = regions_of(tile, (columns.end - columns.begin) * n, n);
    for (int64_t c = channel; c < channel + channels; c += n) {
      Scratch scratch;
      const int64_t some = std::min(n, channel + channels - c);
      const auto source = pack_channels(x, image, c, some, rows, columns, scratch);
      form_channels<false>(source, regions, image, c, tile, weights);
    }
  }

  TapRegions regions_of(const ConvTile& tile, int64_t row_stride, int64_t column_stride) const {
    TapRegions regions(row_stride, column_stride, problem_.weights.columns, line());
    for (const math::CorrelationAxis& h : problem_.h) {
      for (const math::CorrelationAxis& w : problem_.w) regions.add(h, w, tile);
    }
    return regions;
  }

  // Channels from `channel` on of a tile.
  template <bool masked, class S>
  void form_channels(const ChannelsSource<S>& x, const TapRegions& regions, int64_t image, int64_t channel,
                     const ConvTile& tile, const Acc* weights) const {
    ConvTile out = tile;  // of all phases
    out.row *= h_.target_step;
    out.column *= w_.target_step;
    out.rows = std::min(tile.rows * h_.target_step, target_h_.count - out.row);
    out.columns = std::min(tile.columns * w_.target_step, target_w_.count - out.column);
    Scratch scratch;
    const int64_t width = round_up(std::min(x.channels, kBlock), n);
    Acc* const values = scratch.take<Acc>(out.rows * out.columns * width + n * n);  // transposed in squares
    const TileSums<Acc> sums{values, out.columns * width, width, 1};
    for (int64_t first = 0; first < x.channels; first += kBlock) {
      ChannelsSource<S> block = x;
      block.origin += first;
      block.channels = std::min(kBlock, x.channels - first);
      for (const TapRegion& region : regions.all())
        sum_region<masked>(block, regions, region, weights + channel + first, out, sums);
      problem_.epilogue->take(image, channel + first, std::min(block.channels, groups_ - channel - first),
                              target_h_, target_w_, out, sums);
    }
  }

  // The outputs of a region: neighbours together where that saves loads, the others in any order.
  template <bool masked, class S>
  void sum_region(const ChannelsSource<S>& x, const TapRegions& regions, const TapRegion& region,
                  const Acc* weights, const ConvTile& out, const TileSums<Acc>& sums) const {
    TapRegion rest = region;
    const int64_t run = regions.neighbours(region);
    if (run == 3 || run == 5) {  // pixels that share what they read
      const int64_t columns = region.columns / kPixels * kPixels;
      for (int64_t i = 0; i < region.rows * (columns / kPixels); ++i) {
        const int64_t row = region.row + i / (columns / kPixels);
        const int64_t column = region.column + i % (columns / kPixels) * kPixels;
        const Place at = place(x, regions, region, row, column, out, sums);
        const int64_t step = region.w->target_step * sums.column_stride;
        const auto sum = [&](auto length) {
          sum_window<decltype(length)::value, masked>(x.source, x.channels, at.from, region.taps,
                                                      regions.offsets(region), regions.weights(region),
                                                      weights, at.to, step);
        };
        run == 3 ? sum(std::integral_constant<int, 3>{}) : sum(std::integral_constant<int, 5>{});
      }
      rest.column += columns;
      rest.columns -= columns;
    }
    const int64_t pixels = rest.rows * rest.columns;
    for (int64_t first = 0; first < pixels;) {
      const int64_t left = pixels - first, taken = left >= kPixels ? kPixels : left >= 2 ? 2 : 1;
      Place places[kPixels];
      for (int64_t i = 0; i < taken; ++i) {
        places[i] = place(x, regions, region, rest.row + (first + i) / rest.columns,
                          rest.column + (first + i) % rest.columns, out, sums);
      }
      const auto sum = [&](auto count) {
        sum_pixels<decltype(count)::value, masked>(x.source, x.channels, places, region.taps,
                                                   regions.offsets(region), regions.weights(region), weights);
      };
      taken == kPixels ? sum(std::integral_constant<int, kPixels>{})
      : taken == 2     ? sum(std::integral_constant<int, 2>{})
                       : sum(std::integral_constant<int, 1>{});
      first += taken;
    }
  }

  // Where an output's taps read and where it goes.
  struct Place {
    int64_t from;
    Acc* to;
  };

  template <class S>
  static Place place(const ChannelsSource<S>& x, const TapRegions& regions, const TapRegion& region,
                     int64_t row, int64_t column, const ConvTile& out, const TileSums<Acc>& sums) {
    const math::CorrelationAxis &h = *region.h, &w = *region.w;
    return {x.origin + regions.source(region, row, column),
            sums.values + (row * h.target_step + h.target_first - out.row) * sums.row_stride +
                (column * w.target_step + w.target_first - out.column) * sums.column_stride};
  }

  // Of kPixels neighbours, where runs of `length` taps read neighbours too: each element is read once.
  template <int length, bool masked, class S>
  static void sum_window(const ImageSource<S>& x, int64_t channels, int64_t from, int64_t taps,
                         const int64_t* offsets, const int64_t* weight_offsets, const Acc* weights, Acc* to,
                         int64_t to_step) {
    const ImageSource<S> source = masked ? x : without_relu(x);
    const int64_t step = source.column_stride;
    for_each_vector_of_channels<Acc>(channels, [&](int64_t c, auto lanes) {
      typename V::Native sum[kPixels] = {};
      for (int64_t t = 0; t < taps; t += length) {
        typename V::Native weight[length];
#pragma GCC unroll 5
        for (int s = 0; s < length; ++s) weight[s] = load<Acc>(weights + weight_offsets[t + s] + c).v;
        const int64_t row = from + offsets[t] + c;
#pragma GCC unroll 8
        for (int i = 0; i < kPixels + length - 1; ++i) {
          const typename V::Native v = source.vector(row + i * step, lanes).v;
#pragma GCC unroll 5
          for (int s = 0; s < length; ++s) {
            if (i - s >= 0 && i - s < kPixels) sum[i - s] += weight[s] * v;
          }
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) store(to + j * to_step + c, V(sum[j]));
    });
  }

  // to[pixel][channel] = sums of `taps` products.
  template <int pixels, bool masked, class S>
  static void sum_pixels(const ImageSource<S>& x, int64_t channels, const Place (&at)[kPixels], int64_t taps,
                         const int64_t* offsets, const int64_t* weight_offsets, const Acc* weights) {
    const ImageSource<S> source = masked ? x : without_relu(x);
    for_each_vector_of_channels<Acc>(channels, [&](int64_t c, auto lanes) {
      typename V::Native sum[pixels] = {};
      for (int64_t t = 0; t < taps; ++t) {
        const typename V::Native weight = load<Acc>(weights + weight_offsets[t] + c).v;
#pragma GCC unroll 4
        for (int j = 0; j < pixels; ++j)
          sum[j] += weight * source.vector(at[j].from + c + offsets[t], lanes).v;
      }
#pragma GCC unroll 4
      for (int j = 0; j < pixels; ++j) store(at[j].to + c, V(sum[j]));
    });
  }

  const CorrelationProblem<T>& problem_;
  int64_t groups_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  math::CorrelationAxis target_h_;
  math::CorrelationAxis target_w_;
  bool transposes_;
  VectorSplit<Acc> channels_;
  typename TileEpilogue<T>::Tiles tiles_;
};

}  // namespace pyops::cpu
