// Slabs and panels of pairs for the convolution in bfloat16, which conv2d_bf16.h describes.
#include "conv2d_bf16.h"

#if defined(__AVX512F__)
#include <cstdlib>
#include <cstring>

#include "conv2d_correlate.h"
#include "conv2d_weight.h"
#endif

namespace pyops::cpu {

#if defined(__AVX512F__)

namespace {

using Source = ImageSource<bfloat16>;
constexpr int kPairs = 16;  // in a vector

__mmask32 lanes_of(int64_t count) { return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }

// The elements from `at` that `lanes` names, which alone are read, zeros elsewhere and where the gate is not
// positive; NaN is.
__m512i elements(const Source& x, int64_t at, __mmask32 lanes) {
  if (x.gate != nullptr) {
    const __m512i gate = _mm512_maskz_loadu_epi16(lanes, x.gate + at);
    constexpr short kMinusInfinity = static_cast<short>(0xff80);
    lanes = _mm512_mask_cmpgt_epi16_mask(lanes, gate, _mm512_setzero_si512()) |
            _mm512_mask_cmpgt_epu16_mask(lanes, gate, _mm512_set1_epi16(kMinusInfinity));
  }
  return _mm512_maskz_loadu_epi16(lanes, x.values + at);
}

__m256i half_elements(const Source& x, int64_t at, __mmask16 lanes) {
  return _mm512_castsi512_si256(elements(x, at, lanes));
}

__m512i joined(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

uint32_t bits(const Source& x, int64_t at) { return bit_cast<uint32_t>(x.scalar(at)) >> 16; }

// No prefetcher of the CPU's follows rows so short and so far apart.
void prefetch(const Source& x, int64_t at) {
  __builtin_prefetch(x.values + at);
  if (x.gate != nullptr) __builtin_prefetch(x.gate + at);
}

// Calls f(place, at, exists, inside) for each row that a tile reads: `place` is where it goes within a
// channel of the slab, `at` its first element, of channel 0, in the tensor.
template <class F>
void for_each_row(const Source& x, int64_t image, const math::CorrelationAxis& h,
                  const math::CorrelationAxis& w, const SlabShape& shape, const ConvTile& tile, const F& f) {
  const int64_t rows = h.source_span(tile.rows), columns = w.source_span(tile.columns);
  for (int64_t phase = 0; phase < shape.row_phases * shape.column_phases; ++phase) {
    const int64_t row_phase = phase / shape.column_phases, column_phase = phase % shape.column_phases;
    const int64_t first_row = (tile.row + h.min_shift) * h.source_step + row_phase + h.source_first;
    const int64_t first_column = (tile.column + w.min_shift) * w.source_step + column_phase + w.source_first;
    const InsideRun inside(first_column, w.source_step, w.source_size, columns);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = first_row + i * h.source_step;
      f(phase * shape.plane() + i * shape.columns,
        image * x.image_stride + row * x.row_stride + first_column * x.column_stride,
        row >= 0 && row < h.source_size, inside);
    }
  }
}

// The lanes of a vector of `width` elements, from number `i` of a row on, that are inside.
__mmask32 inside_lanes(const InsideRun& inside, int64_t i, int64_t width) {
  const int64_t first = std::clamp<int64_t>(inside.begin - i, 0, width);
  return lanes_of(std::clamp<int64_t>(inside.end - i, first, width)) & ~lanes_of(first);
}

// Squares of pixels and of pairs of channels that are neighbours in memory, exchanged: calls
// f(pair, pixel, pixels, vector) with the pair of up to kPairs pixels from `pixel`.
template <class F>
void transpose_pixels(const Source& x, int64_t at, int64_t step, int64_t count, int64_t channels,
                      const F& f) {
  for (int64_t c = 0; c < channels; c += 2 * kPairs) {
    const __mmask32 lanes = lanes_of(channels - c);
    const int64_t pairs = std::min<int64_t>(kPairs, ceil_div(channels - c, 2));
    for (int64_t i = 0; i < count; i += kPairs) {
      const int64_t pixels = std::min<int64_t>(kPairs, count - i);
      Vec<float> square[kPairs];
      for (int j = 0; j < kPairs; ++j) {
        const __m512i v = j < pixels ? elements(x, at + (i + j) * step + c, lanes) : _mm512_setzero_si512();
        square[j] = Vec<float>::Native(_mm512_castsi512_ps(v));
      }
      transpose<float>(square);
      for (int64_t j = 0; j < pairs; ++j) f(c / 2 + j, i, pixels, _mm512_castps_si512(square[j].v));
    }
  }
}

bool channels_are_neighbours(const Source& x) { return x.channel_stride == 1 && x.column_stride != 1; }

// ---- pairs of channels ----------------------------------------------------------------------------------

// A row of one channel, from element `first` on, and of the next unless it is `single`.
void fill_pair_row(const Source& x, int64_t first, bool single, int64_t step, const InsideRun& inside,
                   int64_t columns, float* to) {
  const int64_t second = first + x.channel_stride;
  if (step == 1) {
    for (int64_t i = 0; i < columns; i += kPairs) {
      const __mmask16 lanes = static_cast<__mmask16>(inside_lanes(inside, i, kPairs));
      prefetch(x, first + 2 * x.channel_stride + i);
      prefetch(x, first + 3 * x.channel_stride + i);
      const __m256i low = half_elements(x, first + i, lanes);
      const __m256i high = single ? _mm256_setzero_si256() : half_elements(x, second + i, lanes);
      _mm512_storeu_si512(to + i, joined(low, high));
    }
    return;
  }
  std::fill(to, to + columns, 0.0f);
  for (int64_t i = inside.begin; i < inside.end; ++i) {
    const uint32_t pair = bits(x, first + i * step) | (single ? 0 : bits(x, second + i * step)) << 16;
    memcpy(to + i, &pair, sizeof(pair));
  }
}

// The slab of `pairs` pairs from channel `channel` on, the last of which may be single (`channels`).
void fill_pairs(const Source& x, int64_t image, int64_t channel, int64_t channels,
                const math::CorrelationAxis& h, const math::CorrelationAxis& w, const SlabShape& shape,
                const ConvTile& tile, float* slab) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  const int64_t pairs = ceil_div(channels, 2), origin = channel * x.channel_stride;
  if (channels_are_neighbours(x)) {
    for_each_row(
        x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRun& inside) {
          const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
          for (int64_t p = 0; p < pairs; ++p) {
            float* const to = slab + p * shape.channel() + place;
            std::fill(to, to + begin, 0.0f);
            std::fill(to + end, to + columns, 0.0f);
          }
          if (begin >= end) return;
          transpose_pixels(x, origin + at + begin * step, step, end - begin, channels,
                           [&](int64_t pair, int64_t pixel, int64_t pixels, __m512i v) {
                             float* const to = slab + pair * shape.channel() + place + begin + pixel;
                             _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(lanes_of(pixels)), v);
                           });
        });
    return;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t first = origin + 2 * p * x.channel_stride;
    const bool single = 2 * p + 1 == channels;
    for_each_row(x, image, h, w, shape, tile,
                 [&](int64_t place, int64_t at, bool exists, const InsideRun& inside) {
                   float* const to = slab + p * shape.channel() + place;
                   if (!exists) return void(std::fill(to, to + columns, 0.0f));
                   fill_pair_row(x, first + at, single, step, inside, columns, to);
                 });
  }
}

