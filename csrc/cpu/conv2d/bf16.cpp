// The convolution in bfloat16, which bf16.h describes: what is otherwise than in correlate.h
// and weight.h.
#include "cpu/conv2d/bf16.h"

#if defined(__AVX512F__)
#include <cstdlib>
#include <cstring>

#include "cpu/conv2d/bf16_pack.h"
#include "cpu/conv2d/correlate.h"
#include "cpu/conv2d/weight.h"
#endif

namespace pyops::cpu {

#if defined(__AVX512F__)

namespace {

using pair_slabs::Source;

ConvWeights<bfloat16> of_pairs(ConvWeights<bfloat16> weights) {
  weights.inputs = ceil_div(weights.inputs, 2);
  return weights;
}

// The correlation whose input channels are pairs of them.
class PairCorrelation : public Correlation<bfloat16> {
 public:
  PairCorrelation(const Source& x, const ConvWeights<bfloat16>& weights,
                  const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
                  TileSink<bfloat16>& sink, int64_t images)
      : Correlation(x, of_pairs(weights), h, w, sink, images), singles_(weights) {
    if (!pair_slabs::channels_are_neighbours(x) || !panels_.vectors_along_channels || groups_in_tile_ > 1)
      return;
    // An odd number of cache lines, so that pixels do not all fall into one set of the cache.
    stride_ = round_up(blocks_.size(0), n) | n;
    for (Phase& phase : phases_) {
      for (int64_t& offset : phase.offsets)
        offset = offset % shape_.channel() * stride_ + offset / shape_.channel();
    }
  }

 private:
  int64_t slab_channels() const override { return stride_ > 1 ? stride_ : Correlation::slab_channels(); }
  void fill(int64_t image, int64_t pair, int64_t pairs, const ConvTile& tile, float* slab) const override {
    const int64_t channels = std::min(2 * pairs, singles_.groups * singles_.inputs - 2 * pair);
    if (stride_ > 1) {
      pair_slabs::fill_pixels(x_, image, 2 * pair, channels, h_, w_, shape_, tile, stride_, slab);
    } else {
      pair_slabs::fill_pairs(x_, image, 2 * pair, channels, h_, w_, shape_, tile, slab);
    }
  }

  void pack_panel_of_weights(int64_t group, int64_t block, int64_t panel) const override {
    const int64_t width = panels_.width(panel), line = round_up(width, n), taps = singles_.taps();
    const int64_t first = panels_.begin(panel), count = std::min(width, singles_.outputs - first);
    const int64_t most = std::max<int64_t>(2, channels_in_block(taps) / 2 * 2);
    const int64_t begin = 2 * blocks_.begin(block);
    const int64_t end = std::min(begin + 2 * blocks_.size(block), singles_.inputs);
    float* const read = conv_buffer<1, float>(most * taps * line);
    for (int64_t c = begin; c < end; c += most) {
      const int64_t channels = std::min(most, end - c);
      read_taps(singles_, {group, c, channels, first, count}, line, read);
      for (const Phase& phase : phases_) {
        float* to = packed(phase, group, block, panel) + (c - begin) / 2 * phase.taps * width;
        for (int64_t i = 0; i < channels; i += 2) {
          for (const math::ConvTap& r : phase.h->taps) {
            for (const math::ConvTap& s : phase.w->taps) {
              const float* const from = read + (i * taps + r.kernel * singles_.columns + s.kernel) * line;
              pair_slabs::join_weights(from, i + 1 < channels ? from + taps * line : nullptr, width, to);
              to += width;
            }
          }
        }
      }
    }
  }

  // In chains as long as can be: sums are rounded to 8 bits in the end.
  void sweep_pixels(const Phase& phase, const ConvTile& tile, int64_t line, const float* slab,
                    const float* weight, int64_t panel, int64_t block, float* sums) const override {
    if (tile.columns == 0) return;
    const int64_t depth = blocks_.size(block) * phase.taps, ld = panels_.padded();
    const EvenSplit runs(tile.columns, ceil_div(tile.columns, kPixels));
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t run = 0; run < runs.parts; ++run) {
        const int64_t column = runs.begin(run);
        const auto kernel = pair_pixel_kernel_of(runs.size(run), panels_.width(panel) / n);
        kernel(depth, slab + (row * shape_.columns + column) * stride_, stride_, phase.offsets.data(), weight,
               sums + (row * line + column) * ld + panels_.begin(panel), ld, block > 0);
      }
    }
  }
  ChannelKernel<float> channel_kernel(int64_t channels, int64_t vectors) const override {
    return pair_channel_kernel_of(channels, vectors);
  }

  ConvWeights<bfloat16> singles_;
  int64_t stride_ = 1;  // of pixels in the slab: where it is not 1, channels are neighbours there
};

// The weight gradient whose terms are pairs of pixels.
class PairWeightGradient : public WeightGradient<bfloat16> {
 public:
  PairWeightGradient(const Source& x, const Source& grad, const ConvWeights<bfloat16>& weights,
                     const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images)
      : WeightGradient(x, grad, weights, h, w, images, false) {
    if (terms_ == 1 && pair_slabs::channels_are_neighbours(x)) stride_ = round_up(blocks_.size(0), n) | n;
  }

  bool suits() const { return panels_.vectors_along_channels && groups_in_tile_ == 1; }

 private:
  void fill(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
            float* slab) const override {
    if (stride_ > 1) {
      pair_slabs::fill_pixel_pairs(x_, image, channel, channels, h_, w_, shape_, tile, stride_, slab);
    } else {
      pair_slabs::fill_singles(x_, image, channel, channels, h_, w_, shape_, tile,
                               reinterpret_cast<bfloat16*>(slab));
    }
  }

