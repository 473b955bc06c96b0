// The correlation with an image in each lane of a vector: small images with few channels, many at a time.
//
// No lane is lost to channels or columns that do not fill a vector, and a tap that reads outside of the image
// is left out: of an input gradient of 14 x 14 pixels and 5 x 5 taps from 10 x 10, which a direct sum forms
// with zeros around them, half are. Pixels with the same taps are taken several at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/image_lanes/lanes.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// Neighbouring outputs of an axis that have the same taps inside the source.
struct SameTaps {
  int64_t begin;
  int64_t end;
  int64_t first_tap;
  int64_t taps;
};

// Where the source moves in steps of 1, taps read it in order, and those inside follow each other.
inline std::vector<SameTaps> same_taps(const math::CorrelationAxis& axis, int64_t begin, int64_t end) {
  std::vector<SameTaps> found;
  for (int64_t i = begin; i < end; ++i) {
    int64_t first = 0, taps = 0, number = 0;
    for (const math::ConvTap& tap : axis.taps) {
      const int64_t index = axis.source_index(i, tap);
      const bool inside = index >= 0 && index < axis.source_size;
      if (inside && taps++ == 0) first = number;
      ++number;
    }
    if (!found.empty() && found.back().first_tap == first && found.back().taps == taps) {
      found.back().end = i + 1;
    } else {
      found.push_back({i, i + 1, first, taps});
    }
  }
  return found;
}

