// The correlation by Winograd's F(4 x 4, 3 x 3) (transforms.h). Every output is formed by one thread in an
// order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/winograd_4x4/microkernels.h"
#include "cpu/conv2d/winograd_4x4/transforms.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu::winograd_4x4 {

template <class T>
class Correlation {
 public:
  explicit Correlation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        weights_(problem.weights),
        h_(problem.h.front()),
        w_(problem.w.front()),
        blocks_(weights_.inputs),
        panels_(weights_.outputs, n),
        tiles_(problem.epilogue->cut(h_.count, w_.count, kTiles * kSide * kSide, kSide)),
        batches_(batched(problem.images, tiles_, kTiles / tiles_of(h_.count, w_.count))),
        tile_count_(batches_.size(0) * tiles_of(tiles_.rows.largest(), tiles_.columns.largest())) {}

  // Whether all outputs are what direct sums would give; if not, they are to be formed again.
  bool run() const {
    Scratch scratch;
    float* const weights = scratch.take<float>(kPositions * weights_.inputs * panels_.padded());
    transform_weights(weights);
    const int64_t tiles = tiles_.rows.parts() * tiles_.columns.parts();
    const double work = double(problem_.images) * double(tiles_of(h_.count, w_.count)) * kPositions *
                        double(weights_.outputs * weights_.inputs);
    std::atomic<bool> finite{true};
    parallel_claim(batches_.parts * tiles, work, [&](int64_t task) {
      if (!form_tile(task / tiles, task % tiles, weights)) finite.store(false, std::memory_order_relaxed);
    });
    return finite.load();
  }

