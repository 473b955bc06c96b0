// Winograd's F(2 x 2, 3 x 3) and F(2 x 2, 2 x 2) (math/winograd.h) on the packed input of a tile
// (pack_input.h): the transforms that the correlation (winograd.cpp) and the weight gradient
// (weight_gradient.h) share.
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
// A kernel that moves in steps of 2 is a sum of sub-kernels as well, of at most 2 x 2 taps for each phase of
// the input: 3 x 3 taps are four of them. There are 9 positions, to which they contribute 25 products of 36.
//
// The transforms spread an infinity or a NaN to neighbours that it would not reach. The results are then not
// all finite: whoever reads them must notice (not_finite) and sum directly instead.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

// How the taps of a part of an axis are transformed: up to three of them that move in steps of 1, or two or
// one of those that meet one phase of the input.
template <int taps>
struct AxisTransform {
  static constexpr int side = 3, most = 2;  // positions, taps
  static constexpr bool has(int position) { return taps != 1 || position != 1; }
  template <class V>
  static void input(const V (&d)[side], V (&to)[side]) {
    taps == 1 ? math::winograd_single_input(d, to) : math::winograd_input(d, to);
  }
  template <class V>
  static void weight(const V (&g)[most], V (&to)[side]) {
    taps == 1 ? math::winograd_single_weight(g, to) : math::winograd_weight(g, to);
  }
};
template <>
struct AxisTransform<3> {
  static constexpr int side = 4, most = 3;
  static constexpr bool has(int) { return true; }
  template <class V>
  static void input(const V (&d)[side], V (&to)[side]) {
    math::winograd_input(d, to);
  }
  template <class V>
  static void weight(const V (&g)[most], V (&to)[side]) {
    math::winograd_weight(g, to);
  }
};

// A kernel as sub-kernels: of at most 3 x 3 taps where it moves in steps of 1, the last along an axis has two
// or three; where it moves in steps of 2, of at most 2 x 2 taps that meet the same phase of the input.
class SubKernels {
 public:
  SubKernels(const math::CorrelationAxis& h, const math::CorrelationAxis& w)
      : most_(h.source_step == 1 ? 3 : 2), down_(h, most_), across_(w, most_) {}

  int64_t count() const { return down_.count() * across_.count(); }
  // Of an axis.
  int64_t most_taps() const { return most_; }
  int64_t side() const { return most_ + 1; }
  int64_t positions() const { return side() * side(); }
  int64_t taps_down(int64_t sub_kernel) const { return down(sub_kernel).taps; }
  int64_t taps_across(int64_t sub_kernel) const { return across(sub_kernel).taps; }
  // Where it reads a packed input.
  int64_t corner(int64_t sub_kernel, const PackedInputShape& shape) const {
    const Part &r = down(sub_kernel), &s = across(sub_kernel);
    return (r.phase * shape.column_phases + s.phase) * shape.plane() + r.shift * shape.columns + s.shift;
  }
  // The sub-kernel of a tap, and the tap's number within it.
  int64_t sub_kernel(const math::ConvTap& r, const math::ConvTap& s) const {
    return down_.part_of(r) * across_.count() + across_.part_of(s);
  }
  int64_t tap(const math::ConvTap& r, const math::ConvTap& s) const {
    return down_.tap(r) * most_ + across_.tap(s);
  }
  // Whether a sub-kernel has products at a position: two of three taps have none at the last, which knows the
  // third alone, one of two has none in the middle, where both are added up.
  bool has(int64_t sub_kernel, int64_t position) const {
    const int64_t lacking = most_ == 3 ? 3 : 1;
    return !(down(sub_kernel).taps < most_ && position / side() == lacking) &&
           !(across(sub_kernel).taps < most_ && position % side() == lacking);
  }

 private:
  struct Part {
    int64_t phase;  // of the source
    int64_t shift;  // of its first tap, from the least
    int64_t taps;
  };

  class Axis {
   public:
    Axis(const math::CorrelationAxis& axis, int64_t most) : least_(axis.min_shift) {
      for (int64_t phase = 0; phase < axis.phases; ++phase) {
        int64_t taps = 0, first = axis.max_shift;
        for (const math::ConvTap& tap : axis.taps) {
          if (tap.phase != phase) continue;
          ++taps;
          first = std::min(first, tap.shift);
        }
        for (int64_t i = 0; i < taps; i += most)
          parts_.push_back({phase, first - least_ + i, std::min(most, taps - i)});
      }
    }
    int64_t count() const { return static_cast<int64_t>(parts_.size()); }
    const Part& operator[](int64_t part) const { return parts_[part]; }
    int64_t part_of(const math::ConvTap& tap) const {
      int64_t part = 0;
      while (parts_[part].phase != tap.phase || place(tap, part) >= parts_[part].taps) ++part;
      return part;
    }
    int64_t tap(const math::ConvTap& tap) const { return place(tap, part_of(tap)); }

