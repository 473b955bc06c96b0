// Convolutions of images of a few pixels: the weights are nearly all there is to read or write.
//
// Correlation: weights are read once, panel by panel, straight from their tensor, and used for all images of
// a batch while they are in the cache; the images' values at a pixel are neighbours. Tap by tap, only those
// pixels are visited for which the tap lies inside the image: of 3 x 3 taps on 3 x 3 pixels, padded, 49
// of 81.
//
// Weight gradient: each part of it is summed over all images by one thread, tap by tap over those pixels for
// which the tap lies inside the image, and written once.
//
// As in direct/direct.h, every sum is formed by one thread in an order that depends on the problem alone.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_gradient.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {
namespace {

// Input channels of a block; its panel of all taps is in the L2 cache. A tap's are a chain (kChainedTerms).
constexpr int64_t kSmallImageChannels = kChainedTerms;

template <class T>
class SmallImageCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit SmallImageCorrelation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        weights_(problem.weights),
        h_(problem.h),
        w_(problem.w),
        batches_(problem.images, ceil_div(problem.images, kBatch)),
        blocks_(weights_.inputs, ceil_div(weights_.inputs, kSmallImageChannels)),
        panels_(weights_.outputs, n),
        source_pixels_(h_.front().source_size * w_.front().source_size) {
    // One tile. Windows that reach into the padding may span more than all pixels (pool.h).
    constexpr int64_t kUnlimited = int64_t{1} << 40;
    problem.epilogue->cut(h_.front().count, w_.front().count, kUnlimited, 1);
  }

  void run() const {
    Scratch scratch;
    Acc* const source =
        scratch.take<Acc>(problem_.images * weights_.groups * weights_.inputs * source_pixels_ + n);
    gather_source(source);
    const int64_t in_group = panels_.parts * batches_.parts;
    const double work = double(batches_.base) * double(batches_.parts) * double(problem_.pixels()) *
                        double(weights_.inputs * weights_.outputs) * double(weights_.taps());
    parallel_claim(weights_.groups * in_group, work, [&](int64_t i) {
      form_panel(i / in_group, i % in_group / batches_.parts, i % batches_.parts, source);
    });
  }

 private:
  static constexpr int64_t kBatch = 2 * kPixels;  // images whose sums share a panel of weights

  // A thread's memory for a panel.
  struct PanelScratch {
    PanelScratch(int64_t taps_size, int64_t sums_size)
        : taps(memory.take<Acc>(taps_size)),
          sums(memory.take<Acc>(sums_size + n * n)) {}  // transposition reads past the end
    Scratch memory;
    Acc* taps;  // [tap][input channel][output channel]
    Acc* sums;  // [phase][pixel][image][output channel]
  };

  // Where a channel of all groups lies in [batch][channel][source pixel][image].
  int64_t source_at(int64_t batch, int64_t channel) const {
    const int64_t channels = weights_.groups * weights_.inputs;
    return (batches_.begin(batch) * channels + channel * batches_.size(batch)) * source_pixels_;
  }

