// Winograd's F(2 x 2, 3 x 3) (math/winograd.h) on the slabs of a tile (conv2d_slab.h): the steps that forward
// pass, data gradient and weight gradient put together.
//
// A tile is cut into squares of 2 x 2 outputs. Its input is transformed to [channel][16][square], planar as
// the slab is, its sums are [16][square][output channel], and each of the 16 positions is a matrix product of
// its own. With 16 of 36 multiplications left, the products are as accurate as the direct sums: fewer
// roundings make up for those of the transforms.
//
// What the transforms mix, an infinity or a NaN spreads over: to neighbours that it would not have reached.
// The results then are not all finite; their reader must notice (not_finite) and sum directly instead.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../math/winograd.h"
#include "conv2d_correlate.h"

namespace pyops::cpu {

// Squares of a tile, about: they, 64 channels and the sums of as many fit the L2 cache.
inline constexpr int64_t kSquares = 64;
// Input channels that are summed in one go; longer sums would lose accuracy to the direct ones.
inline constexpr int64_t kWinogradDepth = 64;
// Input channels whose weights' gradients are summed together.
inline constexpr int64_t kGradientChannels = 128;
// Channels whose slab is filled and transformed in one go: it stays in the L1 cache.
inline constexpr int64_t kSlabChannels = 16;

// Both numbers of channels must be worth the transforms, and the image more than a few squares.
template <class Acc>
bool suits_winograd(const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t inputs,
                    int64_t outputs) {
  const auto is_plain = [](const math::CorrelationAxis& a) {
    return a.taps.size() == 3 && a.max_shift - a.min_shift == 2 && a.source_step == 1 && a.target_step == 1;
  };
  return std::is_same_v<Acc, float> && is_plain(h) && is_plain(w) && h.count * w.count >= kSquares &&
         std::min(inputs, outputs) >= 16 &&
         ChannelPanels<Acc>(outputs, Vec<Acc>::kLanes).vectors_along_channels;
}

// A tile's transformed input: [channel][16][square].
template <class Acc>
struct SquareLayout {
  static constexpr int64_t n = Vec<Acc>::kLanes;

  int64_t squares;  // and what the last row's vectors write behind them

  // Of the squares over rows x columns outputs. The last row of them is written in whole vectors.
  static constexpr SquareLayout of(int64_t rows, int64_t columns) {
    const int64_t wide = ceil_div(columns, 2);
    return {round_up((ceil_div(rows, 2) - 1) * wide + round_up(wide, n), n)};
  }
  // From channel to channel; a cache line more, lest the channels of a square should all fall into the same
  // set of the L1 cache.
  constexpr int64_t channel() const { return 16 * squares + n; }
};

// The outputs of the squares over a tile; some may hang over the end of the image.
inline ConvTile covered(const ConvTile& tile) {
  return {tile.row, round_up(tile.rows, 2), tile.column, round_up(tile.columns, 2)};
}

// Lanes 0, 2, 4, ... (odd = 0) or 1, 3, 5, ... of a and b.
template <int odd, class Acc, int... lane>
PYOPS_HD Vec<Acc> every_other(Vec<Acc> a, Vec<Acc> b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return Vec<Acc>(__builtin_shufflevector(a.v, b.v, (2 * lane + odd)...));
#else
  using Lanes = typename Vec<Acc>::NativeInt;
  return Vec<Acc>(__builtin_shuffle(a.v, b.v, Lanes{(2 * lane + odd)...}));
#endif
}

// Transforms the slab of `channels` channels for rows * columns squares. Reads up to two vectors behind the
// slab's rows, and leaves as much of any value behind the squares.
template <class Acc>
void transform_input(const Acc* slab, const SlabShape& shape, int64_t channels, int64_t rows, int64_t columns,
                     const SquareLayout<Acc>& layout, Acc* to) {
  using V = Vec<Acc>;
  constexpr int n = V::kLanes;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t row = 0; row < rows; ++row) {
      const Acc* const from = slab + c * shape.channel() + 2 * row * shape.columns;
      Acc* const row_to = to + c * layout.channel() + row * columns;
      for (int64_t j = 0; j < columns; j += n) {
        V input[4][4], transformed[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Acc* const at = from + i * shape.columns + 2 * j;
          const V a = load<Acc>(at), b = load<Acc>(at + n), c = load<Acc>(at + 2), d = load<Acc>(at + 2 + n);
          input[i][0] = every_other<0>(a, b, lanes);
          input[i][1] = every_other<1>(a, b, lanes);
          input[i][2] = every_other<0>(c, d, lanes);
          input[i][3] = every_other<1>(c, d, lanes);
        }
        math::winograd_2d(input, transformed, math::winograd_input<V>);
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) store(row_to + p * layout.squares + j, transformed[p / 4][p % 4]);
      }
    }
  }
}

