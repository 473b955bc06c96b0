// The part of an image that one tile of a convolution reads, as the micro-kernels want it: planar, in the
// accumulation type, zeros around the image, a stride's phases apart. Whatever the tensor's dtype, format,
// padding, stride and dilation, element (channel, row, column) of a tap is then at a fixed offset from the
// output pixel's, and pixels of a row are neighbours.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/gemm/pack.h"
#include "cpu/simd/loops.h"
#include "math/conv2d.h"

namespace pyops::cpu {

// Images in memory, channels_last or not. Where `gate`, of the same strides, is not positive, the values
// count as zero: that is ReLU's gradient, from the upstream gradient and the output.
template <class T>
struct ImageSource {
  const T* values;
  const T* gate;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;

  Vec<acc_t<T>> vector(int64_t at, int lanes) const {
    using V = Vec<acc_t<T>>;
    const V v = load_lanes(values + at, lanes);
    if (gate == nullptr) return v;
    return select_at_most(load_lanes(gate + at, lanes), V(acc_t<T>(0)), V(acc_t<T>(0)), v);
  }
  // Lanes [first, last) from memory, which is not touched elsewhere, zeros around them.
  Vec<acc_t<T>> window(int64_t at, int first, int last) const {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
      const __mmask16 lanes = static_cast<__mmask16>((1u << last) - (1u << first));
      const __m512 v = _mm512_maskz_loadu_ps(lanes, values + at);
      if (gate == nullptr) return Vec<float>::Native(v);
      const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + at);  // NaN passes
      return Vec<float>::Native(
          _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_NLE_UQ), v));
    }
#endif
    acc_t<T> lanes[Vec<acc_t<T>>::kLanes] = {};
    for (int i = first; i < last; ++i) lanes[i] = scalar(at + i);
    return load<acc_t<T>>(lanes);
  }
  acc_t<T> scalar(int64_t at) const {
    return gate != nullptr && to_acc(gate[at]) <= 0 ? acc_t<T>(0) : to_acc(values[at]);
  }
};

// Sizes of a slab: [channels][row phases][column phases][rows][columns].
struct SlabShape {
  int64_t rows;
  int64_t columns;
  int64_t row_phases;
  int64_t column_phases;

  SlabShape(const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t tile_rows,
            int64_t tile_columns)
      : rows(h.source_span(tile_rows)),
        columns(w.source_span(tile_columns)),
        row_phases(h.phases),
        column_phases(w.phases) {}

  int64_t plane() const { return rows * columns; }
  int64_t channel() const { return row_phases * column_phases * plane(); }

  // Of each term of a sum over `channels`, from the output pixel's place; channels outermost, then rows.
  std::vector<int64_t> offsets(const math::CorrelationAxis& h, const math::CorrelationAxis& w,
                               int64_t channels) const {
    std::vector<int64_t> found;
    found.reserve(channels * h.taps.size() * w.taps.size());
    for (int64_t c = 0; c < channels; ++c) {
      for (const math::ConvTap& r : h.taps) {
        for (const math::ConvTap& s : w.taps) {
          found.push_back(c * channel() + (r.phase * column_phases + s.phase) * plane() +
                          (r.shift - h.min_shift) * columns + s.shift - w.min_shift);
        }
      }
    }
    return found;
  }
};

// A tile of outputs, by its first row and column and its size, and which one of its axes' tiles it is.
struct ConvTile {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
  int64_t row_part = 0;
  int64_t column_part = 0;
};

// The run of elements [begin, end) of a row of `span` that lie inside the tensor; element i is at
// first + i * step.
struct InsideRun {
  InsideRun(int64_t first, int64_t step, int64_t size, int64_t span) {
    begin = first >= 0 ? 0 : std::min(span, (-first + step - 1) / step);
    end = first >= size ? begin : std::min(span, (size - 1 - first) / step + 1);
    end = std::max(begin, end);
  }
  int64_t begin;
  int64_t end;
};

