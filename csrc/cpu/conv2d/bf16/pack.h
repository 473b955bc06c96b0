// Packs pairs of inputs, weights and gradients for the convolution in bfloat16 (bf16.h), on CPUs with
// AVX-512.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/conv2d/pack_input.h"

namespace pyops::cpu::bf16_pack {

using Source = ImageSource<bfloat16>;
constexpr int kPairs = 16;  // in a vector

inline __mmask32 lanes_of(int64_t count) { return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }

// The elements from `at` that `lanes` names; only they are read. Zeros elsewhere and where `relu_output`
// is not positive; NaN is.
inline __m512i elements(const Source& x, int64_t at, __mmask32 lanes) {
  if (x.relu_output != nullptr) {
    const __m512i relu_output = _mm512_maskz_loadu_epi16(lanes, x.relu_output + at);
    constexpr short kMinusInfinity = static_cast<short>(0xff80);
    lanes = _mm512_mask_cmpgt_epi16_mask(lanes, relu_output, _mm512_setzero_si512()) |
            _mm512_mask_cmpgt_epu16_mask(lanes, relu_output, _mm512_set1_epi16(kMinusInfinity));
  }
  return _mm512_maskz_loadu_epi16(lanes, x.values + at);
}

inline __m256i half_elements(const Source& x, int64_t at, __mmask16 lanes) {
  return _mm512_castsi512_si256(elements(x, at, lanes));
}

inline __m512i joined(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

inline uint32_t bits(const Source& x, int64_t at) { return bit_cast<uint32_t>(x.scalar(at)) >> 16; }

// The CPU's prefetcher does not follow rows so short and so far apart.
inline void prefetch(const Source& x, int64_t at) {
  __builtin_prefetch(x.values + at);
  if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + at);
}

// Calls f(place, at, exists, inside) for each row that a tile reads: `place` is where it goes within a
// channel of the packed input, `at` its first element, of channel 0, in the tensor.
template <class F>
inline void for_each_row(const Source& x, int64_t image, const math::CorrelationAxis& h,
                         const math::CorrelationAxis& w, const PackedInputShape& shape, const ConvTile& tile,
                         const F& f) {
  const int64_t rows = h.source_span(tile.rows), columns = w.source_span(tile.columns);
  for (int64_t phase = 0; phase < shape.row_phases * shape.column_phases; ++phase) {
    const int64_t row_phase = phase / shape.column_phases, column_phase = phase % shape.column_phases;
    const int64_t first_row = (tile.row + h.min_shift) * h.source_step + row_phase + h.source_first;
    const int64_t first_column = (tile.column + w.min_shift) * w.source_step + column_phase + w.source_first;
    const InsideRange inside(first_column, w.source_step, w.source_size, columns);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = first_row + i * h.source_step;
      f(phase * shape.plane() + i * shape.columns,
        image * x.image_stride + row * x.row_stride + first_column * x.column_stride,
        row >= 0 && row < h.source_size, inside);
    }
  }
}

// The lanes of a vector of `width` elements, from number `i` of a row on, that are inside.
inline __mmask32 inside_lanes(const InsideRange& inside, int64_t i, int64_t width) {
  const int64_t first = std::clamp<int64_t>(inside.begin - i, 0, width);
  return lanes_of(std::clamp<int64_t>(inside.end - i, first, width)) & ~lanes_of(first);
}

// Squares of pixels and of pairs of channels that are neighbours in memory, exchanged: calls
// f(pair, pixel, pixels, vector) with the pair of up to kPairs pixels from `pixel`.
template <class F>
inline void transpose_pixels(const Source& x, int64_t at, int64_t step, int64_t count, int64_t channels,
                             const F& f) {
  for (int64_t i = 0; i < count; i += kPairs) {
    const int64_t pixels = std::min<int64_t>(kPairs, count - i);
    for (int64_t c = 0; c < channels; c += 2 * kPairs) {
      const __mmask32 lanes = lanes_of(channels - c);
      const int64_t pairs = std::min<int64_t>(kPairs, ceil_div(channels - c, 2));
      Vec<float> square[kPairs];
      for (int j = 0; j < kPairs; ++j) {
        prefetch(x, at + (i + kPairs + j) * step + c);
        const __m512i v = j < pixels ? elements(x, at + (i + j) * step + c, lanes) : _mm512_setzero_si512();
        square[j] = Vec<float>::Native(_mm512_castsi512_ps(v));
      }
      transpose<float>(square);
      for (int64_t j = 0; j < pairs; ++j) f(c / 2 + j, i, pixels, _mm512_castps_si512(square[j].v));
    }
  }
}

// ---- pairs of channels ----------------------------------------------------------------------------------

// A row of one channel, from element `first` on, and of the next unless it is `single`.
inline void pack_channel_pair_row(const Source& x, int64_t first, bool single, int64_t step,
                                  const InsideRange& inside, int64_t columns, float* to) {
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

// Packs `pairs` pairs from channel `channel` on, the last of which may be single (`channels`).
inline void pack_channel_pairs(const Source& x, int64_t image, int64_t channel, int64_t channels,
                               const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                               const PackedInputShape& shape, const ConvTile& tile, float* packed_input) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  const int64_t pairs = ceil_div(channels, 2), origin = channel * x.channel_stride;
  if (x.channels_are_neighbours()) {
    for_each_row(
        x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
          const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
          for (int64_t p = 0; p < pairs; ++p) {
            float* const to = packed_input + p * shape.channel() + place;
            std::fill(to, to + begin, 0.0f);
            std::fill(to + end, to + columns, 0.0f);
          }
          if (begin >= end) return;
          transpose_pixels(x, origin + at + begin * step, step, end - begin, channels,
                           [&](int64_t pair, int64_t pixel, int64_t pixels, __m512i v) {
                             float* const to = packed_input + pair * shape.channel() + place + begin + pixel;
                             _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(lanes_of(pixels)), v);
                           });
        });
    return;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t first = origin + 2 * p * x.channel_stride;
    const bool single = 2 * p + 1 == channels;
    for_each_row(x, image, h, w, shape, tile,
                 [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
                   float* const to = packed_input + p * shape.channel() + place;
                   if (!exists) return void(std::fill(to, to + columns, 0.0f));
                   pack_channel_pair_row(x, first + at, single, step, inside, columns, to);
                 });
  }
}