template <class T>
class LaneCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit LaneCorrelation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        weights_(problem.weights),
        h_(problem.h.front()),
        w_(problem.w.front()),
        planes_{weights_.inputs, h_.source_size, w_.source_size},
        places_(places_of_elements(problem.x, planes_, h_.source_size, w_.source_size)),
        panels_(weights_.outputs, ceil_div(weights_.outputs, kChannels)),
        tiles_(problem.epilogue->cut(h_.count, w_.count, h_.count * w_.count, 1)),
        by_channel_(problem.epilogue->wants_neighbouring_channels() && 2 * weights_.outputs >= n) {
    for (const math::CorrelationAxis& h : problem.h) {
      for (const math::CorrelationAxis& w : problem.w) {
        phases_.push_back({&h, &w, packed_, offsets(h, w)});
        packed_ += static_cast<int64_t>(phases_.back().offsets.size()) * weights_.outputs;
      }
    }
    for (const Phase& phase : phases_) {
      for (int64_t row = 0; row < tiles_.rows.parts(); ++row) {
        for (int64_t column = 0; column < tiles_.columns.parts(); ++column) {
          const ConvTile tile = part(phase, row, column);
          if (tile.rows > 0 && tile.columns > 0) list_part(phase, tile);
        }
      }
    }
  }

  void run() const {
    Scratch scratch;
    Acc* const packed = scratch.take<Acc>(packed_);
    pack_weights(packed);
    const int64_t batches = ceil_div(problem_.images, n);
    double taps = 0;
    for (const Phase& phase : phases_) taps += double(phase.offsets.size());
    const double work = double(problem_.images) * double(problem_.pixels() * weights_.outputs) * taps;
    parallel_claim(batches, work, [&](int64_t batch) {
      const TileImages images{batch * n, std::min(n, problem_.images - batch * n)};
      form(images, packed);
    });
  }

 private:
  // One phase of the output.
  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    int64_t packed;                // where its weights begin
    std::vector<int64_t> offsets;  // of the terms [row][column][input channel], from a pixel's start

    int64_t columns() const { return static_cast<int64_t>(w->taps.size()); }
  };

  // Pixels of a tile that have the same taps, and where their sums begin.
  struct Pixels {
    SameTaps rows;
    SameTaps columns;
    int64_t position;

    int64_t across() const { return columns.end - columns.begin; }
    int64_t count() const { return (rows.end - rows.begin) * across(); }
  };

  // A tile of one phase.
  struct Part {
    const Phase* phase;
    ConvTile tile;
    std::vector<Pixels> pixels;
    std::vector<int64_t> positions;  // of the sums of [row][column], in lanes
  };

  // A thread's memory for a batch of images.
  struct BatchScratch {
    BatchScratch(int64_t input_size, int64_t sums_size, int64_t image_size)
        : input(memory.take<Acc>(input_size)),
          sums(memory.take<Acc>(sums_size)),
          image(memory.take<Acc>(image_size + n * n)) {}  // transposition and pooling reach behind the end
    Scratch memory;
    Acc* input;  // [channel][row][column] in lanes
    Acc* sums;   // [channel][position] of a tile, in lanes
    Acc* image;  // a tile of each image
  };

  std::vector<int64_t> offsets(const math::CorrelationAxis& h, const math::CorrelationAxis& w) const {
    std::vector<int64_t> found;
    for (const math::ConvTap& r : h.taps) {
      for (const math::ConvTap& s : w.taps) {
        for (int64_t c = 0; c < weights_.inputs; ++c)
          found.push_back(planes_.place(c, h.source_index(0, r), w.source_index(0, s)) * n);
      }
    }
    return found;
  }

  // [phase][panel][term][output channel of the panel]
  void pack_weights(Acc* to) const {
    const int64_t taps = weights_.taps(), line = round_up(weights_.outputs, n);
    Scratch scratch;
    Acc* const read = scratch.take<Acc>(weights_.inputs * taps * line);
    read_taps(weights_, {0, 0, weights_.inputs, 0, weights_.outputs}, line, read);
    for (const Phase& phase : phases_) {
      for (int64_t panel = 0; panel < panels_.parts; ++panel) {
        for (const math::ConvTap& r : phase.h->taps) {
          for (const math::ConvTap& s : phase.w->taps) {
            const int64_t tap = r.kernel * weights_.columns + s.kernel;
            for (int64_t c = 0; c < weights_.inputs; ++c, to += panels_.size(panel))
              std::copy_n(read + (c * taps + tap) * line + panels_.begin(panel), panels_.size(panel), to);
          }
        }
      }
    }
  }

  // A phase may be shorter than the first.
  ConvTile part(const Phase& phase, int64_t row, int64_t column) const {
    const int64_t first_row = tiles_.rows.begin(row), first_column = tiles_.columns.begin(column);
    return {first_row,    std::min(tiles_.rows.size(row), phase.h->count - first_row),
            first_column, std::min(tiles_.columns.size(column), phase.w->count - first_column),
            row,          column};
  }

  void list_part(const Phase& phase, const ConvTile& tile) {
    Part part{&phase, tile, {}, std::vector<int64_t>(static_cast<size_t>(tile.rows * tile.columns))};
    int64_t position = 0;
    for (const SameTaps& rows : same_taps(*phase.h, tile.row, tile.row + tile.rows)) {
      for (const SameTaps& columns : same_taps(*phase.w, tile.column, tile.column + tile.columns)) {
        part.pixels.push_back({rows, columns, position});
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          for (int64_t j = columns.begin; j < columns.end; ++j)
            part.positions[(i - tile.row) * tile.columns + j - tile.column] = position++ * n;
        }
      }
    }
    parts_.push_back(std::move(part));
  }

  void form(const TileImages& images, const Acc* packed) const {
    const int64_t rows = tiles_.rows.largest(), columns = tiles_.columns.largest();
    const int64_t outputs = weights_.outputs;
    const int64_t image_size =
        by_channel_ ? rows * columns * round_up(outputs, n) : outputs * rows * round_up(columns, n);
    const BatchScratch scratch(planes_.elements() * n, outputs * rows * columns * n, n * image_size);
    images_to_lanes(problem_.x, images.first, images.count, places_, scratch.input);
    for (const Part& part : parts_) {
      for (int64_t panel = 0; panel < panels_.parts; ++panel) {
        const int64_t terms = static_cast<int64_t>(part.phase->offsets.size());
        const Acc* const weight = packed + part.phase->packed + panels_.begin(panel) * terms;
        for (const Pixels& pixels : part.pixels) multiply(part, pixels, panel, weight, scratch);
      }
      hand_over(images, part, image_size, scratch);
    }
  }

  void multiply(const Part& part, const Pixels& pixels, int64_t panel, const Acc* weight,
                const BatchScratch& scratch) const {
    const Phase& phase = *part.phase;
    const int64_t channels = panels_.size(panel), ld = part.tile.rows * part.tile.columns * n;
    Acc* const sums = scratch.sums + panels_.begin(panel) * ld + pixels.position * n;
    const int64_t count = pixels.count(), across = pixels.across();
    for (int64_t pixel = 0, taken; pixel < count; pixel += taken) {
      taken = count - pixel;
      taken = taken >= kMostPixelVectors && channels <= kFewChannels ? kMostPixelVectors
              : taken >= kPixelVectors                               ? kPixelVectors
                                                                     : 1;
      int64_t starts[kMostPixelVectors];
      for (int64_t j = 0; j < taken; ++j) {
        const int64_t row = pixels.rows.begin + (pixel + j) / across;
        starts[j] = (row * w_.source_size + pixels.columns.begin + (pixel + j) % across) * n;
      }
      const auto kernel = channel_kernel_of<Acc>(channels, taken);
      bool accumulate = false;
      for_each_run(phase, pixels, [&](int64_t first, int64_t depth) {
        for_each_chain(depth, [&](int64_t begin, int64_t terms) {
          kernel(terms, scratch.input, starts, phase.offsets.data() + first + begin,
                 weight + (first + begin) * channels, sums + pixel * n, ld, accumulate);
          accumulate = true;
        });
      });
    }
  }

  // Calls f(first, count) for the runs of terms that some pixels have, once at least.
  template <class F>
  void for_each_run(const Phase& phase, const Pixels& pixels, const F& f) const {
    const int64_t line = phase.columns() * weights_.inputs;
    const SameTaps &rows = pixels.rows, &columns = pixels.columns;
    if (rows.taps * columns.taps == 0) return f(int64_t{0}, int64_t{0});
    if (columns.taps == phase.columns()) return f(rows.first_tap * line, rows.taps * line);
    for (int64_t r = 0; r < rows.taps; ++r)
      f((rows.first_tap + r) * line + columns.first_tap * weights_.inputs, columns.taps * weights_.inputs);
  }

  void hand_over(const TileImages& images, const Part& part, int64_t image_size,
                 const BatchScratch& scratch) const {
    const ConvTile& tile = part.tile;
    const int64_t pixels = tile.rows * tile.columns, outputs = weights_.outputs;
    const int64_t line = round_up(tile.columns, n), padded = round_up(outputs, n);
    if (by_channel_) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        lanes_to_images(
            scratch.sums + part.positions[pixel], [&](int64_t c) { return c * pixels * n; }, outputs,
            images.count, scratch.image + pixel * padded, image_size);
      }
    } else {
      for (int64_t row = 0; row < outputs * tile.rows; ++row) {
        const int64_t channel = row / tile.rows;
        const int64_t* const positions = part.positions.data() + row % tile.rows * tile.columns;
        lanes_to_images(
            scratch.sums + channel * pixels * n, [&](int64_t i) { return positions[i]; }, tile.columns,
            images.count, scratch.image + row * line, image_size);
      }
    }
    TileSums<Acc> sums = by_channel_ ? TileSums<Acc>{scratch.image, tile.columns * padded, padded, 1}
                                     : TileSums<Acc>{scratch.image, line, 1, tile.rows * line};
    for (int64_t i = 0; i < images.count; ++i, sums.values += image_size) {
      problem_.epilogue->take(images.first + i, 0, outputs, *part.phase->h, *part.phase->w, tile, sums);
    }
  }

  const CorrelationProblem<T>& problem_;
  const ConvWeights<T>& weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  LanePlanes planes_;
  std::vector<int64_t> places_;
  EvenSplit panels_;  // of output channels
  typename TileEpilogue<T>::Tiles tiles_;
  bool by_channel_;  // whether an image's sums are handed over with channels as neighbours
  std::vector<Phase> phases_;
  int64_t packed_ = 0;  // weights
  std::vector<Part> parts_;
};

}  // namespace pyops::cpu
