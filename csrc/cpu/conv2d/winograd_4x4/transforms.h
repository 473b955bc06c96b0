// Winograd's F(4 x 4, 3 x 3) (math/winograd.h) for 16-bit convolutions: 36 of 144 multiplications are left,
// in float32. That takes half the time of all of them in pairs by VDPBF16PS, and results are as exact: they
// are rounded to 8 or 11 bits.
//
// Vectors lie along channels, unlike those of winograd/transforms.h: an image of 28 columns has 7 Winograd
// tiles in a row. A tile's patch of the input is brought into [row][column][kLanes channels], whatever the
// tensor's format, and transformed to [position][Winograd tile][channel].
//
// As there, an infinity or a NaN spreads: whoever reads the results must notice, and sum directly instead.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/simd/lanes.h"
#include "math/winograd.h"

namespace pyops::cpu::winograd_4x4 {

inline constexpr int64_t n = Vec<float>::kLanes;
inline constexpr int64_t kSide = 4, kInputSide = 6, kPositions = 36;
// Winograd tiles of a tile, at most. All weights pass by for each tile.
inline constexpr int64_t kTiles = 32;
// Channels whose transformed input fits the L2 cache beside the sums; a chain.
inline constexpr int64_t kBlock = 64;

inline int64_t tiles_of(int64_t rows, int64_t columns) {
  return ceil_div(rows, kSide) * ceil_div(columns, kSide);
}

// A tile of outputs in whole Winograd tiles, which may hang over the end of the image.
inline ConvTile in_whole_tiles(const ConvTile& tile) {
  return {tile.row, round_up(tile.rows, kSide), tile.column, round_up(tile.columns, kSide)};
}

// Channels in blocks of whole vectors but for the last one.
class ChannelBlocks {
 public:
  explicit ChannelBlocks(int64_t channels)
      : channels_(channels), vectors_(ceil_div(channels, n), ceil_div(channels, kBlock)) {}
  int64_t parts() const { return vectors_.parts; }
  int64_t begin(int64_t block) const { return n * vectors_.begin(block); }
  int64_t size(int64_t block) const { return std::min(padded(block), channels_ - begin(block)); }
  int64_t padded(int64_t block) const { return n * vectors_.size(block); }

 private:
  int64_t channels_;
  EvenSplit vectors_;
};

// Rows [row, row + rows) and columns of some channels, at most a vector of them, as [row][column][kLanes],
// zeros around the image. Element 0 is number `first_row` of its channel.
struct Patch {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t columns;
  int64_t height;  // of the image
  int64_t width;
};

template <class T>
void pack_patch(const ImageSource<T>& x, int64_t image, int64_t channel, int channels, const Patch& patch,
                float* to) {
  const InsideRange inside(patch.first_column, 1, patch.width, patch.columns);
  const int64_t origin = image * x.image_stride + channel * x.channel_stride;
  for (int64_t i = 0; i < patch.rows; ++i, to += patch.columns * n) {
    const int64_t row = patch.first_row + i;
    const bool exists = row >= 0 && row < patch.height;
    const int64_t begin = exists ? inside.begin : patch.columns, end = exists ? inside.end : patch.columns;
    std::fill(to, to + begin * n, 0.0f);
    std::fill(to + end * n, to + patch.columns * n, 0.0f);
    const int64_t at = origin + row * x.row_stride + patch.first_column * x.column_stride;
    if (x.channel_stride == 1) {
      for (int64_t j = begin; j < end; ++j) store(to + j * n, x.vector(at + j * x.column_stride, channels));
      continue;
    }
    for (int64_t j = begin; j < end; j += n) {
      const int some = static_cast<int>(std::min(n, end - j));
      Vec<float> square[n];
      for (int k = 0; k < n; ++k) {
        const int64_t from = at + k * x.channel_stride + j;
        __builtin_prefetch(x.values + from + n * x.channel_stride);
        if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + from + n * x.channel_stride);
        square[k] = k < channels ? x.vector(from, some) : Vec<float>(0.0f);
      }
      transpose<float>(square);
      for (int k = 0; k < some; ++k) store(to + (j + k) * n, square[k]);
    }
  }
}