// Input channels [first, first + count) of an image, for the squares of a tile, by way of a slab that stays
// in the L1 cache.
template <class T>
void transform_channels(const ImageSource<T>& x, int64_t image, int64_t first, int64_t count,
                        const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                        const SlabShape& shape, const ConvTile& squares, const SquareLayout<acc_t<T>>& layout,
                        acc_t<T>* to) {
  using Acc = acc_t<T>;
  Acc* const slab = conv_buffer<1, Acc>(kSlabChannels * shape.channel() + 4 * Vec<Acc>::kLanes);
  for (int64_t c = 0; c < count; c += kSlabChannels) {
    const int64_t some = std::min(kSlabChannels, count - c);
    fill_slab(x, image, first + c, some, h, w, shape, squares, slab);
    transform_input(slab, shape, some, squares.rows / 2, squares.columns / 2, layout,
                    to + c * layout.channel());
  }
}

// sums[16][square][channel] -> outputs [row][column][channel] of `line` columns; `padded` channels in both.
// Adds a NaN to `not_finite` if a result is not finite.
template <class Acc>
void transform_output(const Acc* sums, int64_t position_stride, int64_t padded, int64_t rows, int64_t columns,
                      int64_t line, Acc* to, Vec<Acc>& not_finite) {
  using V = Vec<Acc>;
  V check = not_finite;
  for (int64_t square = 0; square < rows * columns; ++square) {
    Acc* const corner = to + (square / columns * 2 * line + square % columns * 2) * padded;
    for (int64_t k = 0; k < padded; k += V::kLanes) {
      V product[4][4], output[2][2];
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p)
        product[p / 4][p % 4] = load<Acc>(sums + p * position_stride + square * padded + k);
      math::winograd_2d(product, output, math::winograd_output<V>);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        check += output[i / 2][i % 2] * Acc(0);
        store(corner + (i / 2 * line + i % 2) * padded + k, output[i / 2][i % 2]);
      }
    }
  }
  not_finite = check;
}

// A gradient [row][column][channel of `width`] of rows x columns outputs -> [square][channel of `width`] of
// each position, positions `position_stride` apart.
template <class Acc>
void transform_output_gradient(const Acc* grad, int64_t rows, int64_t columns, int64_t width,
                               int64_t position_stride, Acc* to) {
  using V = Vec<Acc>;
  const int64_t wide = ceil_div(columns, 2);
  for (int64_t square = 0; square < ceil_div(rows, 2) * wide; ++square) {
    const int64_t row = square / wide * 2, column = square % wide * 2;
    for (int64_t k = 0; k < width; k += V::kLanes) {
      V output[2][2], product[4][4];
      for (int i = 0; i < 4; ++i) {
        const bool exists = row + i / 2 < rows && column + i % 2 < columns;
        output[i / 2][i % 2] =
            exists ? load<Acc>(grad + ((row + i / 2) * columns + column + i % 2) * width + k) : V(Acc(0));
      }
      math::winograd_2d(output, product, math::winograd_output_gradient<V>);
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p)
        store(to + p * position_stride + square * width + k, product[p / 4][p % 4]);
    }
  }
}

// Weights [3][3][channel] -> [position] of the 16, `position_stride` apart.
template <class Acc>
void transform_weight(const Acc* weight, int64_t width, int64_t position_stride, Acc* to) {
  using V = Vec<Acc>;
  for (int64_t k = 0; k < width; k += V::kLanes) {
    V taps[3][3], positions[4][4];
    for (int i = 0; i < 9; ++i) taps[i / 3][i % 3] = load<Acc>(weight + i * width + k);
    math::winograd_2d(taps, positions, math::winograd_weight<V>);
    for (int p = 0; p < 16; ++p) store(to + p * position_stride + k, positions[p / 4][p % 4]);
  }
}

// The 16 positions of `padded` channels' gradients, one after the other -> [3][3][channel], in place. Whether
// all are finite.
template <class Acc>
bool transform_weight_gradient(int64_t padded, Acc* sums) {
  using V = Vec<Acc>;
  V not_finite = Acc(0);
  for (int64_t k = 0; k < padded; k += V::kLanes) {
    V positions[4][4], taps[3][3];
    for (int p = 0; p < 16; ++p) positions[p / 4][p % 4] = load<Acc>(sums + p * padded + k);
    math::winograd_2d(positions, taps, math::winograd_weight_gradient<V>);
    for (int i = 0; i < 9; ++i) {
      not_finite += taps[i / 3][i % 3] * Acc(0);
      store(sums + i * padded + k, taps[i / 3][i % 3]);
    }
  }
  return horizontal_sum(not_finite) == 0;
}

}  // namespace pyops::cpu
