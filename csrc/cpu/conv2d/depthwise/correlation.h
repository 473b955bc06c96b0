// The depthwise correlation: every channel has a kernel of its own, so all that can be shared is what lies
// next to each other in memory.
//
// Vectors lie along the source's neighbours. Of a planar image these are pixels: a plane is packed with its
// padding (pack_input.h), and each tap reads it at a constant distance. Of a channels_last image they are
// channels: the source is read where it lies, and taps outside the image are skipped.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// Planes that are packed in one go: as many channels_last channels make a line of the cache.
inline constexpr int64_t kDepthwisePlanes = 16;
// Pixels of a packed plane, about.
inline constexpr int64_t kDepthwisePixels = 64 * 64;

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
        along_channels_(problem.x.channels_are_neighbours()),
        channels_(groups_, ceil_div(groups_, along_channels_ ? kLine : kDepthwisePlanes)),
        tiles_(problem.epilogue->cut(
            h_.count, w_.count,
            along_channels_ ? std::max<int64_t>(w_.count, kLineSums / channels_.size(0)) : kDepthwisePixels,
            1)),
        shape_(h_, w_, tiles_.rows.largest(), tiles_.columns.largest()) {
    for (const math::CorrelationAxis& rows : problem.h) {
      for (const math::CorrelationAxis& columns : problem.w) {
        const int64_t before = phases_.empty() ? 0 : phases_.back().first_tap + phases_.back().taps();
        phases_.push_back({&rows, &columns, before, shape_.offsets(rows, columns, 1)});
      }
    }
  }

  void run() const {
    if (problem_.images == 0 || problem_.pixels() == 0) return;
    Scratch scratch;
    Acc* const weights = scratch.take<Acc>(problem_.weights.taps() * line());
    read_weights(weights);
    const int64_t tiles = tiles_.rows.parts() * tiles_.columns.parts();
    const double work = 4 * double(problem_.images) * double(groups_) * double(problem_.pixels()) *
                        double(problem_.weights.taps());
    parallel_claim(problem_.images * channels_.parts * tiles, work, [&](int64_t i) {
      const int64_t block = i / tiles % channels_.parts;
      form_tile(i / tiles / channels_.parts, channels_.begin(block), channels_.size(block), i % tiles,
                weights);
    });
  }

 private:
  static constexpr int64_t kLine = 8 * n;     // channels of a tile, where vectors lie along them
  static constexpr int64_t kLineSums = 4096;  // of such a tile: in the L1 cache
  static constexpr int kPixels = 4;           // whose sums are in registers at a time

  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    int64_t first_tap;             // of all phases' taps
    std::vector<int64_t> offsets;  // of the taps in the packed plane

    int64_t taps() const { return static_cast<int64_t>(offsets.size()); }
  };

  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(int64_t planes_size, int64_t sums_size, int64_t taps)
        : planes(memory.take<Acc>(planes_size + 5 * n)),  // vectors read past the end of a row
          sums(memory.take<Acc>(sums_size + n * n)),      // and are written there
          taps(memory.take<Acc>(taps)) {}
    Scratch memory;
    Acc* planes;
    Acc* sums;
    Acc* taps;  // of a channel
  };

  // Channels that a tap has room for.
  int64_t line() const { return round_up(groups_, n); }

  // [phase's tap][channel]
  void read_weights(Acc* to) const {
    const ConvWeights<T>& w = problem_.weights;
    for (const Phase& phase : phases_) {
      for (const math::ConvTap& r : phase.h->taps) {
        for (const math::ConvTap& s : phase.w->taps) {
          const T* const from = w.values + r.kernel * w.row_stride + s.kernel * w.column_stride;
          for (int64_t g = 0; g < groups_; ++g) to[g] = to_acc(from[g * w.group_stride]);
          std::fill(to + groups_, to + line(), Acc(0));
          to += line();
        }
      }
    }
  }

  void form_tile(int64_t image, int64_t channel, int64_t channels, int64_t index, const Acc* weights) const {
    const int64_t row_tile = index / tiles_.columns.parts(), column_tile = index % tiles_.columns.parts();
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const int64_t width = round_up(channels, n), most = tile.rows * tile.columns * width;
    const TileScratch scratch(along_channels_ ? 0 : channels * shape_.channel(), most,
                              problem_.weights.taps());
    if (!along_channels_)
      pack_input(problem_.x, image, channel, channels, h_, w_, shape_, tile, scratch.planes);
    for (const Phase& phase : phases_) {
      ConvTile part = tile;
      part.rows = std::max<int64_t>(0, std::min(tile.rows, phase.h->count - tile.row));
      part.columns = std::max<int64_t>(0, std::min(tile.columns, phase.w->count - tile.column));
      if (part.rows * part.columns == 0) continue;
      const Acc* const taps = weights + phase.first_tap * line() + channel;
      TileSums<Acc> sums{scratch.sums, part.columns, 1, part.rows * part.columns};
      if (along_channels_) {
        sums = {scratch.sums, part.columns * width, width, 1};
        const int64_t origin = image * problem_.x.image_stride + channel;
        for (int64_t row = 0; row < part.rows; ++row)
          sum_row(phase, origin, channels, part, row, taps, width, scratch.sums + row * sums.row_stride);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t t = 0; t < phase.taps(); ++t) scratch.taps[t] = taps[t * line() + c];
          sum_plane(phase, part, scratch.planes + c * shape_.channel(), scratch.taps,
                    scratch.sums + c * sums.channel_stride);
        }
      }
      problem_.epilogue->take(image, channel, channels, *phase.h, *phase.w, part, sums);
    }
  }

  // sums[row][column] of one channel, without gaps: what the last vector of a row writes behind it is written
  // anew by the next one.
  void sum_plane(const Phase& phase, const ConvTile& part, const Acc* plane, const Acc* taps,
                 Acc* sums) const {
    for (int64_t row = 0; row < part.rows; ++row) {
      const Acc* const from = plane + row * shape_.columns;
      Acc* const to = sums + row * part.columns;
      int64_t column = 0;
      for (; column + n < part.columns; column += 2 * n)
        add_taps<2>(phase.taps(), phase.offsets.data(), taps, from + column, to + column);
      if (column < part.columns)
        add_taps<1>(phase.taps(), phase.offsets.data(), taps, from + column, to + column);
    }
  }

  template <int vectors>
  static void add_taps(int64_t count, const int64_t* offsets, const Acc* taps, const Acc* from, Acc* to) {
    typename V::Native sum[vectors] = {};
    for (int64_t t = 0; t < count; ++t) {
      const typename V::Native weight = taps[t] - typename V::Native{};
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[j] += weight * load<Acc>(from + offsets[t] + j * n).v;
    }
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(to + j * n, V(sum[j]));
  }

  // sums[column][channel] of a row of a tile; `origin` is the image's first channel.
  void sum_row(const Phase& phase, int64_t origin, int64_t channels, const ConvTile& part, int64_t row,
               const Acc* taps, int64_t width, Acc* sums) const {
    const math::CorrelationAxis& w = *phase.w;
    // The columns for which all taps lie inside the image.
    int64_t first = 0, last = part.columns;
    for (const math::ConvTap& s : w.taps) {
      const InsideRange inside(w.source_index(part.column, s), w.source_step, w.source_size, part.columns);
      first = std::max(first, inside.begin);
      last = std::min(last, inside.end);
    }
    for (int64_t column = 0; column < part.columns;) {
      const bool several = column >= first && column + kPixels <= last;
      for (int64_t c = 0; c < channels; c += n) {
        const int lanes = static_cast<int>(std::min(n, channels - c));
        Acc* const to = sums + column * width + c;
        several ? sum_pixels<kPixels>(phase, origin + c, lanes, part.row + row, part.column + column,
                                      taps + c, width, to)
                : sum_pixels<1>(phase, origin + c, lanes, part.row + row, part.column + column, taps + c,
                                width, to);
      }
      column += several ? kPixels : 1;
    }
  }

  // A vector of channels of neighbouring pixels. Of more than one all taps' columns lie inside the image.
  template <int pixels>
  void sum_pixels(const Phase& phase, int64_t origin, int lanes, int64_t row, int64_t column, const Acc* taps,
                  int64_t width, Acc* to) const {
    const ImageSource<T>& x = problem_.x;
    const math::CorrelationAxis &h = *phase.h, &w = *phase.w;
    const int64_t step = w.source_step * x.column_stride;
    typename V::Native sum[pixels] = {};
    for (const math::ConvTap& r : h.taps) {
      const int64_t source_row = h.source_index(row, r);
      const bool exists = source_row >= 0 && source_row < h.source_size;
      for (const math::ConvTap& s : w.taps) {
        const V weight = load<Acc>(taps);
        taps += line();
        const int64_t source_column = w.source_index(column, s);
        if (!exists || (pixels == 1 && (source_column < 0 || source_column >= w.source_size))) continue;
        const int64_t at = origin + source_row * x.row_stride + source_column * x.column_stride;
#pragma GCC unroll 4
        for (int j = 0; j < pixels; ++j) sum[j] += weight.v * x.vector(at + j * step, lanes).v;
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < pixels; ++j) store(to + j * width, V(sum[j]));
  }

  const CorrelationProblem<T>& problem_;
  int64_t groups_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  bool along_channels_;
  EvenSplit channels_;
  typename TileEpilogue<T>::Tiles tiles_;
  PackedInputShape shape_;
  std::vector<Phase> phases_;
};

}  // namespace pyops::cpu