  void gather_source(Acc* source) const {
    const ImageSource<T>& x = problem_.x;
    const int64_t channels = weights_.groups * weights_.inputs, columns = w_.front().source_size;
    parallel_for(
        batches_.parts * channels, batches_.size(0) * source_pixels_, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t batch = i / channels, channel = i % channels, count = batches_.size(batch);
            Acc* const to = source + source_at(batch, channel);
            for (int64_t k = 0; k < count; ++k) {
              const int64_t from = (batches_.begin(batch) + k) * x.image_stride + channel * x.channel_stride;
              for (int64_t p = 0; p < source_pixels_; ++p)
                to[p * count + k] =
                    x.scalar(from + p / columns * x.row_stride + p % columns * x.column_stride);
            }
          }
        });
  }

  // All outputs of a panel of channels and a batch of images, phase after phase.
  void form_panel(int64_t group, int64_t panel, int64_t batch, const Acc* source) const {
    const int64_t width = panels_.width(panel), first = panels_.begin(panel);
    const int64_t count = std::min(width, weights_.outputs - first), images = batches_.size(batch);
    const int64_t phases = static_cast<int64_t>(h_.size() * w_.size());
    const int64_t phase_sums = problem_.pixels() * images * width;
    const PanelScratch scratch(weights_.taps() * kSmallImageChannels * width, phases * phase_sums);
    Acc *const taps = scratch.taps, *const sums = scratch.sums;
    std::fill_n(sums, phases * phase_sums, Acc(0));
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      const int64_t channel = blocks_.begin(block), channels = blocks_.size(block);
      read_taps(weights_, {group, channel, channels, first, count}, width, taps,
                {width, kSmallImageChannels * width});
      const Acc* const x = source + source_at(batch, group * weights_.inputs + channel);
      for (int64_t phase = 0; phase < phases; ++phase) {
        add_taps(h_[phase / w_.size()], w_[phase % w_.size()], x, images, channels, taps, width,
                 sums + phase * phase_sums);
      }
    }
    for (int64_t phase = 0; phase < phases; ++phase) {
      const math::CorrelationAxis &h = h_[phase / w_.size()], &w = w_[phase % w_.size()];
      const ConvTile tile{0, h.count, 0, w.count};
      for (int64_t i = 0; i < images; ++i) {
        problem_.epilogue->take(batches_.begin(batch) + i, group * weights_.outputs + first, count, h, w,
                                tile,
                                TileSums<Acc>{sums + phase * phase_sums + i * width, w.count * images * width,
                                              images * width, 1});
      }
    }
  }

  // sums[pixel][image][output channel] of one phase += what a block of input channels brings.
  void add_taps(const math::CorrelationAxis& h, const math::CorrelationAxis& w, const Acc* x, int64_t images,
                int64_t channels, const Acc* taps, int64_t width, Acc* sums) const {
    int64_t offsets[kSmallImageChannels];
    for (int64_t c = 0; c < channels; ++c) offsets[c] = c * source_pixels_ * images;
    const EvenSplit strips(images, ceil_div(images, kPixels));
    for (const math::ConvTap& r : h.taps) {
      for (const math::ConvTap& s : w.taps) {
        const Acc* const weight =
            taps + (r.kernel * weights_.columns + s.kernel) * kSmallImageChannels * width;
        const InsideRange rows(h.source_index(0, r), h.source_step, h.source_size, h.count);
        const InsideRange columns(w.source_index(0, s), w.source_step, w.source_size, w.count);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          for (int64_t column = columns.begin; column < columns.end; ++column) {
            const int64_t from = h.source_index(row, r) * w.source_size + w.source_index(column, s);
            for (int64_t strip = 0; strip < strips.parts; ++strip) {
              const auto kernel = pixel_kernel_of<Acc>(strips.size(strip), width / n);
              kernel(channels, x + from * images + strips.begin(strip), offsets, weight,
                     sums + ((row * w.count + column) * images + strips.begin(strip)) * width, width, true);
            }
          }
        }
      }
    }
  }

  const CorrelationProblem<T>& problem_;
  const ConvWeights<T>& weights_;
  const std::vector<math::CorrelationAxis>& h_;  // by phase of the output
  const std::vector<math::CorrelationAxis>& w_;
  EvenSplit batches_;  // of images
  EvenSplit blocks_;   // of input channels
  ChannelPanels<Acc> panels_;
  int64_t source_pixels_;
};

