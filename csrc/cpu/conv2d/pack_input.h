// The part of an image that one tile of a convolution reads, as the micro-kernels want it: planar, in the
// accumulation type, zeros around the image, a stride's phases apart. Whatever the tensor's dtype, format,
// padding, stride and dilation, element (channel, row, column) of a tap is then at a fixed offset from the
// output pixel's, and pixels of a row are neighbours.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/integers.h"
#include "cpu/conv2d/problem.h"
#include "cpu/simd/lanes.h"

namespace pyops::cpu {

// Sizes of a packed input: [channel][row phase][column phase][row][column].
struct PackedInputShape {
  int64_t rows;
  int64_t columns;
  int64_t row_phases;
  int64_t column_phases;

  PackedInputShape(const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t tile_rows,
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

// The elements [begin, end) of a row of `span` that lie inside the tensor; element i is at first + i * step.
struct InsideRange {
  InsideRange(int64_t first, int64_t step, int64_t size, int64_t span) {
    begin = first >= 0 ? 0 : std::min(span, (-first + step - 1) / step);
    end = first >= size ? begin : std::min(span, (size - 1 - first) / step + 1);
    end = std::max(begin, end);
  }
  int64_t begin;
  int64_t end;
};

// An axis whose outputs are the source's elements.
inline math::CorrelationAxis identity_axis(int64_t count) {
  math::CorrelationAxis axis{count, 0, 1, count, 0, 1, {}};
  axis.add({0, 0, 0});
  return axis;
}

// Channels whose part of a tile, rows x columns, makes up the cache lines that are to be under way at a time:
// what waits for each of them waits for memory.
inline int64_t channels_under_way(int64_t rows, int64_t columns, int64_t vector) {
  constexpr int64_t kLines = 24;
  return std::max<int64_t>(1, kLines / std::max<int64_t>(1, rows * ceil_div(columns, vector)));
}

// A square of `lanes` pixels of kLanes neighbouring channels, of which `count` exist, planar in memory: then
// a vector of channels for each pixel.
template <class T>
PYOPS_HD void read_square(const ImageSource<T>& x, int64_t from, int count, int lanes,
                          Vec<acc_t<T>> (&square)[Vec<acc_t<T>>::kLanes]) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  const auto read = [&](int i, int some) {
    const int64_t at = from + i * x.channel_stride, ahead = at + 4 * n;  // of so many rows at a time
    __builtin_prefetch(x.values + ahead);
    if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + ahead);
    return x.vector(at, some);
  };
  if (count == n && lanes == n) {  // the square stays in registers
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = read(i, n);
  } else {
    for (int i = 0; i < n; ++i) square[i] = i < count ? read(i, lanes) : Vec<Acc>(Acc(0));
  }
  transpose<Acc>(square);
}

// Some pixels of kLanes neighbouring channels, of which `count` exist, planar in memory, as
// to[pixel * width + channel].
template <class T>
void transpose_channels(const ImageSource<T>& x, int64_t from, int64_t pixels, int count, int64_t width,
                        acc_t<T>* to) {
  using Acc = acc_t<T>;
  for_each_vector<Acc>(pixels, [&](int64_t p, int lanes) {
    Vec<Acc> square[Vec<Acc>::kLanes];
    read_square(x, from + p, count, lanes, square);
    for (int i = 0; i < lanes; ++i) store(to + (p + i) * width, square[i]);
  });
}

// A row of `columns` elements of a planar image, of which `inside` exist: element 0 is at `at`. Writes whole
// vectors, and fetches what lies `ahead`, a later channel's row, since no prefetcher follows so short rows so
// far apart.
template <class T>
void pack_row(const ImageSource<T>& x, int64_t at, int64_t ahead, const InsideRange& inside, int64_t columns,
              acc_t<T>* to) {
  constexpr int64_t n = Vec<acc_t<T>>::kLanes;
  for (int64_t i = 0; i < columns; i += n) {
    const int first = static_cast<int>(std::min(n, std::max<int64_t>(0, inside.begin - i)));
    const int last = static_cast<int>(std::min(n, std::max<int64_t>(first, inside.end - i)));
    __builtin_prefetch(x.values + at + ahead + i);
    if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + at + ahead + i);
    const bool whole = first == 0 && last == n;
    store(to + i, whole ? x.vector(at + i, static_cast<int>(n)) : x.window(at + i, first, last));
  }
}

// The same row of several channels that are neighbours in memory, while a row's elements are `step` apart.
template <class T>
void pack_rows_of_channels(const ImageSource<T>& x, int64_t at, int64_t step, int64_t count, int64_t channels,
                           int64_t channel_size, acc_t<T>* to) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  constexpr int kFewest = n / 4;  // elements for which a square pays
  for (int64_t c = 0; c < channels; c += n) {
    const int lanes = static_cast<int>(std::min<int64_t>(n, channels - c));
    int64_t i = 0;
    for (; i + n <= count; i += n) {
      Vec<Acc> square[n];
      for (int j = 0; j < n; ++j) square[j] = x.vector(at + (i + j) * step + c, lanes);
      transpose<Acc>(square);
      for (int j = 0; j < lanes; ++j) store(to + (c + j) * channel_size + i, square[j]);
    }
    const int rest = static_cast<int>(count - i);
    if (rest >= kFewest) {
      Vec<Acc> square[n];
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j)
        square[j] = j < rest ? x.vector(at + (i + j) * step + c, lanes) : Vec<Acc>(Acc(0));
      transpose<Acc>(square);
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) {
        if (j < lanes) store_lanes(to + (c + j) * channel_size + i, square[j], rest);
      }
      continue;
    }
    for (; i < count; ++i) {
      for (int j = 0; j < lanes; ++j) to[(c + j) * channel_size + i] = x.scalar(at + i * step + c + j);
    }
  }
}