   private:
    int64_t place(const math::ConvTap& tap, int64_t part) const {
      return tap.shift - least_ - parts_[part].shift;
    }

    int64_t least_;
    std::vector<Part> parts_;
  };

  const Part& down(int64_t sub_kernel) const { return down_[sub_kernel / across_.count()]; }
  const Part& across(int64_t sub_kernel) const { return across_[sub_kernel % across_.count()]; }

  int64_t most_;
  Axis down_;
  Axis across_;
};

// Calls f(down, across) with the AxisTransforms of a sub-kernel.
template <class F>
void with_transforms(const SubKernels& sub_kernels, int64_t sub_kernel, const F& f) {
  if (sub_kernels.most_taps() == 3) return f(AxisTransform<3>{}, AxisTransform<3>{});
  const bool low = sub_kernels.taps_down(sub_kernel) == 1;
  const bool narrow = sub_kernels.taps_across(sub_kernel) == 1;
  if (low)
    return narrow ? f(AxisTransform<1>{}, AxisTransform<1>{}) : f(AxisTransform<1>{}, AxisTransform<2>{});
  narrow ? f(AxisTransform<2>{}, AxisTransform<1>{}) : f(AxisTransform<2>{}, AxisTransform<2>{});
}

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
template <class Down, class Across, class Acc>
void transform_input(const Acc* packed_input, const PackedInputShape& shape, int64_t channels, int64_t rows,
                     int64_t columns, int64_t position_stride, int64_t channel_stride, Acc* to) {
  using V = Vec<Acc>;
  constexpr int n = V::kLanes, side = Down::side;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t row = 0; row < rows; ++row) {
      const Acc* const from = packed_input + c * shape.channel() + 2 * row * shape.columns;
      Acc* const row_to = to + c * channel_stride + row * columns;
      for (int64_t j = 0; j < columns; j += n) {
        V input[side][side], transformed[side][side];
#pragma GCC unroll 4
        for (int i = 0; i < side; ++i) {
          const Acc* const at = from + i * shape.columns + 2 * j;
          const V a = load<Acc>(at), b = load<Acc>(at + n), c = load<Acc>(at + 2), d = load<Acc>(at + 2 + n);
          input[i][0] = every_other<0>(a, b);
          input[i][1] = every_other<1>(a, b);
          input[i][2] = every_other<0>(c, d);
          if constexpr (side == 4) input[i][3] = every_other<1>(c, d);
        }
        math::winograd_2d(input, transformed, Down::template input<V>, Across::template input<V>);
#pragma GCC unroll 16
        for (int p = 0; p < side * side; ++p) {
          if (Down::has(p / side) && Across::has(p % side))
            store(row_to + p * position_stride + j, transformed[p / side][p % side]);
        }
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
      with_transforms(sub_kernels, sub_kernel, [&](auto down, auto across) {
        transform_input<decltype(down), decltype(across)>(
            packed_input + sub_kernels.corner(sub_kernel, shape), shape, some, covered.rows / 2,
            covered.columns / 2, strides.position, strides.channel,
            to + c * strides.channel + sub_kernel * strides.sub_kernel);
      });
    }
  }
}

// sums[position][tile][channel] -> outputs [row][column][channel] of `line` columns; `padded` channels in
// both. Adds a NaN to `not_finite` if a result is not finite.
template <int side, class Acc>
void transform_output(const Acc* sums, int64_t position_stride, int64_t padded, int64_t rows, int64_t columns,
                      int64_t line, Acc* to, Vec<Acc>& not_finite) {
  using V = Vec<Acc>;
  V check = not_finite;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    Acc* const corner = to + (tile / columns * 2 * line + tile % columns * 2) * padded;
    for (int64_t k = 0; k < padded; k += V::kLanes) {
      V product[side][side], output[2][2];
#pragma GCC unroll 16
      for (int p = 0; p < side * side; ++p)
        product[p / side][p % side] = load<Acc>(sums + p * position_stride + tile * padded + k);
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

// A sub-kernel's weights, `width` channels of each tap -> the positions, each to its own place; null where it
// is not needed.
template <class Down, class Across, class Acc>
void transform_weight(const Acc* const* weight, int64_t width, Acc* const* to) {
  using V = Vec<Acc>;
  constexpr int side = Down::side, most = Down::most;
  for (int64_t k = 0; k < width; k += V::kLanes) {
    V taps[most][most], positions[side][side];
    for (int i = 0; i < most * most; ++i) taps[i / most][i % most] = load<Acc>(weight[i] + k);
    math::winograd_2d(taps, positions, Down::template weight<V>, Across::template weight<V>);
    for (int p = 0; p < side * side; ++p) {
      if (to[p]) store(to[p] + k, positions[p / side][p % side]);
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