template <class T>
class SmallImageWeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit SmallImageWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        weights_(problem.weights),
        h_(problem.h),
        w_(problem.w),
        images_(problem.images),
        blocks_(weights_.inputs, ceil_div(weights_.inputs, kSmallImageChannels)),
        panels_(weights_.outputs, n),
        channels_(round_up(weights_.groups * weights_.inputs, n)) {}

  void run() const {
    Scratch scratch;
    Acc* const source =
        scratch.take<Acc>(problem_.weight ? h_.source_size * w_.source_size * images_ * channels_ : 0);
    if (problem_.weight) spread_source(source);
    const int64_t blocks = problem_.weight ? blocks_.parts : 1, in_group = panels_.parts * blocks;
    const double work = double(images_) * double(h_.count * w_.count) * double(weights_.groups) *
                        double(weights_.inputs * weights_.outputs) * double(weights_.taps());
    parallel_claim(weights_.groups * in_group, work,
                   [&](int64_t i) { form_part(i / in_group, i % in_group / blocks, i % blocks, source); });
  }

 private:
  // A thread's memory for a part.
  struct PartScratch {
    PartScratch(int64_t grad_size, int64_t sums_size)
        : grad(memory.take<Acc>(grad_size)),
          sums(memory.take<Acc>(sums_size)),
          ordered(memory.take<Acc>(sums_size)) {}
    Scratch memory;
    Acc* grad;     // [pixel][image][output channel]
    Acc* sums;     // [tap][input channel][output channel]
    Acc* ordered;  // [input channel][tap][output channel]
  };

  // Of an image, some channels' values at each pixel: to[pixel * stride + channel], in whole vectors.
  static void spread(const ImageSource<T>& from, int64_t origin, int64_t pixels, int64_t channels,
                     int64_t stride, Acc* to) {
    for_each_vector<Acc>(channels, [&](int64_t c, int lanes) {
      const int64_t start = origin + c * from.channel_stride;
      if (from.channel_stride != 1) {
        transpose_channels(from, start, pixels, lanes, stride, to + c);
        return;
      }
      for (int64_t p = 0; p < pixels; ++p)
        store(to + p * stride + c, from.vector(start + p * from.column_stride, lanes));
    });
  }

  // [source pixel][image][channel of all groups]
  void spread_source(Acc* source) const {
    const int64_t pixels = h_.source_size * w_.source_size, channels = weights_.groups * weights_.inputs;
    parallel_for(images_, pixels * channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        spread(problem_.x, i * problem_.x.image_stride, pixels, channels, images_ * channels_,
               source + i * channels_);
    });
  }

  // Of a block of input channels and a panel of output channels.
  void form_part(int64_t group, int64_t panel, int64_t block, const Acc* source) const {
    const int64_t width = panels_.width(panel), first = group * weights_.outputs + panels_.begin(panel);
    const int64_t count = std::min(width, weights_.outputs - panels_.begin(panel));
    const int64_t pixels = h_.count * w_.count, channels = blocks_.size(block), taps = weights_.taps();
    const PartScratch scratch(pixels * images_ * width, problem_.weight ? channels * taps * width : 0);
    Acc *const grad = scratch.grad, *const sums = scratch.sums;
    for (int64_t i = 0; i < images_; ++i) {
      spread(problem_.grad, i * problem_.grad.image_stride + first * problem_.grad.channel_stride, pixels,
             count, images_ * width, grad + i * width);
    }
    if (problem_.bias && block == 0) sum_bias(pixels * images_, count, width, grad, problem_.bias + first);
    if (!problem_.weight) return;
    std::fill_n(sums, channels * taps * width, Acc(0));
    const Acc* const x = source + group * weights_.inputs + blocks_.begin(block);
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps)
        add_tap(r, s, x, channels, grad, width,
                sums + (r.kernel * weights_.columns + s.kernel) * channels * width);
    }
    for (int64_t i = 0; i < channels * taps; ++i)
      std::copy_n(sums + i * width, width, scratch.ordered + (i % channels * taps + i / channels) * width);
    write_taps(weights_, {group, blocks_.begin(block), channels, panels_.begin(panel), count}, width,
               scratch.ordered, problem_.weight);
  }

  // sums[input channel][output channel] of a tap += over all images, row by row.
  void add_tap(const math::ConvTap& r, const math::ConvTap& s, const Acc* x, int64_t channels,
               const Acc* grad, int64_t width, Acc* sums) const {
    const InsideRange rows(h_.source_index(0, r), h_.source_step, h_.source_size, h_.count);
    const InsideRange columns(w_.source_index(0, s), w_.source_step, w_.source_size, w_.count);
    std::vector<int64_t> offsets;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      offsets.clear();
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const int64_t pixel = h_.source_index(row, r) * w_.source_size + w_.source_index(column, s);
        for (int64_t i = 0; i < images_; ++i) offsets.push_back((pixel * images_ + i) * channels_);
      }
      const Acc* const right = grad + (row * w_.count + columns.begin) * images_ * width;
      const EvenSplit strips(channels, ceil_div(channels, kPixels));
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const auto kernel = pixel_kernel_of<Acc>(strips.size(strip), width / n);
        for_each_chain(static_cast<int64_t>(offsets.size()), [&](int64_t begin, int64_t terms) {
          kernel(terms, x + strips.begin(strip), offsets.data() + begin, right + begin * width,
                 sums + strips.begin(strip) * width, width, true);
        });
      }
    }
  }

  static void sum_bias(int64_t terms, int64_t channels, int64_t width, const Acc* grad, T* bias) {
    for_each_vector<Acc>(channels, [&](int64_t k, int lanes) {
      store_lanes(bias + k, sum_of_vectors(terms, grad + k, width), lanes);
    });
  }

  const WeightGradientProblem<T>& problem_;
  const ConvWeights<T>& weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  int64_t images_;
  EvenSplit blocks_;  // of input channels
  ChannelPanels<Acc> panels_;
  int64_t channels_;  // of all groups, in whole vectors
};

}  // namespace