// The same where channels are neighbours in memory and stay so: pixels are `stride` pairs apart.
void fill_pixels(const Source& x, int64_t image, int64_t channel, int64_t channels,
                 const math::CorrelationAxis& h, const math::CorrelationAxis& w, const SlabShape& shape,
                 const ConvTile& tile, int64_t stride, float* slab) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  for_each_row(x, image, h, w, shape, tile,
               [&](int64_t place, int64_t at, bool exists, const InsideRun& inside) {
                 const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
                 float* const row = slab + place * stride;
                 std::fill(row, row + begin * stride, 0.0f);
                 std::fill(row + end * stride, row + columns * stride, 0.0f);
                 for (int64_t i = begin; i < end; ++i) {
                   for (int64_t c = 0; c < channels; c += 2 * kPairs) {
                     _mm512_storeu_si512(row + i * stride + c / 2,
                                         elements(x, channel + at + i * step + c, lanes_of(channels - c)));
                   }
                 }
               });
}

// Two channels' weights, widened, as pairs; the second may be missing.
void join_weights(const float* first, const float* second, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kPairs) {
    const __mmask16 lanes = static_cast<__mmask16>(lanes_of(std::min<int64_t>(kPairs, count - k)));
    const __m512i low = _mm512_srli_epi32(_mm512_maskz_loadu_epi32(lanes, first + k), 16);
    const __m512i high =
        second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi32(lanes, second + k);
    _mm512_mask_storeu_epi32(to + k, lanes, _mm512_or_si512(low, high));
  }
}

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
    if (!channels_are_neighbours(x) || !panels_.vectors_along_channels || groups_in_tile_ > 1) return;
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
      fill_pixels(x_, image, 2 * pair, channels, h_, w_, shape_, tile, stride_, slab);
    } else {
      fill_pairs(x_, image, 2 * pair, channels, h_, w_, shape_, tile, slab);
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
              join_weights(from, i + 1 < channels ? from + taps * line : nullptr, width, to);
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

// ---- pairs of pixels ------------------------------------------------------------------------------------

// The slab of single elements.
void fill_singles(const Source& x, int64_t image, int64_t channel, int64_t channels,
                  const math::CorrelationAxis& h, const math::CorrelationAxis& w, const SlabShape& shape,
                  const ConvTile& tile, bfloat16* slab) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  const int64_t origin = channel * x.channel_stride;
  const bool together = channels_are_neighbours(x);
  const auto fill_row = [&](bfloat16* to, int64_t at, bool exists, const InsideRun& inside) {
    if (exists && step == 1) {
      for (int64_t i = 0; i < columns; i += 32) {
        prefetch(x, at + x.channel_stride + i);
        _mm512_storeu_si512(to + i, elements(x, at + i, inside_lanes(inside, i, 32)));
      }
      return;
    }
    std::fill(to, to + columns, bfloat16{0});
    for (int64_t i = inside.begin; exists && !together && i < inside.end; ++i) {
      to[i] = bfloat16{static_cast<uint16_t>(bits(x, at + i * step))};
    }
  };
  const auto store_singles = [](bfloat16* to, __m512i v, int64_t count) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(lanes_of(count)), _mm512_cvtepi32_epi16(v));
  };
  if (together) {
    for_each_row(
        x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRun& inside) {
          bfloat16* const row = slab + place;
          for (int64_t c = 0; c < channels; ++c) fill_row(row + c * shape.channel(), at, exists, inside);
          if (!exists || inside.begin >= inside.end) return;
          transpose_pixels(x, origin + at + inside.begin * step, step, inside.end - inside.begin, channels,
                           [&](int64_t pair, int64_t pixel, int64_t pixels, __m512i v) {
                             bfloat16* const to = row + 2 * pair * shape.channel() + inside.begin + pixel;
                             store_singles(to, v, pixels);
                             if (2 * pair + 1 == channels) return;
                             store_singles(to + shape.channel(), _mm512_srli_epi32(v, 16), pixels);
                           });
        });
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for_each_row(
        x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRun& inside) {
          fill_row(slab + c * shape.channel() + place, origin + c * x.channel_stride + at, exists, inside);
        });
  }
}