// `count` elements that are `step`, a power of 2, apart; touches no memory between the last and the next.
template <int step, class T>
Vec<acc_t<T>> every(const ImageSource<T>& x, int64_t at, int count) {
  constexpr int n = Vec<acc_t<T>>::kLanes;
  if constexpr (step == 1) {
    return x.vector(at, count);
  } else {
    const int low = std::min(count, n / 2);
    return every_other<0>(every<step / 2>(x, at, std::max(0, 2 * low - 1)),
                          every<step / 2>(x, at + n * (step / 2), std::max(0, 2 * (count - low) - 1)));
  }
}

// Elements that are `step` apart, of which `inside` exist; fetches what lies `ahead`. Writes whole vectors.
template <class T>
void pack_strided_row(const ImageSource<T>& x, int64_t at, int64_t ahead, int64_t step,
                      const InsideRange& inside, int64_t columns, acc_t<T>* to) {
  using Acc = acc_t<T>;
  constexpr int64_t n = Vec<Acc>::kLanes;
  std::fill(to, to + inside.begin, Acc(0));
  const auto pack = [&](const auto& vector) {
    for (int64_t i = inside.begin; i < inside.end; i += n) {
      const int64_t from = at + i * step;
      for (int64_t line = 0; line < step; ++line) __builtin_prefetch(x.values + from + ahead + line * n);
      store(to + i, vector(from, static_cast<int>(std::min(n, inside.end - i))));
    }
  };
  if (step == 2) {
    pack([&](int64_t from, int count) { return every<2>(x, from, count); });
  } else if (step == 4) {
    pack([&](int64_t from, int count) { return every<4>(x, from, count); });
  } else {
    for (int64_t i = inside.begin; i < inside.end; ++i) to[i] = x.scalar(at + i * step);
  }
  std::fill(to + inside.end, to + columns, Acc(0));
}

// Packs channels [channel, channel + channels) of one image for a tile. Writes up to a vector past the end.
template <class T>
void pack_input(const ImageSource<T>& x, int64_t image, int64_t channel, int64_t channels,
                const math::CorrelationAxis& h, const math::CorrelationAxis& w, const PackedInputShape& shape,
                const ConvTile& tile, acc_t<T>* packed_input) {
  using Acc = acc_t<T>;
  const int64_t rows = h.source_span(tile.rows), columns = w.source_span(tile.columns);
  const int64_t origin = image * x.image_stride + channel * x.channel_stride;
  const int64_t step = w.source_step * x.column_stride;
  const bool together = x.channels_are_neighbours();
  const int64_t ahead =
      channels_under_way(rows * h.source_step, columns * step, Vec<Acc>::kLanes) * x.channel_stride;
  // Channels that are neighbours in memory are packed row by row, others one after the other.
  const int64_t passes = together ? 1 : channels, in_pass = together ? channels : 1;
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t phase = 0; phase < shape.row_phases * shape.column_phases; ++phase) {
      const int64_t row_phase = phase / shape.column_phases, column_phase = phase % shape.column_phases;
      const int64_t first_row = (tile.row + h.min_shift) * h.source_step + row_phase + h.source_first;
      const int64_t first_column =
          (tile.column + w.min_shift) * w.source_step + column_phase + w.source_first;
      const InsideRange inside(first_column, w.source_step, w.source_size, columns);
      Acc* const plane = packed_input + pass * shape.channel() + phase * shape.plane();
      for (int64_t i = 0; i < rows; ++i) {
        Acc* const to = plane + i * shape.columns;
        const int64_t row = first_row + i * h.source_step;
        const int64_t at =
            origin + pass * x.channel_stride + row * x.row_stride + first_column * x.column_stride;
        const bool exists = row >= 0 && row < h.source_size;
        if (exists && !together) {
          step == 1 ? pack_row(x, at, ahead, inside, columns, to)
                    : pack_strided_row(x, at, ahead, step, inside, columns, to);
          continue;
        }
        const int64_t begin = exists ? inside.begin : columns, end = exists ? inside.end : columns;
        for (int64_t c = 0; c < in_pass; ++c) {
          std::fill(to + c * shape.channel(), to + c * shape.channel() + begin, Acc(0));
          std::fill(to + c * shape.channel() + end, to + c * shape.channel() + columns, Acc(0));
        }
        if (begin < end) {
          pack_rows_of_channels(x, at + begin * step, step, end - begin, channels, shape.channel(),
                                to + begin);
        }
      }
    }
  }
}

}  // namespace pyops::cpu
