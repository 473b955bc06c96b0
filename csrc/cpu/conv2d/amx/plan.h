// How a correlation is cut into tiles of 16 x 32 elements (cpu/simd/tiles.h).
//
// A tile of the input has 16 pixels and 32 terms. It is loaded from a packed input of which one of these is
// chosen, and the taps of a kernel are but offsets into it:
//
//   kPixels  [pixel][channel]: the rows of a left operand; where channels are neighbours in memory. Where
//            nothing has to be padded or left out, the tensor itself is the packed input.
//   kPairs   [pair of channels][pixel][2]: the rows of a right operand; where pixels are neighbours. Neither
//            the input nor the sums are transposed.
//   kFolded  [pair of terms][pixel][2], a term being a channel and a tap: for so few channels that tiles of
//            one tap would be mostly padding
//
// The 16 pixels are neighbours in the packed input. They may run across the end of a row: a few sums that no
// output wants cost less than tiles that are half empty.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/simd/tiles.h"

#if defined(__AVX512F__)

namespace pyops::cpu::amx {

constexpr int64_t kPairBytes = 4;

// Whether tiles of one tap, whose channels are padded to `unit`, waste so much that all taps' share tiles.
inline bool folds(int64_t channels, int64_t taps, int64_t unit) {
  return 2 * round_up(channels, unit) * taps >= 3 * round_up(channels * taps, unit);
}

// Whether enough of the tiles' products are wanted: of `wanted` terms and outputs and as many in tiles. The
// tiles' multiplications are 16 times those of float32 vectors, and packing is not for nothing.
inline bool fills_tiles(int64_t wanted, int64_t in_tiles) { return 8 * wanted >= in_tiles; }

// Rows of a tile that are far apart in memory should not share a set of the L1 cache.
inline void spread_channels(PackedInputShape& shape, int64_t bytes) {
  if (shape.channel() * bytes % 512 == 0) shape.rows == 1 ? shape.columns += 8 : ++shape.rows;
}

// Runs of 16 pixels that cover `rows` x `columns` of them, rows lying `line` apart.
class PixelRuns {
 public:
  PixelRuns(int64_t rows, int64_t columns, int64_t line)
      : columns_(columns), line_(line), pixels_((rows - 1) * line + columns) {
    if (rows <= 0 || columns <= 0) return;
    count_ = ceil_div(pixels_, kTileRows);
    const int64_t in_row = ceil_div(columns, kTileRows);
    if (columns < kTileRows || rows * in_row > count_) return;
    in_row_ = in_row;
    count_ = rows * in_row;
  }

  int64_t count() const { return count_; }
  // Where run i begins. The last one of all, or of each row, overlaps the one before.
  int64_t begin(int64_t i) const {
    if (in_row_ == 0) return std::max<int64_t>(0, std::min(i * kTileRows, pixels_ - kTileRows));
    return i / in_row_ * line_ + std::min(i % in_row_ * kTileRows, columns_ - kTileRows);
  }

 private:
  int64_t columns_;
  int64_t line_;
  int64_t pixels_;
  int64_t in_row_ = 0;  // runs of a row; 0 where runs cross the ends of rows
  int64_t count_ = 0;
};

struct CorrelationPlan {
  enum class Layout { kPixels, kPairs, kFolded };

  // One phase of the output.
  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    int64_t taps;
    int64_t steps;                 // 32 terms each
    int64_t packed;                // where its weights begin within a group's, in tiles
    std::vector<int64_t> offsets;  // of the steps' tiles in the packed input, in bytes
    std::vector<int64_t> terms;    // kFolded: of a term's pixels among the unfolded ones

    // The part of a tile that this phase, which may be shorter than the first, has.
    ConvTile part(const ConvTile& tile) const {
      ConvTile part = tile;
      part.rows = std::max<int64_t>(0, std::min(tile.rows, h->count - tile.row));
      part.columns = std::max<int64_t>(0, std::min(tile.columns, w->count - tile.column));
      return part;
    }
  };

  explicit CorrelationPlan(const CorrelationProblem<bfloat16>& problem_)
      : problem(problem_),
        inputs(problem_.weights.inputs),
        outputs(problem_.weights.outputs),
        groups(problem_.weights.groups),
        h(problem_.h.front()),
        w(problem_.w.front()),
        layout(folds(inputs, problem_.weights.taps(), kTileDepth) ? Layout::kFolded
               : problem_.x.channel_stride == 1                   ? Layout::kPixels
                                                                  : Layout::kPairs),
        shape(h, w, 1, 1) {
    for (const math::CorrelationAxis& rows : problem.h) {
      for (const math::CorrelationAxis& columns : problem.w) {
        const int64_t taps = static_cast<int64_t>(rows.taps.size() * columns.taps.size());
        const int64_t steps =
            layout == Layout::kFolded ? ceil_div(inputs * taps, kTileDepth) : channel_blocks() * taps;
        phases.push_back({&rows, &columns, taps, steps, group_tiles, {}, {}});
        group_tiles += panels() * steps;
        most_steps = std::max(most_steps, steps);
      }
    }
    for (int64_t step = 0; step < most_steps; ++step) weight_offsets.push_back(step * kTileBytes);
    for (int64_t step = 0; step < most_steps; ++step) pair_offsets.push_back(2 * step * kTileBytes);
  }

