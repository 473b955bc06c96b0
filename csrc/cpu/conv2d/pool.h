// Pools the output of a convolution tile by tile, where it lies in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "binding/conv2d_max_pool2d.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/epilogue/activation.h"
#include "cpu/pooling/max_pool_channels.h"
#include "cpu/pooling/max_pool_rows.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// Writes positions, which come as numbers among the sums' kind, as bytes.
template <class T>
class PositionEpilogue : public RowEpilogue<T> {
 public:
  using Acc = acc_t<T>;

  explicit PositionEpilogue(uint8_t* argmax) : argmax_(argmax) {}

  void write(int64_t rows, int64_t length, const Acc* sums, int64_t sums_stride, int64_t at, int64_t stride,
             int64_t, bool) const override {
    for (int64_t r = 0; r < rows; ++r, sums += sums_stride, at += stride) {
      for_each_vector<Acc>(length, [&](int64_t i, int lanes) {
        store_positions<Acc>(argmax_ + at + i, load_positions<Acc>(sums + i, lanes), lanes);
      });
    }
  }

 private:
  uint8_t* argmax_;
};

// An axis of windows cut into parts, each a tile of the convolution's outputs with what its windows span.
class WindowTiles {
 public:
  WindowTiles(const math::SlidingAxis& axis, int64_t most_outputs)
      : axis_(axis), windows_(axis.out, ceil_div(axis.out, fitting(axis, most_outputs))) {}

  // Outputs that neighbouring windows span, at most.
  static int64_t span(const math::SlidingAxis& axis, int64_t windows) {
    return std::min(axis.in, (windows - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1);
  }

  AxisTiles outputs() const {
    AxisTiles tiles;
    for (int64_t part = 0; part < windows_.parts; ++part) {
      const int64_t start = axis_.start(first(part));
      const int64_t begin = std::max<int64_t>(0, start);
      const int64_t reach = (windows_.size(part) - 1) * axis_.stride + (axis_.kernel - 1) * axis_.dilation;
      tiles.add(begin, std::min(axis_.in, start + reach + 1) - begin);
    }
    return tiles;
  }

  int64_t first(int64_t part) const { return windows_.begin(part); }
  int64_t largest() const { return windows_.size(0); }

  // The windows of a tile, as if its outputs were all there are.
  math::SlidingAxis inside(int64_t part, int64_t begin, int64_t size) const {
    math::SlidingAxis axis = axis_;
    axis.in = size;
    axis.out = windows_.size(part);
    axis.padding = begin - axis_.start(first(part));
    return axis;
  }

 private:
  static int64_t fitting(const math::SlidingAxis& axis, int64_t outputs) {
    const int64_t room = outputs - span(axis, 1);
    return std::min(axis.out, room < 0 ? 1 : room / axis.stride + 1);
  }

  math::SlidingAxis axis_;
  EvenSplit windows_;
};

// Bias, activation and maxima, with their places and, where `saved` is given, what the activation was given
// there. Argmax and saved may be null and are laid out as the output.
template <class T>
class PoolEpilogue : public TileEpilogue<T> {
 public:
  using Acc = acc_t<T>;
  using typename TileEpilogue<T>::Tiles;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  PoolEpilogue(const Windows& windows, const Acc* bias, const AnyActivation<Acc>& activation,
               const ImageTarget<T>& out, uint8_t* argmax, T* saved)
      : height_(windows.height()),
        width_(windows.width()),
        bias_(bias),
        activation_(activation),
        out_(out),
        argmax_(argmax),
        saved_(saved),
        down_(height_, height_.in),
        across_(width_, width_.in) {}

  Tiles cut(int64_t, int64_t, int64_t pixels, int64_t) override {
    // What windows of neighbouring tiles share is computed twice: larger tiles share less.
    const bool overlap = WindowTiles::span(height_, 1) > height_.stride;
    const int64_t most = overlap ? 2 * pixels : pixels;
    across_ = WindowTiles(width_, std::max<int64_t>(1, most / WindowTiles::span(height_, 1)));
    down_ = WindowTiles(height_, most / WindowTiles::span(width_, across_.largest()));
    return {down_.outputs(), across_.outputs()};
  }

  bool wants_neighbouring_channels() const override { return out_.channel_stride == 1; }

