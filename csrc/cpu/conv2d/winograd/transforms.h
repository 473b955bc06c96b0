// Winograd's F(2 x 2, 3 x 3) (math/winograd.h) on the packed input of a tile (pack_input.h): the transforms
// that the correlation (winograd.cpp) and the weight gradient (weight_gradient.h) share.
//
// A tile of outputs is cut into Winograd tiles of 2 x 2, those of several images where images are small. The
// input is transformed to [channel][16][Winograd tile], planar as the packed input is; the sums are
// [16][Winograd tile][output channel], and each of the 16 positions is a matrix product of its own. 16 of 36
// multiplications are left. The products are as accurate as direct sums: fewer roundings make up for those of
// the transforms.
//
// A larger kernel is a sum of sub-kernels of at most 3 x 3 taps. Each reads the same source further down or
// to the right, so one channel counts as several. Of 5 x 5 taps' 100 multiplications 49 are left.
//
// The transforms spread an infinity or a NaN to neighbours that it would not reach. The results are then not
// all finite: whoever reads them must notice (not_finite) and sum directly instead.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/lanes.h"
#include "math/winograd.h"

namespace pyops::cpu {

// Winograd tiles of a tile of outputs, about: with 64 channels and the sums of as many they fit the L2 cache.
inline constexpr int64_t kWinogradTiles = 64;
// Channels whose input is packed and transformed in one go: it stays in the L1 cache.
inline constexpr int64_t kPackedChannels = 16;

// A kernel, whose taps are a step of 1 apart, as sub-kernels of 3 x 3; the last along an axis may have two.
class SubKernels {
 public:
  SubKernels(const math::CorrelationAxis& h, const math::CorrelationAxis& w)
      : down_(ceil_div(taps(h), 3)),
        across_(ceil_div(taps(w), 3)),
        last_is_low_(taps(h) % 3 != 0),
        last_is_narrow_(taps(w) % 3 != 0) {}

  int64_t count() const { return down_ * across_; }
  // Of a sub-kernel's first tap.
  int64_t row(int64_t sub_kernel) const { return sub_kernel / across_ * 3; }
  int64_t column(int64_t sub_kernel) const { return sub_kernel % across_ * 3; }
  // The sub-kernel of a tap, and the tap's number within it.
  int64_t sub_kernel(int64_t row, int64_t column) const { return row / 3 * across_ + column / 3; }
  static int64_t tap(int64_t row, int64_t column) { return row % 3 * 3 + column % 3; }
  // Whether a sub-kernel has products at a position: the last along an axis knows nothing but the third taps.
  bool has(int64_t sub_kernel, int64_t position) const {
    const bool lacks_row = last_is_low_ && sub_kernel / across_ == down_ - 1;
    const bool lacks_column = last_is_narrow_ && sub_kernel % across_ == across_ - 1;
    return !(lacks_row && position / 4 == 3) && !(lacks_column && position % 4 == 3);
  }

 private:
  static int64_t taps(const math::CorrelationAxis& axis) { return static_cast<int64_t>(axis.taps.size()); }

  int64_t down_;
  int64_t across_;
  bool last_is_low_;
  bool last_is_narrow_;
};

// Winograd tiles over rows x columns outputs.
inline int64_t winograd_tiles_of(int64_t rows, int64_t columns) {
  return ceil_div(rows, 2) * ceil_div(columns, 2);
}

// A tile's transformed input: [channel][16][Winograd tile].
template <class Acc>
struct WinogradLayout {
  static constexpr int64_t n = Vec<Acc>::kLanes;

  int64_t tiles;  // and what the last row's vectors write behind them

  // Of the tiles over rows x columns outputs of each image. The last row of them is written in whole
  // vectors.
  static constexpr WinogradLayout of(int64_t images, int64_t rows, int64_t columns) {
    const int64_t wide = ceil_div(columns, 2);
    return {round_up((images * ceil_div(rows, 2) - 1) * wide + round_up(wide, n), n)};
  }
  // From channel to channel. With one cache line more, the channels of a Winograd tile do not all fall into
  // one set of the L1 cache.
  constexpr int64_t channel() const { return 16 * tiles + n; }
};

// A tile of outputs in whole Winograd tiles, which may hang over the end of the image.
inline ConvTile in_winograd_tiles(const ConvTile& tile) {
  return {tile.row, round_up(tile.rows, 2), tile.column, round_up(tile.columns, 2)};
}

// Transforms the packed input of `channels` channels for rows * columns tiles, positions position_stride
// apart. Reads up to two vectors behind the packed input's rows, and leaves as much of any value behind the
// tiles.
template <class Acc>
void transform_input(const Acc* packed_input, const PackedInputShape& shape, int64_t channels, int64_t rows,
                     int64_t columns, int64_t position_stride, int64_t channel_stride, Acc* to) {
  using V = Vec<Acc>;
  constexpr int n = V::kLanes;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t row = 0; row < rows; ++row) {
      const Acc* const from = packed_input + c * shape.channel() + 2 * row * shape.columns;
      Acc* const row_to = to + c * channel_stride + row * columns;
      for (int64_t j = 0; j < columns; j += n) {
        V input[4][4], transformed[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Acc* const at = from + i * shape.columns + 2 * j;
          const V a = load<Acc>(at), b = load<Acc>(at + n), c = load<Acc>(at + 2), d = load<Acc>(at + 2 + n);
          input[i][0] = every_other<0>(a, b);
          input[i][1] = every_other<1>(a, b);
          input[i][2] = every_other<0>(c, d);
          input[i][3] = every_other<1>(c, d);
        }
        math::winograd_2d(input, transformed,
                          [](const auto& from, auto& to) { math::winograd_input(from, to); });
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) store(row_to + p * position_stride + j, transformed[p / 4][p % 4]);
      }
    }
  }
}