  // The rest, which takes an epilogue.
  void choose_tiles() {
    constexpr int64_t kSumBytes = 256 << 10, kLeastPixels = 128, kMostPixels = 1024, kSharedPixels = 128;
    const int64_t size = static_cast<int64_t>(sizeof(float));
    const int64_t pixels = std::clamp(kSumBytes / size / padded_outputs(), kLeastPixels, kMostPixels);
    tiles = problem.epilogue->cut(h.count, w.count, pixels, 1);
    shape = PackedInputShape(h, w, tiles.rows.largest(), tiles.columns.largest());
    if (layout == Layout::kPairs) spread_channels(shape, kPairBytes);
    batches = batched(problem.images, tiles, kSharedPixels / (h.count * w.count));
    in_place = layout == Layout::kPixels && lies_ready();
    plane = round_up(std::max(kPixelsOfTile, tiles.rows.largest() * shape.columns), kTileRows);
    // A folded input's rows should not share a set of the L1 cache either.
    fold_line = plane * kPairBytes % 512 == 0 ? plane + kTileRows : plane;
    for (Phase& phase : phases) set_offsets(phase);
  }

  // Blocks of 32 input channels and of 16 output channels.
  int64_t channel_blocks() const { return ceil_div(inputs, kTileDepth); }
  int64_t panels() const { return ceil_div(outputs, int64_t{kTileRows}); }
  int64_t padded_outputs() const { return panels() * kTileRows; }

  // How far apart pixels are, an odd number of cache lines in a packed input.
  int64_t pixel_pairs() const { return (channel_blocks() | 1) * kTileRows; }
  int64_t pixel_bytes() const {
    return in_place ? problem.x.column_stride * static_cast<int64_t>(sizeof(bfloat16))
                    : pixel_pairs() * kPairBytes;
  }
  // Of an image's packed input (kFolded: before it is folded); vectors are written past the end.
  int64_t image_bytes() const {
    if (in_place) return 0;
    const int64_t singles = inputs * shape.channel() * static_cast<int64_t>(sizeof(bfloat16));
    const int64_t pairs = channel_blocks() * kTileRows * shape.channel() * kPairBytes;
    const int64_t pixels = shape.channel() * pixel_bytes();
    return round_up(layout == Layout::kFolded  ? singles
                    : layout == Layout::kPairs ? pairs
                                               : pixels,
                    int64_t{kVectorBytes});
  }
  int64_t folded_bytes() const {
    return layout == Layout::kFolded ? most_steps * kTileRows * fold_line * kPairBytes : 0;
  }
  // Past the end of the packed input, 16 pixels are read.
  int64_t slack_bytes() const {
    return kTileRows * (layout == Layout::kPixels ? pixel_bytes() : int64_t{kVectorBytes});
  }
  int64_t image_sums() const { return plane * padded_outputs(); }
  int64_t tile_count() const { return batches.parts * groups * tiles.rows.parts() * tiles.columns.parts(); }

  const CorrelationProblem<bfloat16>& problem;
  int64_t inputs;
  int64_t outputs;
  int64_t groups;
  const math::CorrelationAxis& h;
  const math::CorrelationAxis& w;
  Layout layout;
  bool in_place = false;  // tiles are loaded from the tensor
  PackedInputShape shape;
  std::vector<Phase> phases;
  int64_t group_tiles = 0;  // of packed weights of a group
  int64_t most_steps = 0;
  std::vector<int64_t> weight_offsets;  // of the steps' tiles in a panel of weights, of 16 outputs
  std::vector<int64_t> pair_offsets;    // and of two panels side by side
  TileEpilogue<bfloat16>::Tiles tiles;
  EvenSplit batches{1, 1};  // of images
  int64_t plane = 0;        // pixels of the sums
  int64_t fold_line = 0;    // pixels of a folded input's row

 private:
  static constexpr int64_t kPixelsOfTile = kTileRows;

  // One tap, all of whose pixels exist and are neighbours, and whole blocks of channels.
  bool lies_ready() const {
    const ImageSource<bfloat16>& x = problem.x;
    if (!problem.has_one_phase() || h.taps.size() * w.taps.size() != 1 || w.source_step != 1) return false;
    const int64_t row = h.source_index(0, h.taps[0]), column = w.source_index(0, w.taps[0]);
    return x.relu_output == nullptr && inputs % kTileDepth == 0 && h.count == 1 && w.count >= kTileRows &&
           row >= 0 && row < h.source_size && column >= 0 && column + w.count <= w.source_size;
  }

  void set_offsets(Phase& phase) {
    if (layout == Layout::kFolded) {
      phase.terms = shape.offsets(*phase.h, *phase.w, inputs);
      for (int64_t step = 0; step < phase.steps; ++step)
        phase.offsets.push_back(step * kTileRows * fold_line * kPairBytes);
      return;
    }
    const std::vector<int64_t> positions = shape.offsets(*phase.h, *phase.w, 1);
    for (int64_t block = 0; block < channel_blocks(); ++block) {
      for (const int64_t position : positions) {
        phase.offsets.push_back(layout == Layout::kPixels
                                    ? position * pixel_bytes() + block * kTileRowBytes
                                    : (block * kTileRows * shape.channel() + position) * kPairBytes);
      }
    }
  }
};

}  // namespace pyops::cpu::amx

#endif
