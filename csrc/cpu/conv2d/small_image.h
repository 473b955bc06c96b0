// The convolution's forward pass and data gradient where images are a few pixels: weights are nearly all
// there is to read. They are read once, panel by panel, straight from their tensor, and used for all images
// of a batch while they are in the cache; the images' values at a pixel are neighbours. Tap by tap, only
// those pixels are visited for which the tap lies inside the image: of 3 x 3 taps on 3 x 3 pixels, padded, 49
// of 81.
//
// As in correlate.h, every output is summed by one thread in an order that depends on the problem
// alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/correlate.h"

namespace pyops::cpu {

inline constexpr int64_t kSmallImage = 12;    // outputs at most of an image that is small
inline constexpr int64_t kEnoughImages = 12;  // to be worth the order of their values
// Values at most of the source, which is brought into another order: a copy that stays in the caches.
inline constexpr int64_t kSmallSource = int64_t{1} << 21;
inline constexpr int64_t kSmallImages = 2 * kPixels;  // whose sums share a panel
// Input channels of a block; its panel of all taps is in the L2 cache. A tap's are a chain (kChainedTerms).
inline constexpr int64_t kSmallChannels = kChainedTerms;

// Whether both sides of a convolution have enough channels, and its images, if they are small, are enough.
template <class T>
bool suits_small_images(const ConvWeights<T>& weights, const math::CorrelationAxis& h,
                        const math::CorrelationAxis& w, int64_t images) {
  constexpr int64_t n = Vec<acc_t<T>>::kLanes, kMostTaps = 64;
  const int64_t pixels = h.count * w.count;
  const int64_t source = images * weights.groups * weights.inputs * h.source_size * w.source_size;
  return pixels > 0 && pixels <= kSmallImage && images >= kEnoughImages && source <= kSmallSource &&
         weights.inputs >= n && weights.taps() <= kMostTaps &&
         ChannelPanels<acc_t<T>>(weights.outputs, n).vectors_along_channels;
}

template <class T>
class SmallCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  SmallCorrelation(const ImageSource<T>& x, const ConvWeights<T>& weights,
                   const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
                   TileSink<T>& sink, int64_t images)
      : x_(x),
        weights_(weights),
        h_(h),
        w_(w),
        sink_(sink),
        batches_(images, ceil_div(images, kSmallImages)),
        blocks_(weights.inputs, ceil_div(weights.inputs, kSmallChannels)),
        panels_(weights.outputs, n),
        source_pixels_(h.front().source_size * w.front().source_size) {
    sink.cut(h.front().count, w.front().count, h.front().count * w.front().count, 1);
  }

  void run() {
    gather_source();
    const int64_t in_group = panels_.parts * batches_.parts;
    const double work = double(batches_.base) * double(batches_.parts) * double(h_.front().count) *
                        double(w_.front().count) * double(weights_.inputs * weights_.outputs) *
                        double(weights_.taps());
    parallel_claim(weights_.groups * in_group, work, [&](int64_t i) {
      form_panel(i / in_group, i % in_group / batches_.parts, i % batches_.parts);
    });
  }

 private:
  // [batch][channel of all groups][source pixel][image]
  const Acc* source(int64_t batch, int64_t channel) const {
    const int64_t channels = weights_.groups * weights_.inputs;
    return source_ + (batches_.begin(batch) * channels + channel * batches_.size(batch)) * source_pixels_;
  }

