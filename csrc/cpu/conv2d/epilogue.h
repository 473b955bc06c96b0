// What becomes of a convolution's sums: the epilogue, tile by tile.
//
//   TileEpilogue   takes tiles of sums and says how the outputs are cut into them
//   ImageEpilogue  the one that writes an image; pool.h has another, which pools
//   RowEpilogue    what an ImageEpilogue does to rows of sums: bias, residual and activation
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"
#include "math/activation.h"

namespace pyops::cpu {

// An image tensor to be written; strides as in ImageSource.
template <class T>
struct ImageTarget {
  T* values;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
};

// Turns sums into outputs: y = activation(sum + bias + residual).
template <class T>
class RowEpilogue {
 public:
  using Acc = acc_t<T>;

  const Acc* bias = nullptr;    // by output channel
  const T* residual = nullptr;  // these two are laid out as the output
  T* activation_input = nullptr;
  T* output = nullptr;

  virtual ~RowEpilogue() = default;
  // `rows` rows of `length` elements; row r begins at sums + r * sums_stride and at element at + r * stride
  // of the tensors. Its channel is channel + r or, if channels lie along it, channel + i for its element i.
  virtual void write(int64_t rows, int64_t length, const Acc* sums, int64_t sums_stride, int64_t at,
                     int64_t stride, int64_t channel, bool along_channels) const = 0;
};

template <class T, class Activation>
class ActivationEpilogue : public RowEpilogue<T> {
 public:
  using Acc = acc_t<T>;

  explicit ActivationEpilogue(const Activation& activation) : activation_(activation) {}

  void write(int64_t rows, int64_t length, const Acc* sums, int64_t sums_stride, int64_t at, int64_t stride,
             int64_t channel, bool along_channels) const override {
    for (int64_t r = 0; r < rows; ++r, sums += sums_stride, at += stride) {
      const Acc* const bias = this->bias ? this->bias + channel + (along_channels ? 0 : r) : nullptr;
      const Vec<Acc> row_bias = bias && !along_channels ? *bias : Acc(0);
      for_each_vector<Acc>(length, [&](int64_t i, int lanes) {
        Vec<Acc> v = load_lanes(sums + i, lanes);
        if (bias) v += along_channels ? load_lanes(bias + i, lanes) : row_bias;
        if (this->residual) v += load_lanes(this->residual + at + i, lanes);
        __builtin_prefetch(this->output + at + kRowsAhead * stride + i, 1);
        if (this->activation_input) store_lanes(this->activation_input + at + i, v, lanes);
        store_lanes(this->output + at + i, activation_.forward(v), lanes);
      });
    }
  }

 private:
  // Rows to fetch ahead: what is stored to must be read first, and nothing follows rows so far apart.
  static constexpr int64_t kRowsAhead = 4;

  Activation activation_;
};

// to[j, i] = from[i, j] for i < rows, j < columns, in whole squares of vectors: `from` may be read, and `to`
// written, up to a vector behind the end of a row.
template <class Acc>
void transpose_block(const Acc* from, int64_t from_stride, int64_t rows, int64_t columns, Acc* to,
                     int64_t to_stride) {
  constexpr int n = Vec<Acc>::kLanes;
  for (int64_t i = 0; i < rows; i += n) {
    const int64_t height = std::min<int64_t>(n, rows - i);
    for (int64_t j = 0; j < columns; j += n) {
      const int64_t width = std::min<int64_t>(n, columns - j);
      Vec<Acc> square[n];
      if (height == n) {  // it stays in registers
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) square[k] = load<Acc>(from + (i + k) * from_stride + j);
      } else {
        for (int k = 0; k < n; ++k)
          square[k] = k < height ? load<Acc>(from + (i + k) * from_stride + j) : Vec<Acc>(Acc(0));
      }
      transpose<Acc>(square);
#pragma GCC unroll 16
      for (int k = 0; k < n; ++k) {
        if (k < width) store(to + (j + k) * to_stride + i, square[k]);
      }
    }
  }
}

// The tiles along an axis of outputs; they may overlap.
class AxisTiles {
 public:
  AxisTiles() = default;
  // `count` outputs in `parts` tiles of whole units but for the last.
  AxisTiles(int64_t count, int64_t parts, int64_t unit) {
    const EvenSplit split(ceil_div(count, unit), parts);
    for (int64_t i = 0; i < parts; ++i) {
      add(unit * split.begin(i), std::min(unit * split.size(i), count - unit * split.begin(i)));
    }
  }
  void add(int64_t begin, int64_t size) {
    tiles_.push_back({begin, size});
    largest_ = std::max(largest_, size);
  }

  int64_t parts() const { return static_cast<int64_t>(tiles_.size()); }
  int64_t begin(int64_t part) const { return tiles_[part].begin; }
  int64_t size(int64_t part) const { return tiles_[part].size; }
  int64_t largest() const { return largest_; }

 private:
  struct Tile {
    int64_t begin;
    int64_t size;
  };
  std::vector<Tile> tiles_;
  int64_t largest_ = 1;
};

// A tile's sums, of `channels` channels: element (row, column, channel) at
// row * row_stride + column * column_stride + channel * channel_stride; channels or columns are neighbours.
template <class Acc>
struct TileSums {
  Acc* values;
  int64_t row_stride;
  int64_t column_stride;
  int64_t channel_stride;
};