// Output channels fill vectors.
template <class Problem>
bool SmallImage::can(const Problem& p) {
  using Acc = acc_t<typename Problem::Value>;
  return p.images * p.pixels() > 0 &&
         ChannelPanels<Acc>(p.weights.outputs, Vec<Acc>::kLanes).vectors_along_channels;
}

namespace {

// Outputs of an image up to which this is the fastest algorithm for wide float32 layers. Others pack or
// transform the weights first, which takes as long as the products of a few images; where they may keep them
// packed, they are the faster ones. Measured on 2 cores of an AMD EPYC (Zen 5), 1 to 128 images, kernels of 1
// to 25 taps: 1.1 to 4 times as fast.
template <class T>
int64_t most_pixels(const CorrelationProblem<T>& p) {
  const int64_t weights = p.weights.inputs * p.weights.outputs, taps = p.weights.taps();
  if (p.packed != nullptr || p.images > 16) return 0;
  if (taps < 3) return weights >= (1 << 20) ? 9 : weights >= (1 << 17) ? 4 : 0;
  if (taps < 7) return weights >= (1 << 14) ? 16 : 9;
  if (taps >= 25 && p.images <= 8) return 64;
  return p.weights.outputs < 64 ? 9 : p.images < 2 ? 16 : 25;
}

template <class T>
int64_t most_pixels(const WeightGradientProblem<T>& p) {
  const int64_t weights = p.weights.inputs * p.weights.outputs, taps = p.weights.taps();
  if (taps < 3) return std::min<int64_t>(16, 100 / p.images);
  if (weights <= (taps == 9 ? 1 << 14 : 1 << 16)) return p.images <= 32 ? 64 : 36;
  if (weights > (1 << 16) && p.images > 32) return 0;
  return weights >= (1 << 18) && p.images <= 4 ? 49 : 25;
}

}  // namespace

// Images are small but enough, and have enough channels.
template <class Problem>
bool SmallImage::suits(const Problem& p) {
  constexpr int64_t kMostPixels = 12;    // outputs of an image
  constexpr int64_t kFewestImages = 12;  // to be worth the order of their values
  constexpr int64_t kWideInputs = 48, kWideOutputs = 32;
  // Values of the source, which is brought into another order: a copy that stays in the caches.
  constexpr int64_t kMostValues = int64_t{1} << 21;
  constexpr int64_t kMostTaps = 64;
  const int64_t source =
      p.images * p.weights.groups * p.weights.inputs * p.longest_h().source_size * p.longest_w().source_size;
  if (source > kMostValues || p.weights.taps() > kMostTaps) return false;
  if constexpr (std::is_same_v<typename Problem::Value, float>) {
    const bool wide = p.weights.inputs >= kWideInputs && p.weights.outputs >= kWideOutputs;
    if (wide && p.pixels() <= most_pixels(p)) return true;
  }
  return p.pixels() <= kMostPixels && p.images >= kFewestImages &&
         p.weights.inputs >= Vec<acc_t<typename Problem::Value>>::kLanes;
}

template <class Problem>
void SmallImage::run(const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (kIsCorrelation<Problem>) {
    SmallImageCorrelation<T>(p).run();
  } else {
    SmallImageWeightGradient<T>(p).run();
  }
}

PYOPS_CONV2D_ALGORITHM(SmallImage)

}  // namespace pyops::cpu