  void gather_source() {
    const int64_t channels = weights_.groups * weights_.inputs, images = batches_.begin(batches_.parts);
    source_ = conv_buffer<0, Acc>(images * channels * source_pixels_ + n);
    const int64_t columns = w_.front().source_size;
    parallel_for(batches_.parts * channels, batches_.size(0) * source_pixels_,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t batch = i / channels, channel = i % channels, count = batches_.size(batch);
                     Acc* const to = const_cast<Acc*>(source(batch, channel));
                     for (int64_t k = 0; k < count; ++k) {
                       const int64_t from =
                           (batches_.begin(batch) + k) * x_.image_stride + channel * x_.channel_stride;
                       for (int64_t p = 0; p < source_pixels_; ++p)
                         to[p * count + k] =
                             x_.scalar(from + p / columns * x_.row_stride + p % columns * x_.column_stride);
                     }
                   }
                 });
  }

  // All outputs of a panel of channels and a batch of images, phase after phase.
  void form_panel(int64_t group, int64_t panel, int64_t batch) const {
    const int64_t width = panels_.width(panel), first = panels_.begin(panel);
    const int64_t count = std::min(width, weights_.outputs - first), images = batches_.size(batch);
    const int64_t phases = static_cast<int64_t>(h_.size() * w_.size());
    const int64_t phase_sums = h_.front().count * w_.front().count * images * width;
    Acc* const taps = conv_buffer<1, Acc>(weights_.taps() * kSmallChannels * width);
    Acc* const sums = conv_buffer<2, Acc>(phases * phase_sums + n * n);
    std::fill_n(sums, phases * phase_sums, Acc(0));
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      const int64_t channel = blocks_.begin(block), channels = blocks_.size(block);
      read_taps(weights_, {group, channel, channels, first, count}, width, taps,
                {width, kSmallChannels * width});
      const Acc* const x = source(batch, group * weights_.inputs + channel);
      for (int64_t phase = 0; phase < phases; ++phase) {
        add_taps(h_[phase / w_.size()], w_[phase % w_.size()], x, images, channels, taps, width,
                 sums + phase * phase_sums);
      }
    }
    for (int64_t phase = 0; phase < phases; ++phase) {
      const math::CorrelationAxis &h = h_[phase / w_.size()], &w = w_[phase % w_.size()];
      const ConvTile tile{0, h.count, 0, w.count};
      for (int64_t i = 0; i < images; ++i) {
        sink_.take(batches_.begin(batch) + i, group * weights_.outputs + first, count, h, w, tile,
                   TileSums<Acc>{sums + phase * phase_sums + i * width, w.count * images * width,
                                 images * width, 1});
      }
    }
  }

  // sums[pixel][image][output channel] of one phase += what a block of input channels brings.
  void add_taps(const math::CorrelationAxis& h, const math::CorrelationAxis& w, const Acc* x, int64_t images,
                int64_t channels, const Acc* taps, int64_t width, Acc* sums) const {
    int64_t offsets[kSmallChannels];
    for (int64_t c = 0; c < channels; ++c) offsets[c] = c * source_pixels_ * images;
    const EvenSplit runs(images, ceil_div(images, kPixels));
    for (const math::ConvTap& r : h.taps) {
      for (const math::ConvTap& s : w.taps) {
        const Acc* const weight = taps + (r.kernel * weights_.columns + s.kernel) * kSmallChannels * width;
        const InsideRun rows(h.source_index(0, r), h.source_step, h.source_size, h.count);
        const InsideRun columns(w.source_index(0, s), w.source_step, w.source_size, w.count);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          for (int64_t column = columns.begin; column < columns.end; ++column) {
            const int64_t from = h.source_index(row, r) * w.source_size + w.source_index(column, s);
            for (int64_t run = 0; run < runs.parts; ++run) {
              const auto kernel = pixel_kernel_of<Acc>(runs.size(run), width / n);
              kernel(channels, x + from * images + runs.begin(run), offsets, weight,
                     sums + ((row * w.count + column) * images + runs.begin(run)) * width, width, true);
            }
          }
        }
      }
    }
  }

  ImageSource<T> x_;
  ConvWeights<T> weights_;
  const std::vector<math::CorrelationAxis>& h_;  // by phase of the output
  const std::vector<math::CorrelationAxis>& w_;
  TileSink<T>& sink_;
  EvenSplit batches_;  // of images
  EvenSplit blocks_;   // of input channels
  ChannelPanels<Acc> panels_;
  int64_t source_pixels_;
  Acc* source_ = nullptr;
};

}  // namespace pyops::cpu