  void take(int64_t image, int64_t channel, int64_t channels, const math::CorrelationAxis& h,
            const math::CorrelationAxis& w, const ConvTile& tile, const TileSums<Acc>& sums) const override {
    const math::SlidingAxis height = down_.inside(tile.row_part, tile.row, tile.rows);
    const math::SlidingAxis width = across_.inside(tile.column_part, tile.column, tile.columns);
    const bool planar = sums.column_stride == 1;
    const int64_t pitch = planar ? 1 : sums.column_stride;
    const int64_t line = planar ? round_up(width.out, n) : width.out * pitch;
    const int64_t size = height.out * line * (planar ? channels : 1);
    const PoolScratch scratch(size, saves_input_elsewhere() ? sums_size(channels, tile, sums) : 0);
    Acc *const values = scratch.values, *const positions = scratch.positions, *const inputs = scratch.inputs;

    add_bias(channel, channels, tile, sums);
    pool(height, width, channels,
         {activated(channels, tile, sums, scratch.activated), sums.row_stride, sums.column_stride,
          sums.channel_stride},
         line, values, positions);
    const TileSums<Acc> layout{nullptr, line, pitch, planar ? height.out * line : 1};
    if (is(math::ActivationKind::kRelu)) rectify(size, values, positions);
    if (height.dilation > 1 || width.dilation > 1) {
      for_each_empty(height, width, [&](int64_t row, int64_t column) {
        const int64_t at = row * layout.row_stride + column * layout.column_stride;
        for (int64_t c = 0; c < channels; ++c) {
          values[at + c * layout.channel_stride] = -math::infinity<Acc>();
          positions[at + c * layout.channel_stride] = kNoGradient;
        }
      });
    }
    if (saved_) pick_inputs(height, width, channels, sums, layout, positions, inputs);

    const ConvTile pooled{down_.first(tile.row_part), height.out, across_.first(tile.column_part), width.out};
    const auto write = [&](const RowEpilogue<T>& epilogue, Acc* from) {
      write_tile(epilogue, out_, image, channel, channels, h, w, pooled,
                 TileSums<Acc>{from, layout.row_stride, layout.column_stride, layout.channel_stride});
    };
    ActivationEpilogue<T, math::Identity<Acc>> plain{{}};
    plain.output = out_.values;
    write(plain, values);
    if (argmax_) write(PositionEpilogue<T>(argmax_), positions);
    if (!saved_) return;
    plain.output = saved_;
    write(plain, inputs);
  }

 private:
  // A thread's memory for a tile.
  struct PoolScratch {
    PoolScratch(int64_t pooled_size, int64_t activated_size)
        // Vectors of positions, and transposition, reach behind the end.
        : values(memory.take<Acc>(3 * pooled_size + n * n)),
          positions(values + pooled_size),
          inputs(positions + pooled_size),
          activated(memory.take<Acc>(activated_size + n * n)) {}
    Scratch memory;
    Acc* values;
    Acc* positions;
    Acc* inputs;  // of the activation at the maxima
    Acc* activated;
  };

  bool is(math::ActivationKind kind) const { return activation_.params.is(kind); }