  int64_t slab_channels() const override { return stride_ > 1 ? stride_ : WeightGradient::slab_channels(); }

  void add_weights(const Images& images, const ConvTile& tile, const float* slab, int64_t image_slab,
                   int64_t depth, int64_t pairs, const float* grad, float* sums,
                   bool accumulate) const override {
    if (stride_ == 1) {
      WeightGradient::add_weights(images, tile, slab, image_slab, depth, pairs, grad, sums, accumulate);
      return;
    }
    const WeightKernelPixels pixels{images.count, image_slab, tile.rows, shape_.columns, tile.columns};
    const EvenSplit runs(depth, ceil_div(depth, kPixels));
    for (int64_t panel = 0; panel < panels_.parts; ++panel) {
      for (int64_t run = 0; run < runs.parts; ++run) {
        const int64_t first = runs.begin(run), ld = panels_.padded();
        const auto kernel = pair_channel_gradient_kernel_of(runs.size(run), panels_.width(panel) / n);
        kernel(pixels, slab + first, stride_, grad + panels_.begin(panel) * pairs,
               sums + first * ld + panels_.begin(panel), ld, accumulate);
      }
    }
  }

  // Returns the number of pairs.
  int64_t pack_gradients(const Images& images, int64_t group, const ConvTile& tile,
                         float* packed) const override {
    // Rows that follow each other without a gap are one long row, if no pair would be of two of them.
    const bool joined = tile.columns * grad_.column_stride == grad_.row_stride && tile.columns % 2 == 0;
    const int64_t rows = joined ? 1 : tile.rows, columns = joined ? tile.rows * tile.columns : tile.columns;
    const int64_t pairs = ceil_div(columns, 2), total = images.count * rows * pairs;
    for (int64_t i = 0; i < images.count; ++i) {
      const int64_t origin = (images.first + i) * grad_.image_stride +
                             group * weights_.outputs * grad_.channel_stride + tile.row * grad_.row_stride +
                             tile.column * grad_.column_stride;
      for (int64_t k = 0; k < panels_.padded(); k += n) {
        const int64_t panel = k / panels_.kWide, width = panels_.width(panel);
        float* to = packed + panels_.begin(panel) * total + i * rows * pairs * width + k % panels_.kWide;
        for (int64_t row = 0; row < rows; ++row, to += pairs * width) {
          pair_slabs::pack_pair_row(grad_, origin + row * grad_.row_stride + k * grad_.channel_stride,
                                    columns, std::clamp<int64_t>(weights_.outputs - k, 0, n), width, to);
        }
      }
    }
    return total;
  }

  void add_to_bias(int64_t pairs, const float* packed, float* sums, bool accumulate) const override {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int64_t k = 0; k < panels_.padded(); k += n) {
      const int64_t panel = k / panels_.kWide, width = panels_.width(panel);
      const float* const from = packed + panels_.begin(panel) * pairs + k % panels_.kWide;
      __m512 total = accumulate ? _mm512_loadu_ps(sums + k) : _mm512_setzero_ps();
      for (int64_t p = 0; p < pairs; ++p) {
        const __m512i pair = _mm512_loadu_si512(from + p * width);
        total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)));
        total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_and_si512(pair, high)));
      }
      _mm512_storeu_ps(sums + k, total);
    }
  }

  WeightKernel<float> weight_kernel(int64_t length, int64_t runs, int64_t vectors) const override {
    return pair_weight_kernel_of(length, runs, vectors);
  }

  int64_t stride_ = 1;  // of pairs of pixels in the slab: where it is not 1, channels are neighbours there
};

}  // namespace

bool multiplies_pairs() {
  static const bool answer = [] {
    const char* const wanted = std::getenv("PYOPS_AVX512_BF16");
    return __builtin_cpu_supports("avx512bf16") && (wanted == nullptr || strcmp(wanted, "0") != 0);
  }();
  return answer;
}

bool correlate_pairs(const Source& x, const ConvWeights<bfloat16>& weights,
                     const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
                     TileSink<bfloat16>& sink, int64_t images) {
  // A pair is of one group, and there is nothing to gain where one channel is all there is.
  const bool suits = weights.inputs > 1 && (weights.groups == 1 || weights.inputs % 2 == 0);
  if (!suits || !multiplies_pairs()) return false;
  PairCorrelation(x, weights, h, w, sink, images).run();
  return true;
}

bool weight_gradient_of_pairs(const Source& x, const Source& grad, const ConvWeights<bfloat16>& weights,
                              const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images,
                              bfloat16* weight, bfloat16* bias) {
  if (!multiplies_pairs()) return false;
  PairWeightGradient sums(x, grad, weights, h, w, images);
  if (!sums.suits()) return false;
  sums.run(weight, bias);
  return true;
}

#else

bool multiplies_pairs() { return false; }

bool correlate_pairs(const ImageSource<bfloat16>&, const ConvWeights<bfloat16>&,
                     const std::vector<math::CorrelationAxis>&, const std::vector<math::CorrelationAxis>&,
                     TileSink<bfloat16>&, int64_t) {
  return false;
}

bool weight_gradient_of_pairs(const ImageSource<bfloat16>&, const ImageSource<bfloat16>&,
                              const ConvWeights<bfloat16>&, const math::CorrelationAxis&,
                              const math::CorrelationAxis&, int64_t, bfloat16*, bfloat16*) {
  return false;
}

#endif

}  // namespace pyops::cpu