// Where the transformed input goes: of a sub-kernel of the kernel at a position.
struct WinogradStrides {
  int64_t channel;
  int64_t sub_kernel;
  int64_t position;
};

// Input channels [first, first + count) of an image, for the Winograd tiles of `covered`, by way of a packed
// input that stays in the L1 cache. A sub-kernel that lacks taps also reads where they would, for positions
// that nobody needs.
template <class T>
void transform_channels(const ImageSource<T>& x, int64_t image, int64_t first, int64_t count,
                        const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                        const SubKernels& sub_kernels, const PackedInputShape& shape, const ConvTile& covered,
                        const WinogradStrides& strides, acc_t<T>* to) {
  using Acc = acc_t<T>;
  const int64_t behind = shape.columns + 4 * Vec<Acc>::kLanes;
  Scratch scratch;
  Acc* const packed_input = scratch.take<Acc>(kPackedChannels * shape.channel() + behind);
  for (int64_t c = 0; c < count; c += kPackedChannels) {
    const int64_t some = std::min(kPackedChannels, count - c);
    pack_input(x, image, first + c, some, h, w, shape, covered, packed_input);
    for (int64_t sub_kernel = 0; sub_kernel < sub_kernels.count(); ++sub_kernel) {
      const int64_t corner = sub_kernels.row(sub_kernel) * shape.columns + sub_kernels.column(sub_kernel);
      transform_input(packed_input + corner, shape, some, covered.rows / 2, covered.columns / 2,
                      strides.position, strides.channel,
                      to + c * strides.channel + sub_kernel * strides.sub_kernel);
    }
  }
}

// sums[16][tile][channel] -> outputs [row][column][channel] of `line` columns; `padded` channels in both.
// Adds a NaN to `not_finite` if a result is not finite.
template <class Acc>
void transform_output(const Acc* sums, int64_t position_stride, int64_t padded, int64_t rows, int64_t columns,
                      int64_t line, Acc* to, Vec<Acc>& not_finite) {
  using V = Vec<Acc>;
  V check = not_finite;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    Acc* const corner = to + (tile / columns * 2 * line + tile % columns * 2) * padded;
    for (int64_t k = 0; k < padded; k += V::kLanes) {
      V product[4][4], output[2][2];
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p)
        product[p / 4][p % 4] = load<Acc>(sums + p * position_stride + tile * padded + k);
      math::winograd_2d(product, output, [](const auto& from, auto& to) { math::winograd_output(from, to); });
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        check += output[i / 2][i % 2] * Acc(0);
        store(corner + (i / 2 * line + i % 2) * padded + k, output[i / 2][i % 2]);
      }
    }
  }
  not_finite = check;
}

// A gradient [row][column][channel of `width`] of rows x columns outputs -> [tile][channel of `width`] of
// each position, positions `position_stride` apart.
template <class Acc>
void transform_output_gradient(const Acc* grad, int64_t rows, int64_t columns, int64_t width,
                               int64_t position_stride, Acc* to) {
  using V = Vec<Acc>;
  const int64_t wide = ceil_div(columns, 2);
  for (int64_t tile = 0; tile < ceil_div(rows, 2) * wide; ++tile) {
    const int64_t row = tile / wide * 2, column = tile % wide * 2;
    for (int64_t k = 0; k < width; k += V::kLanes) {
      V output[2][2], product[4][4];
      for (int i = 0; i < 4; ++i) {
        const bool exists = row + i / 2 < rows && column + i % 2 < columns;
        output[i / 2][i % 2] =
            exists ? load<Acc>(grad + ((row + i / 2) * columns + column + i % 2) * width + k) : V(Acc(0));
      }
      math::winograd_2d(output, product,
                        [](const auto& from, auto& to) { math::winograd_output_gradient(from, to); });
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) store(to + p * position_stride + tile * width + k, product[p / 4][p % 4]);
    }
  }
}

// The weights of 3 x 3 taps, `width` channels each -> the 16 positions, each to its own place; null where it
// is not needed.
template <class Acc>
void transform_weight(const Acc* const (&weight)[9], int64_t width, Acc* const (&to)[16]) {
  using V = Vec<Acc>;
  for (int64_t k = 0; k < width; k += V::kLanes) {
    V taps[3][3], positions[4][4];
    for (int i = 0; i < 9; ++i) taps[i / 3][i % 3] = load<Acc>(weight[i] + k);
    math::winograd_2d(taps, positions, [](const auto& from, auto& to) { math::winograd_weight(from, to); });
    for (int p = 0; p < 16; ++p) {
      if (to[p]) store(to[p] + k, positions[p / 4][p % 4]);
    }
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
    math::winograd_2d(positions, taps,
                      [](const auto& from, auto& to) { math::winograd_weight_gradient(from, to); });
    for (int i = 0; i < 9; ++i) {
      not_finite += taps[i / 3][i % 3] * Acc(0);
      store(sums + i * padded + k, taps[i / 3][i % 3]);
    }
  }
  return horizontal_sum(not_finite) == 0;
}

}  // namespace pyops::cpu