// A row of `columns` elements of a planar image, of which `inside` exist: element 0 is at `at`. Writes whole
// vectors, and fetches the next channel's row meanwhile, since no prefetcher follows so short rows so far
// apart.
template <class T>
void fill_row(const ImageSource<T>& x, int64_t at, const InsideRun& inside, int64_t columns, acc_t<T>* to) {
  constexpr int64_t n = Vec<acc_t<T>>::kLanes;
  for (int64_t i = 0; i < columns; i += n) {
    const int first = static_cast<int>(std::min(n, std::max<int64_t>(0, inside.begin - i)));
    const int last = static_cast<int>(std::min(n, std::max<int64_t>(first, inside.end - i)));
    __builtin_prefetch(x.values + at + x.channel_stride + i);
    if (x.gate != nullptr) __builtin_prefetch(x.gate + at + x.channel_stride + i);
    const bool whole = first == 0 && last == n;
    store(to + i, whole ? x.vector(at + i, static_cast<int>(n)) : x.window(at + i, first, last));
  }
}

// The same row of several channels that are neighbours in memory, while a row's elements are `step` apart.
template <class T>
void fill_rows_of_channels(const ImageSource<T>& x, int64_t at, int64_t step, int64_t count, int64_t channels,
                           int64_t channel_size, acc_t<T>* to) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  for (int64_t c = 0; c < channels; c += n) {
    const int lanes = static_cast<int>(std::min<int64_t>(n, channels - c));
    int64_t i = 0;
    for (; i + n <= count; i += n) {
      Vec<Acc> square[n];
      for (int j = 0; j < n; ++j) square[j] = x.vector(at + (i + j) * step + c, lanes);
      transpose<Acc>(square);
      for (int j = 0; j < lanes; ++j) store(to + (c + j) * channel_size + i, square[j]);
    }
    for (; i < count; ++i) {
      for (int j = 0; j < lanes; ++j) to[(c + j) * channel_size + i] = x.scalar(at + i * step + c + j);
    }
  }
}

// Elements that are `step` apart, of which `inside` exist.
template <class T>
void fill_strided_row(const ImageSource<T>& x, int64_t at, int64_t step, const InsideRun& inside,
                      int64_t columns, acc_t<T>* to) {
  std::fill(to, to + inside.begin, acc_t<T>(0));
  for (int64_t i = inside.begin; i < inside.end; ++i) to[i] = x.scalar(at + i * step);
  std::fill(to + inside.end, to + columns, acc_t<T>(0));
}

// Fills the slab of channels [channel, channel + channels) of one image for a tile. Writes up to a vector
// behind it.
template <class T>
void fill_slab(const ImageSource<T>& x, int64_t image, int64_t channel, int64_t channels,
               const math::CorrelationAxis& h, const math::CorrelationAxis& w, const SlabShape& shape,
               const ConvTile& tile, acc_t<T>* slab) {
  using Acc = acc_t<T>;
  const int64_t rows = h.source_span(tile.rows), columns = w.source_span(tile.columns);
  const int64_t origin = image * x.image_stride + channel * x.channel_stride;
  const int64_t step = w.source_step * x.column_stride;
  const bool together = x.channel_stride == 1 && x.column_stride != 1;
  // Channels that are neighbours in memory are filled row by row, others one after the other.
  const int64_t passes = together ? 1 : channels, in_pass = together ? channels : 1;
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t phase = 0; phase < shape.row_phases * shape.column_phases; ++phase) {
      const int64_t row_phase = phase / shape.column_phases, column_phase = phase % shape.column_phases;
      const int64_t first_row = (tile.row + h.min_shift) * h.source_step + row_phase + h.source_first;
      const int64_t first_column =
          (tile.column + w.min_shift) * w.source_step + column_phase + w.source_first;
      const InsideRun inside(first_column, w.source_step, w.source_size, columns);
      Acc* const plane = slab + pass * shape.channel() + phase * shape.plane();
      for (int64_t i = 0; i < rows; ++i) {
        Acc* const to = plane + i * shape.columns;
        const int64_t row = first_row + i * h.source_step;
        const int64_t at =
            origin + pass * x.channel_stride + row * x.row_stride + first_column * x.column_stride;
        const bool exists = row >= 0 && row < h.source_size;
        if (exists && !together) {
          step == 1 ? fill_row(x, at, inside, columns, to)
                    : fill_strided_row(x, at, step, inside, columns, to);
          continue;
        }
        const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
        for (int64_t c = 0; c < in_pass; ++c) {
          std::fill(to + c * shape.channel(), to + c * shape.channel() + begin, Acc(0));
          std::fill(to + c * shape.channel() + end, to + c * shape.channel() + columns, Acc(0));
        }
        if (begin < end) {
          fill_rows_of_channels(x, at + begin * step, step, end - begin, channels, shape.channel(),
                                to + begin);
        }
      }
    }
  }
}

}  // namespace pyops::cpu
