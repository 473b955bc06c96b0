// The convolution's forward pass and data gradient by Winograd's algorithm (conv2d_winograd.h), where a
// kernel of 3 x 3 taps moves in steps of 1. As in conv2d_correlate.h, every output is formed by one thread in
// an order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "conv2d_winograd.h"

namespace pyops::cpu {

template <class T>
class WinogradCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  WinogradCorrelation(const ImageSource<T>& x, const ConvWeights<T>& weights, const math::CorrelationAxis& h,
                      const math::CorrelationAxis& w, TileSink<T>& sink, int64_t images)
      : x_(x),
        weights_(weights),
        h_(h),
        w_(w),
        sink_(sink),
        images_(images),
        blocks_(weights.inputs, ceil_div(weights.inputs, kWinogradDepth)),
        panels_(weights.outputs, n),
        tiles_(sink.cut(h.count, w.count, 4 * kPixels * (kSquares / kPixels), 2)),
        shape_(h, w, round_up(tiles_.rows.largest(), 2), round_up(tiles_.columns.largest(), 2)),
        layout_(SquareLayout<Acc>::of(tiles_.rows.largest(), tiles_.columns.largest())) {
    for (int64_t c = 0; c < blocks_.size(0); ++c) offsets_.push_back(c * layout_.channel());
  }

  // Whether all outputs are what direct sums would give; if not, they are to be formed again.
  bool run() {
    transform_weights();
    const int64_t per_image = tiles_.rows.parts() * tiles_.columns.parts();
    const double work =
        double(images_) * double(h_.count * w_.count) * double(weights_.outputs * weights_.inputs) * 4;
    std::atomic<bool> finite{true};
    parallel_claim(weights_.groups * images_ * per_image, work, [&](int64_t i) {
      const int64_t group = i / (images_ * per_image), image = i / per_image % images_;
      if (!form_tile(group, image, i % per_image)) finite.store(false, std::memory_order_relaxed);
    });
    return finite.load();
  }

 private:
  // [group][position][panel][input channel][output channel of the panel]
  int64_t position_size() const { return weights_.inputs * panels_.padded(); }
  Acc* transformed(int64_t group, int64_t position, int64_t panel, int64_t channel) const {
    return packed_ + (group * 16 + position) * position_size() + panels_.begin(panel) * weights_.inputs +
           channel * panels_.width(panel);
  }

  void transform_weights() {
    packed_ = conv_buffer<0, Acc>(weights_.groups * 16 * position_size());
    parallel_for(weights_.groups * weights_.inputs, 40 * panels_.padded(), [&](int64_t begin, int64_t end) {
      alignas(kVectorBytes) Acc taps[9 * ChannelPanels<Acc>::kWide];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / weights_.inputs, channel = i % weights_.inputs;
        for (int64_t panel = 0; panel < panels_.parts; ++panel) {
          const int64_t width = panels_.width(panel);
          gather_taps(group, channel, panels_.begin(panel), width, taps);
          transform_weight(taps, width, position_size(), transformed(group, 0, panel, channel));
        }
      }
    });
  }

  // The taps of `width` output channels, in the order in which the correlation visits the source.
  void gather_taps(int64_t group, int64_t channel, int64_t first, int64_t width, Acc* taps) const {
    const int64_t count = std::min(width, weights_.outputs - first);
    const T* const from = weights_.values + group * weights_.group_stride + channel * weights_.input_stride +
                          first * weights_.output_stride;
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps) {
        const T* const tap = from + r.kernel * weights_.row_stride + s.kernel * weights_.column_stride;
        Acc* const to = taps + ((r.shift - h_.min_shift) * 3 + s.shift - w_.min_shift) * width;
        for (int64_t k = 0; k < count; ++k) to[k] = to_acc(tap[k * weights_.output_stride]);
        std::fill(to + count, to + width, Acc(0));
      }
    }
  }

  bool form_tile(int64_t group, int64_t image, int64_t index) const {
    const int64_t across = tiles_.columns.parts(), row_tile = index / across, column_tile = index % across;
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const ConvTile squares = covered(tile);
    const int64_t padded = panels_.padded(), line = squares.columns;
    const Acc* const products = multiply(group, image, squares);
    Acc* const sums = conv_buffer<2, Acc>(squares.rows * line * padded + n * n);
    Vec<Acc> not_finite = Acc(0);
    transform_output(products, layout_.squares * padded, padded, squares.rows / 2, squares.columns / 2, line,
                     sums, not_finite);
    sink_.take(image, group * weights_.outputs, weights_.outputs, h_, w_, tile,
               TileSums<Acc>{sums, line * padded, padded, 1});
    return horizontal_sum(not_finite) == 0;
  }

  // [position][square][output channel]
  const Acc* multiply(int64_t group, int64_t image, const ConvTile& squares) const {
    const int64_t padded = panels_.padded(), count = squares.rows * squares.columns / 4;
    Acc* const input = conv_buffer<3, Acc>(blocks_.size(0) * layout_.channel() + n);
    Acc* const products = conv_buffer<4, Acc>(16 * layout_.squares * padded);
    const EvenSplit runs(count, ceil_div(count, kPixels));
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      transform_channels(x_, image, group * weights_.inputs + blocks_.begin(block), blocks_.size(block), h_,
                         w_, shape_, squares, layout_, input);
      for (int64_t position = 0; position < 16; ++position) {
        for (int64_t panel = 0; panel < panels_.parts; ++panel) {
          const Acc* const weight = transformed(group, position, panel, blocks_.begin(block));
          for (int64_t run = 0; run < runs.parts; ++run) {
            const int64_t height = runs.size(run);
            const auto kernel = pixel_kernel_of<Acc>(height, panels_.width(panel) / n);
            kernel(blocks_.size(block), input + position * layout_.squares + runs.begin(run), offsets_.data(),
                   weight,
                   products + (position * layout_.squares + runs.begin(run)) * padded + panels_.begin(panel),
                   padded, block > 0);
          }
        }
      }
    }
    return products;
  }

  ImageSource<T> x_;
  ConvWeights<T> weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  TileSink<T>& sink_;
  int64_t images_;
  EvenSplit blocks_;  // of input channels
  ChannelPanels<Acc> panels_;
  typename TileSink<T>::Tiles tiles_;
  SlabShape shape_;
  SquareLayout<Acc> layout_;
  std::vector<int64_t> offsets_;
  Acc* packed_ = nullptr;
};

}  // namespace pyops::cpu