 private:
  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(int64_t patch_size, int64_t input_size, int64_t products_size, int64_t sums_size)
        : patch(memory.take<float>(patch_size)),
          input(memory.take<float>(input_size)),
          products(memory.take<float>(products_size)),
          sums(memory.take<float>(sums_size + n * n)) {}  // transposition reads past the end
    Scratch memory;
    float* patch;     // a vector of channels
    float* input;     // transformed, [position][Winograd tile][channel of a block]
    float* products;  // [position][Winograd tile][output channel]
    float* sums;      // [row][column][output channel]
  };

  // Transformed weights in the order of use: [block][position][panel][input channel][output channel].
  int64_t transformed(int64_t block, int64_t position, int64_t panel) const {
    const int64_t channels = blocks_.size(block);
    return (kPositions * blocks_.begin(block) + position * channels) * panels_.padded() +
           panels_.begin(panel) * channels;
  }

  void transform_weights(float* to) const {
    const int64_t cost = 100 * kBlock * panels_.kWide;
    parallel_for(blocks_.parts() * panels_.parts, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        transform_panel(task / panels_.parts, task % panels_.parts, to);
    });
  }

  void transform_panel(int64_t block, int64_t panel, float* all) const {
    const int64_t width = panels_.width(panel), first = panels_.begin(panel), taps = weights_.taps();
    const int64_t count = std::min(width, weights_.outputs - first), most = channels_in_block(taps);
    const int64_t position_stride = blocks_.size(block) * panels_.padded();
    float* const to = all + transformed(block, 0, panel);
    Scratch scratch;
    float* const read = scratch.take<float>(most * taps * width);
    for (int64_t c = 0; c < blocks_.size(block); ++c) {
      if (c % most == 0) {
        const int64_t channels = std::min(most, blocks_.size(block) - c);
        read_taps(weights_, {0, blocks_.begin(block) + c, channels, first, count}, width, read);
      }
      for (int64_t k = 0; k < width; k += n) {
        const float* from[9];
        for (const math::ConvTap& r : h_.taps) {
          for (const math::ConvTap& s : w_.taps) {
            from[(r.shift - h_.min_shift) * 3 + s.shift - w_.min_shift] =
                read + (c % most * taps + r.kernel * weights_.columns + s.kernel) * width + k;
          }
        }
        transform_weight(from, position_stride, to + c * width + k);
      }
    }
  }

  // One cache line more, so that what is stored to all positions does not fall into one set of the L1 cache.
  int64_t input_position() const { return tile_count_ * blocks_.padded(0) + n; }
  int64_t products_position() const { return tile_count_ * panels_.padded() + n; }

  // Whether all is finite.
  bool form_tile(int64_t batch, int64_t index, const float* weights) const {
    const int64_t across = tiles_.columns.parts(), row_tile = index / across, column_tile = index % across;
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const ConvTile whole = in_whole_tiles(tile);
    const int64_t images = batches_.size(batch), padded = panels_.padded();
    const int64_t rows = whole.rows / kSide, columns = whole.columns / kSide, in_image = rows * columns;
    const TileScratch scratch((whole.rows + 2) * (whole.columns + 2) * n, kPositions * input_position(),
                              kPositions * products_position(), whole.rows * whole.columns * padded);
    for (int64_t block = 0; block < blocks_.parts(); ++block) {
      for (int64_t i = 0; i < images; ++i)
        transform_block(batches_.begin(batch) + i, block, whole, i * in_image, scratch);
      multiply(block, images * in_image, weights, scratch);
    }
    Vec<float> not_finite = 0.0f;
    for (int64_t i = 0; i < images; ++i) {
      transform_output(scratch.products + i * in_image * padded, products_position(), padded, rows, columns,
                       scratch.sums, not_finite);
      problem_.epilogue->take(batches_.begin(batch) + i, 0, weights_.outputs, h_, w_, tile,
                              TileSums<float>{scratch.sums, whole.columns * padded, padded, 1});
    }
    return horizontal_sum(not_finite) == 0;
  }

  void transform_block(int64_t image, int64_t block, const ConvTile& whole, int64_t first_tile,
                       const TileScratch& scratch) const {
    const Patch patch{whole.row + h_.min_shift + h_.source_first,
                      whole.rows + 2,
                      whole.column + w_.min_shift + w_.source_first,
                      whole.columns + 2,
                      h_.source_size,
                      w_.source_size};
    const int64_t line = blocks_.padded(block);
    for (int64_t c = 0; c < blocks_.size(block); c += n) {
      const int channels = static_cast<int>(std::min(n, blocks_.size(block) - c));
      pack_patch(problem_.x, image, blocks_.begin(block) + c, channels, patch, scratch.patch);
      transform_input(scratch.patch, patch.columns, whole.rows / kSide, whole.columns / kSide,
                      input_position(), line, scratch.input + first_tile * line + c);
    }
  }

  void multiply(int64_t block, int64_t tiles, const float* weights, const TileScratch& scratch) const {
    const int64_t padded = panels_.padded(), line = blocks_.padded(block);
    const EvenSplit strips(tiles, ceil_div(tiles, int64_t{kPixels}));
    for (int64_t position = 0; position < kPositions; ++position) {
      for (int64_t panel = 0; panel < panels_.parts; ++panel) {
        const float* const weight = weights + transformed(block, position, panel);
        for (int64_t strip = 0; strip < strips.parts; ++strip) {
          const int64_t first = strips.begin(strip);
          rows_kernel_of(strips.size(strip), panels_.width(panel) / n)(
              blocks_.size(block), scratch.input + position * input_position() + first * line, line, weight,
              scratch.products + position * products_position() + first * padded + panels_.begin(panel),
              padded, block > 0);
        }
      }
    }
  }

  const CorrelationProblem<T>& problem_;
  const ConvWeights<T>& weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  ChannelBlocks blocks_;
  ChannelPanels<float> panels_;
  typename TileEpilogue<T>::Tiles tiles_;
  EvenSplit batches_;   // of images
  int64_t tile_count_;  // Winograd tiles of a tile, at most
};

}  // namespace pyops::cpu::winograd_4x4