  void add_bias(int64_t channel, int64_t channels, const ConvTile& tile, const TileSums<Acc>& sums) const {
    if (bias_ == nullptr) return;
    const Acc* const bias = bias_ + channel;
    if (sums.column_stride == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        Acc* const plane = sums.values + c * sums.channel_stride;
        for (int64_t i = 0; i < sums.channel_stride; i += n) store(plane + i, load<Acc>(plane + i) + bias[c]);
      }
      return;
    }
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t column = 0; column < tile.columns; ++column) {
        Acc* const pixel = sums.values + row * sums.row_stride + column * sums.column_stride;
        for_each_vector<Acc>(channels, [&](int64_t c, int lanes) {
          store_lanes(pixel + c, load_lanes(pixel + c, lanes) + load_lanes(bias + c, lanes), lanes);
        });
      }
    }
  }

  bool saves_input_elsewhere() const { return saved_ && !keeps_nothing(activation_.params); }
  static int64_t sums_size(int64_t channels, const ConvTile& tile, const TileSums<Acc>& sums) {
    return sums.column_stride == 1 ? channels * sums.channel_stride : tile.rows * sums.row_stride;
  }

  // The values to be pooled, in the place of the sums or, where those are to be saved, in `elsewhere`. ReLU,
  // which the maximum can wait for, is not applied yet.
  Acc* activated(int64_t channels, const ConvTile& tile, const TileSums<Acc>& sums, Acc* elsewhere) const {
    if (keeps_nothing(activation_.params)) return sums.values;
    const int64_t count = sums_size(channels, tile, sums);
    Acc* const to = saves_input_elsewhere() ? elsewhere : sums.values;
    if (to != sums.values) std::copy(sums.values, sums.values + count, to);
    activation_.forward(to, count);
    return to;
  }

  static void pool(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels,
                   const TileSums<Acc>& x, int64_t line, Acc* values, Acc* positions) {
    if (x.column_stride == 1) {
      const bool inside =
          width.padding == 0 && (width.out - 1) * width.stride + WindowTiles::span(width, 1) <= width.in;
      if (inside && width.stride == 1)
        return pool_lines<1>(height, width, channels, x, line, values, positions);
      if (inside && width.stride == 2)
        return pool_lines<2>(height, width, channels, x, line, values, positions);
      MaxPoolRows<Acc, Acc> rows(height, width, 1, x.row_stride);
      for (int64_t row = 0; row < channels * height.out; ++row)
        rows.forward(x.values, row, values + row * line, positions + row * line);
      return;
    }
    MaxPoolChannels<Acc, Acc> rows(height, width, round_up(channels, n), x.column_stride,
                                   x.row_stride / x.column_stride);
    for (int64_t row = 0; row < height.out; ++row)
      rows.forward(x.values, row, values + row * line, positions + row * line);
  }

  // Windows that lie inside their rows, read where the sums are. Vectors reach behind the rows; what they
  // find there ends up behind the maxima.
  template <int kStride>
  static void pool_lines(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels,
                         const TileSums<Acc>& x, int64_t line, Acc* values, Acc* positions) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t row = 0; row < height.out; ++row, values += line, positions += line) {
        const math::Range taps = height.taps(row);
        const Acc* const top = x.values + c * x.channel_stride + height.start(row) * x.row_stride;
        for (int64_t i = 0; i < width.out; i += n) {
          Positions<Acc> at = all_positions<Acc>(taps.first * width.kernel);
          auto maximum = MaximumLanes<Acc>::starting_at(at);
          for (int64_t tap = taps.first; tap < taps.end; ++tap) {
            const Acc* const from = top + tap * height.dilation * x.row_stride + i * kStride;
            push_line<kStride>(from, width, at, maximum);
          }
          store(values + i, maximum.value);
          store_positions<Acc>(positions + i, maximum.position, n);
        }
      }
    }
  }

  template <int kStride>
  static void push_line(const Acc* from, const math::SlidingAxis& width, Positions<Acc>& at,
                        MaximumLanes<Acc>& maximum) {
    const bool pairs = kStride == 2 && width.dilation == 1;
    for (int64_t tap = 0; tap < width.kernel; ++tap, at += 1) {
      const Acc* const x = from + tap * width.dilation;
      if constexpr (kStride == 1) {
        maximum.push(load<Acc>(x), at);
        continue;
      }
      const Vec<Acc> a = load<Acc>(x), b = load<Acc>(x + n);
      maximum.push(every_other<0>(a, b), at);
      if (!pairs || tap + 1 == width.kernel) continue;
      ++tap;
      at += 1;
      maximum.push(every_other<1>(a, b), at);
    }
  }

  static void rectify(int64_t size, Acc* values, Acc* positions) {
    using V = Vec<Acc>;
    for (int64_t i = 0; i < size; i += n) {
      const V v = load<Acc>(values + i);
      store(positions + i, select_at_most(v, V(Acc(0)), V(Acc(kNoGradient)), load<Acc>(positions + i)));
      store(values + i, math::Relu<Acc>{}.forward(v));
    }
  }

  // inputs = sums at the maxima.
  static void pick_inputs(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels,
                          const TileSums<Acc>& sums, const TileSums<Acc>& layout, const Acc* positions,
                          Acc* inputs) {
    std::vector<int64_t> offsets;  // by position
    for (int64_t i = 0; i < height.kernel; ++i) {
      for (int64_t j = 0; j < width.kernel; ++j)
        offsets.push_back(i * height.dilation * sums.row_stride + j * width.dilation * sums.column_stride);
    }
    for (int64_t row = 0; row < height.out; ++row) {
      for (int64_t column = 0; column < width.out; ++column) {
        const Acc* const window =
            sums.values + height.start(row) * sums.row_stride + width.start(column) * sums.column_stride;
        const int64_t at = row * layout.row_stride + column * layout.column_stride;
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t position = static_cast<int64_t>(positions[at + c * layout.channel_stride]);
          inputs[at + c * layout.channel_stride] =
              position == kNoGradient ? Acc(0) : window[offsets[position] + c * sums.channel_stride];
        }
      }
    }
  }

  // Calls f(row, column) for the windows of a tile that hold no element.
  template <class F>
  static void for_each_empty(const math::SlidingAxis& height, const math::SlidingAxis& width, const F& f) {
    for (int64_t row = 0; row < height.out; ++row) {
      const math::Range rows = height.taps(row);
      for (int64_t column = 0; column < width.out; ++column) {
        const math::Range columns = width.taps(column);
        if (rows.end <= rows.first || columns.end <= columns.first) f(row, column);
      }
    }
  }

  math::SlidingAxis height_, width_;
  const Acc* bias_;
  AnyActivation<Acc> activation_;
  ImageTarget<T> out_;
  uint8_t* argmax_;
  T* saved_;
  WindowTiles down_, across_;
};

}  // namespace pyops::cpu