// A row of `columns` pixels' gradients of kPairs neighbouring channels, of which `count` exist, as
// to[pair of pixels * width + channel].
void pack_pair_row(const Source& grad, int64_t from, int64_t columns, int64_t count, int64_t width,
                   float* to) {
  if (grad.channel_stride == 1) {
    const __mmask16 lanes = static_cast<__mmask16>(lanes_of(count));
    for (int64_t p = 0; p < columns; p += 2) {
      const int64_t at = from + p * grad.column_stride;
      const bool single = p + 1 == columns;
      const __m256i second =
          single ? _mm256_setzero_si256() : half_elements(grad, at + grad.column_stride, lanes);
      _mm512_storeu_si512(to + p / 2 * width, joined(half_elements(grad, at, lanes), second));
    }
    return;
  }
  for (int64_t p = 0; p < columns; p += 2 * kPairs) {
    const __mmask32 lanes = lanes_of(columns - p);
    const int64_t pairs = std::min<int64_t>(kPairs, ceil_div(columns - p, 2));
    Vec<float> square[kPairs];
    for (int i = 0; i < kPairs; ++i) {
      prefetch(grad, from + i * grad.channel_stride + p + 4 * kPairs);
      const __m512i v =
          i < count ? elements(grad, from + i * grad.channel_stride + p, lanes) : _mm512_setzero_si512();
      square[i] = Vec<float>::Native(_mm512_castsi512_ps(v));
    }
    transpose<float>(square);
    for (int64_t i = 0; i < pairs; ++i) store(to + (p / 2 + i) * width, square[i]);
  }
}

// The weight gradient whose terms are pairs of pixels.
class PairWeightGradient : public WeightGradient<bfloat16> {
 public:
  PairWeightGradient(const Source& x, const Source& grad, const ConvWeights<bfloat16>& weights,
                     const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images)
      : WeightGradient(x, grad, weights, h, w, images, false) {}

  bool suits() const { return panels_.vectors_along_channels && groups_in_tile_ == 1; }

 private:
  void fill(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
            float* slab) const override {
    fill_singles(x_, image, channel, channels, h_, w_, shape_, tile, reinterpret_cast<bfloat16*>(slab));
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
          pack_pair_row(grad_, origin + row * grad_.row_stride + k * grad_.channel_stride, columns,
                        std::clamp<int64_t>(weights_.outputs - k, 0, n), width, to);
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