// Writes a tile of one image and of channels [channel, channel + channels).
template <class T>
void write_tile(const RowEpilogue<T>& epilogue, const ImageTarget<T>& out, int64_t image, int64_t channel,
                int64_t channels, const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                const ConvTile& tile, const TileSums<acc_t<T>>& sums) {
  using Acc = acc_t<T>;
  constexpr int64_t n = Vec<Acc>::kLanes, kSegment = 16 * n;
  alignas(kVectorBytes) Acc block[n * (kSegment + n)];
  const bool sums_planar = sums.column_stride == 1 && sums.channel_stride != 1;
  const bool planar = out.channel_stride != 1 || out.column_stride == 1;
  // Rows that follow each other without a gap, here and there, are one long row.
  const bool joined = tile.columns * sums.column_stride == sums.row_stride && w.target_step == 1 &&
                      h.target_step == 1 && tile.columns * out.column_stride == out.row_stride;
  const int64_t rows = joined ? 1 : tile.rows, columns = joined ? tile.rows * tile.columns : tile.columns;
  const int64_t step = w.target_step * out.column_stride;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t start = image * out.image_stride + channel * out.channel_stride +
                          ((tile.row + row) * h.target_step + h.target_first) * out.row_stride +
                          (tile.column * w.target_step + w.target_first) * out.column_stride;
    const Acc* const from = sums.values + row * sums.row_stride;
    if (!planar && !sums_planar) {
      epilogue.write(columns, channels, from, sums.column_stride, start, step, channel, true);
      continue;
    }
    if (planar && sums_planar && step == 1) {
      epilogue.write(channels, columns, from, sums.channel_stride, start, out.channel_stride, channel, false);
      continue;
    }
    for (int64_t c = 0; c < channels; c += n) {
      const int64_t some = std::min(n, channels - c);
      for (int64_t j = 0; j < columns; j += planar ? kSegment : n) {
        const int64_t some_columns = std::min(planar ? kSegment : n, columns - j);
        const Acc* const corner = from + j * sums.column_stride + c * sums.channel_stride;
        const int64_t at = start + j * step + c * out.channel_stride;
        if (!planar) {
          transpose_block(corner, sums.channel_stride, some, some_columns, block, n);
          epilogue.write(some_columns, some, block, n, at, step, channel + c, true);
          continue;
        }
        const Acc* values = corner;
        int64_t stride = sums.channel_stride;
        if (!sums_planar) {
          transpose_block(corner, sums.column_stride, some_columns, some, block, kSegment + n);
          values = block;
          stride = kSegment + n;
        }
        if (step == 1) {
          epilogue.write(some, some_columns, values, stride, at, out.channel_stride, channel + c, false);
          continue;
        }
        for (int64_t i = 0; i < some; ++i) {  // one phase of a gradient: nothing follows it
          T* const to = out.values + at + i * out.channel_stride;
          for (int64_t k = 0; k < some_columns; ++k) to[k * step] = from_acc<T>(values[i * stride + k]);
        }
      }
    }
  }
}

// Takes a convolution's sums, tile by tile, from any thread.
template <class T>
class TileEpilogue {
 public:
  using Acc = acc_t<T>;

  struct Tiles {
    AxisTiles rows;
    AxisTiles columns;
  };

  virtual ~TileEpilogue() = default;
  // Tiles of about `pixels` pixels, or more, that cover `rows` x `columns` outputs; where it can be, their
  // sides are multiples of `unit`.
  virtual Tiles cut(int64_t rows, int64_t columns, int64_t pixels, int64_t unit) {
    const int64_t wide = std::max<int64_t>(1, pixels / unit / unit), across = ceil_div(columns, unit);
    AxisTiles column_tiles(columns, ceil_div(across, wide), unit);
    const int64_t high = std::max<int64_t>(1, pixels / unit / round_up(column_tiles.largest(), unit));
    return {AxisTiles(rows, ceil_div(ceil_div(rows, unit), high), unit), column_tiles};
  }
  // Whether neighbouring channels should come together: they are neighbours in memory.
  virtual bool wants_neighbouring_channels() const = 0;
  // Takes a tile of one image and of channels [channel, channel + channels), whose sums it may change.
  virtual void take(int64_t image, int64_t channel, int64_t channels, const math::CorrelationAxis& h,
                    const math::CorrelationAxis& w, const ConvTile& tile,
                    const TileSums<Acc>& sums) const = 0;
};

// Images that share a tile, `most` at a time, where one tile has all the pixels of one and as long as threads
// have as many tiles: what is summed in which order does not depend on it.
template <class Tiles>
EvenSplit batched(int64_t images, const Tiles& tiles, int64_t most) {
  if (tiles.rows.parts() * tiles.columns.parts() > 1) most = 1;
  const int64_t wanted = round_up(ceil_div(images, std::max<int64_t>(1, most)), ThreadPool().threads());
  return EvenSplit(images, std::max<int64_t>(1, std::min(images, wanted)));
}

// Writes the sums to an image.
template <class T>
class ImageEpilogue : public TileEpilogue<T> {
 public:
  ImageEpilogue(const RowEpilogue<T>& epilogue, const ImageTarget<T>& out) : epilogue_(epilogue), out_(out) {}

  bool wants_neighbouring_channels() const override { return out_.channel_stride == 1; }
  void take(int64_t image, int64_t channel, int64_t channels, const math::CorrelationAxis& h,
            const math::CorrelationAxis& w, const ConvTile& tile,
            const TileSums<acc_t<T>>& sums) const override {
    write_tile(epilogue_, out_, image, channel, channels, h, w, tile, sums);
  }

 private:
  const RowEpilogue<T>& epilogue_;
  ImageTarget<T> out_;
};

}  // namespace pyops::cpu