// A patch's Winograd tiles, rows x columns of them -> to[position * position_stride + tile * line].
inline void transform_input(const float* patch, int64_t patch_columns, int64_t rows, int64_t columns,
                            int64_t position_stride, int64_t line, float* to) {
  using V = Vec<float>;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    const float* const corner = patch + (tile / columns * kSide * patch_columns + tile % columns * kSide) * n;
    V input[kInputSide][kInputSide], transformed[kInputSide][kInputSide];
#pragma GCC unroll 36
    for (int i = 0; i < kPositions; ++i)
      input[i / kInputSide][i % kInputSide] =
          load<float>(corner + (i / kInputSide * patch_columns + i % kInputSide) * n);
    math::winograd_2d(input, transformed, [](const auto& d, auto& u) { math::winograd_input(d, u); });
#pragma GCC unroll 36
    for (int i = 0; i < kPositions; ++i)
      store(to + i * position_stride + tile * line, transformed[i / kInputSide][i % kInputSide]);
  }
}

// products[position][tile][channel] -> sums [row][column][channel] of rows x columns Winograd tiles; `padded`
// channels in both. Adds a NaN to `not_finite` if a result is not finite.
inline void transform_output(const float* products, int64_t position_stride, int64_t padded, int64_t rows,
                             int64_t columns, float* sums, Vec<float>& not_finite) {
  using V = Vec<float>;
  const int64_t line = columns * kSide * padded;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    float* const corner = sums + tile / columns * kSide * line + tile % columns * kSide * padded;
    for (int64_t k = 0; k < padded; k += n) {
      V product[kInputSide][kInputSide], output[kSide][kSide];
#pragma GCC unroll 36
      for (int i = 0; i < kPositions; ++i)
        product[i / kInputSide][i % kInputSide] =
            load<float>(products + i * position_stride + tile * padded + k);
      math::winograd_2d(product, output, [](const auto& m, auto& y) { math::winograd_output(m, y); });
#pragma GCC unroll 16
      for (int i = 0; i < kSide * kSide; ++i) {
        not_finite += output[i / kSide][i % kSide] * 0.0f;
        store(corner + i / kSide * line + i % kSide * padded + k, output[i / kSide][i % kSide]);
      }
    }
  }
}

// A patch of a gradient, rows x columns Winograd tiles -> to[position * position_stride + tile * line].
inline void transform_output_gradient(const float* patch, int64_t rows, int64_t columns,
                                      int64_t position_stride, int64_t line, float* to) {
  using V = Vec<float>;
  const int64_t patch_columns = kSide * columns;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    const float* const corner = patch + (tile / columns * kSide * patch_columns + tile % columns * kSide) * n;
    V output[kSide][kSide], product[kInputSide][kInputSide];
#pragma GCC unroll 16
    for (int i = 0; i < kSide * kSide; ++i)
      output[i / kSide][i % kSide] = load<float>(corner + (i / kSide * patch_columns + i % kSide) * n);
    math::winograd_2d(output, product, [](const auto& y, auto& m) { math::winograd_output_gradient(y, m); });
#pragma GCC unroll 36
    for (int i = 0; i < kPositions; ++i)
      store(to + i * position_stride + tile * line, product[i / kInputSide][i % kInputSide]);
  }
}

// The positions of `padded` channels' gradients, one after the other -> taps[3][3][channel]. Whether all are
// finite.
inline bool transform_weight_gradient(int64_t padded, const float* sums, float* taps) {
  using V = Vec<float>;
  V not_finite = 0.0f;
  for (int64_t k = 0; k < padded; k += n) {
    V positions[kInputSide][kInputSide], weight[3][3];
    for (int i = 0; i < kPositions; ++i)
      positions[i / kInputSide][i % kInputSide] = load<float>(sums + i * padded + k);
    math::winograd_2d(positions, weight,
                      [](const auto& u, auto& g) { math::winograd_weight_gradient(u, g); });
    for (int i = 0; i < 9; ++i) {
      not_finite += weight[i / 3][i % 3] * 0.0f;
      store(taps + i * padded + k, weight[i / 3][i % 3]);
    }
  }
  return horizontal_sum(not_finite) == 0;
}

// The weights of 3 x 3 taps, a vector of channels each -> the positions, `position_stride` apart.
inline void transform_weight(const float* const (&weight)[9], int64_t position_stride, float* to) {
  using V = Vec<float>;
  V taps[3][3], positions[kInputSide][kInputSide];
  for (int i = 0; i < 9; ++i) taps[i / 3][i % 3] = load<float>(weight[i]);
  math::winograd_2d(taps, positions, [](const auto& g, auto& u) { math::winograd_weight(g, u); });
  for (int i = 0; i < kPositions; ++i)
    store(to + i * position_stride, positions[i / kInputSide][i % kInputSide]);
}

}  // namespace pyops::cpu::winograd_4x4