// The same where channels are neighbours in memory and stay so: pixels are `stride` pairs apart.
inline void pack_channel_pairs_by_pixel(const Source& x, int64_t image, int64_t channel, int64_t channels,
                                        const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                                        const PackedInputShape& shape, const ConvTile& tile, int64_t stride,
                                        float* packed_input) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  for_each_row(x, image, h, w, shape, tile,
               [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
                 const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
                 float* const row = packed_input + place * stride;
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
inline void join_weights(const float* first, const float* second, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kPairs) {
    const __mmask16 lanes = static_cast<__mmask16>(lanes_of(std::min<int64_t>(kPairs, count - k)));
    const __m512i low = _mm512_srli_epi32(_mm512_maskz_loadu_epi32(lanes, first + k), 16);
    const __m512i high =
        second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi32(lanes, second + k);
    _mm512_mask_storeu_epi32(to + k, lanes, _mm512_or_si512(low, high));
  }
}

// ---- pairs of pixels ------------------------------------------------------------------------------------

// Packs single elements.
inline void pack_singles(const Source& x, int64_t image, int64_t channel, int64_t channels,
                         const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                         const PackedInputShape& shape, const ConvTile& tile, bfloat16* packed_input) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  const int64_t origin = channel * x.channel_stride;
  const bool together = x.channels_are_neighbours();
  const auto pack_row = [&](bfloat16* to, int64_t at, bool exists, const InsideRange& inside) {
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
    if (count == kPairs) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(lanes_of(count)), _mm512_cvtepi32_epi16(v));
  };
  if (together) {
    for_each_row(
        x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
          bfloat16* const row = packed_input + place;
          for (int64_t c = 0; c < channels; ++c) pack_row(row + c * shape.channel(), at, exists, inside);
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
    for_each_row(x, image, h, w, shape, tile,
                 [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
                   pack_row(packed_input + c * shape.channel() + place, origin + c * x.channel_stride + at,
                            exists, inside);
                 });
  }
}

// Packs pairs of pixels, `stride` apart, where channels are neighbours and there is one tap.
// Each row begins with a pair of its own.
inline void pack_pixel_pairs(const Source& x, int64_t image, int64_t channel, int64_t channels,
                             const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                             const PackedInputShape& shape, const ConvTile& tile, int64_t stride,
                             float* packed_input) {
  const int64_t columns = w.source_span(tile.columns), step = w.source_step * x.column_stride;
  for_each_row(
      x, image, h, w, shape, tile, [&](int64_t place, int64_t at, bool exists, const InsideRange& inside) {
        const auto pixel = [&](int64_t i, int64_t c) {
          const bool there = exists && i >= inside.begin && i < inside.end;
          const auto lanes = static_cast<__mmask16>(lanes_of(std::min<int64_t>(kPairs, channels - c)));
          return there ? half_elements(x, channel + at + i * step + c, lanes) : _mm256_setzero_si256();
        };
        float* to = packed_input + place / shape.columns * ceil_div(shape.columns, 2) * stride;
        for (int64_t i = 0; i < columns; i += 2, to += stride) {
          for (int64_t c = 0; c < channels; c += kPairs)
            _mm512_storeu_si512(to + c, joined(pixel(i, c), pixel(i + 1, c)));
        }
      });
}

// Pixels of a row, an even number, all channels of which are packed before the next: where channels are
// neighbours, parts of one cache line are then needed at one time.
constexpr int64_t kSegment = 32;

// Calls f(first, count) for the segments of a row.
template <class F>
inline void for_each_segment(const Source& grad, int64_t columns, const F& f) {
  const int64_t most = grad.channel_stride == 1 ? kSegment : columns;
  for (int64_t first = 0; first < columns; first += most) f(first, std::min(most, columns - first));
}

// A row of `columns` pixels' gradients of kPairs neighbouring channels, of which `count` exist, as
// to[pair of pixels * width + channel].
inline void pack_pair_row(const Source& grad, int64_t from, int64_t columns, int64_t count, int64_t width,
                          float* to) {
  if (grad.channel_stride == 1) {
    const __mmask16 lanes = static_cast<__mmask16>(lanes_of(count));
    for (int64_t p = 0; p < columns; p += 2) {
      const int64_t at = from + p * grad.column_stride;
      const bool single = p + 1 == columns;
      prefetch(grad, at + kSegment * grad.column_stride);
      prefetch(grad, at + (kSegment + 1) * grad.column_stride);
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

// sums[channel] (+)= both gradients of every pair, of kPairs channels.
inline void add_pairs(int64_t pairs, const float* packed, int64_t width, float* sums, bool accumulate) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512 total = accumulate ? _mm512_loadu_ps(sums) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512i pair = _mm512_loadu_si512(packed + p * width);
    total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)));
    total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_and_si512(pair, high)));
  }
  _mm512_storeu_ps(sums, total);
}

}  // namespace pyops::cpu::bf16_pack
