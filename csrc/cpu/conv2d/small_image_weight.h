// The convolution's gradients of weight and bias where images are a few pixels (small_image.h): the weight's
// gradient is nearly all there is to write. Each part of it is summed over all images by one thread, tap by
// tap over those pixels for which the tap lies inside the image, and written once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/gradient.h"
#include "cpu/conv2d/small_image.h"

namespace pyops::cpu {

template <class T>
class SmallWeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // `weights` describes the gradient that will be written; its values are not read.
  SmallWeightGradient(const ImageSource<T>& x, const ImageSource<T>& grad, const ConvWeights<T>& weights,
                      const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images)
      : x_(x),
        grad_(grad),
        weights_(weights),
        h_(h),
        w_(w),
        images_(images),
        blocks_(weights.inputs, ceil_div(weights.inputs, kSmallChannels)),
        panels_(weights.outputs, n),
        channels_(round_up(weights.groups * weights.inputs, n)) {}

  // Writes the gradients; either may be null.
  void run(T* weight, T* bias) {
    if (weight) spread_source();
    const int64_t blocks = weight ? blocks_.parts : 1, in_group = panels_.parts * blocks;
    const double work = double(images_) * double(h_.count * w_.count) * double(weights_.groups) *
                        double(weights_.inputs * weights_.outputs) * double(weights_.taps());
    parallel_claim(weights_.groups * in_group, work, [&](int64_t i) {
      form_part(i / in_group, i % in_group / blocks, i % blocks, weight, i % blocks == 0 ? bias : nullptr);
    });
  }

 private:
  // Of an image, some channels' values at each pixel: to[pixel * stride + channel], in whole vectors.
  static void spread(const ImageSource<T>& from, int64_t origin, int64_t pixels, int64_t channels,
                     int64_t stride, Acc* to) {
    for_each_vector<Acc>(channels, [&](int64_t c, int lanes) {
      const int64_t start = origin + c * from.channel_stride;
      if (from.channel_stride != 1) {
        pack_planar_gradient(from, start, pixels, lanes, stride, to + c);
        return;
      }
      for (int64_t p = 0; p < pixels; ++p)
        store(to + p * stride + c, from.vector(start + p * from.column_stride, lanes));
    });
  }

  // [source pixel][image][channel of all groups]
  void spread_source() {
    const int64_t pixels = h_.source_size * w_.source_size, channels = weights_.groups * weights_.inputs;
    source_ = conv_buffer<0, Acc>(pixels * images_ * channels_);
    parallel_for(images_, pixels * channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        spread(x_, i * x_.image_stride, pixels, channels, images_ * channels_, source_ + i * channels_);
    });
  }

  // Of a block of input channels and a panel of output channels.
  void form_part(int64_t group, int64_t panel, int64_t block, T* weight, T* bias) const {
    const int64_t width = panels_.width(panel), first = group * weights_.outputs + panels_.begin(panel);
    const int64_t count = std::min(width, weights_.outputs - panels_.begin(panel));
    const int64_t pixels = h_.count * w_.count, channels = blocks_.size(block), taps = weights_.taps();
    Acc* const grad = conv_buffer<1, Acc>(pixels * images_ * width);  // [pixel][image][output channel]
    for (int64_t i = 0; i < images_; ++i) {
      spread(grad_, i * grad_.image_stride + first * grad_.channel_stride, pixels, count, images_ * width,
             grad + i * width);
    }
    if (bias) sum_bias(pixels * images_, count, width, grad, bias + first);
    if (!weight) return;
    Acc* const sums = conv_buffer<2, Acc>(channels * taps * width);  // [tap][input channel][output channel]
    std::fill_n(sums, channels * taps * width, Acc(0));
    const Acc* const x = source_ + group * weights_.inputs + blocks_.begin(block);
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps)
        add_tap(r, s, x, channels, grad, width,
                sums + (r.kernel * weights_.columns + s.kernel) * channels * width);
    }
    Acc* const ordered = conv_buffer<3, Acc>(channels * taps * width);
    for (int64_t i = 0; i < channels * taps; ++i)
      std::copy_n(sums + i * width, width, ordered + (i % channels * taps + i / channels) * width);
    write_taps(weights_, {group, blocks_.begin(block), channels, panels_.begin(panel), count}, width, ordered,
               weight);
  }

  // sums[input channel][output channel] of a tap += over all images, row by row.
  void add_tap(const math::ConvTap& r, const math::ConvTap& s, const Acc* x, int64_t channels,
               const Acc* grad, int64_t width, Acc* sums) const {
    const InsideRun rows(h_.source_index(0, r), h_.source_step, h_.source_size, h_.count);
    const InsideRun columns(w_.source_index(0, s), w_.source_step, w_.source_size, w_.count);
    std::vector<int64_t> offsets;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      offsets.clear();
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const int64_t pixel = h_.source_index(row, r) * w_.source_size + w_.source_index(column, s);
        for (int64_t i = 0; i < images_; ++i) offsets.push_back((pixel * images_ + i) * channels_);
      }
      const Acc* const right = grad + (row * w_.count + columns.begin) * images_ * width;
      const EvenSplit runs(channels, ceil_div(channels, kPixels));
      for (int64_t run = 0; run < runs.parts; ++run) {
        const auto kernel = pixel_kernel_of<Acc>(runs.size(run), width / n);
        for_each_chain(static_cast<int64_t>(offsets.size()), [&](int64_t begin, int64_t terms) {
          kernel(terms, x + runs.begin(run), offsets.data() + begin, right + begin * width,
                 sums + runs.begin(run) * width, width, true);
        });
      }
    }
  }

  static void sum_bias(int64_t terms, int64_t channels, int64_t width, const Acc* grad, T* bias) {
    for_each_vector<Acc>(channels, [&](int64_t k, int lanes) {
      Vec<Acc> total = Acc(0);
      for (int64_t i = 0; i < terms; ++i) total += load<Acc>(grad + i * width + k);
      store_lanes(bias + k, total, lanes);
    });
  }

  ImageSource<T> x_;
  ImageSource<T> grad_;
  ConvWeights<T> weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  int64_t images_;
  EvenSplit blocks_;  // of input channels
  ChannelPanels<Acc> panels_;
  int64_t channels_;  // of all groups, in whole vectors
  Acc* source_ = nullptr;
};

}  // namespace pyops::cpu
