// What the depthwise correlation and its weight gradient share. Every channel has a kernel of its own, so
// nothing is shared between channels but instructions: vectors lie along channels.
//
// A channels_last image is read where it lies, a line of the cache or more of each pixel. Of a planar image a
// vector of channels is transposed into scratch memory first, and is then such an image itself. Taps outside
// the image are left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// Channels in parts of whole vectors but for the last.
template <class Acc>
class VectorSplit {
 public:
  static constexpr int64_t n = Vec<Acc>::kLanes;

  VectorSplit(int64_t channels, int64_t most)
      : channels_(channels), split_(ceil_div(channels, n), ceil_div(channels, most)) {}

  int64_t parts() const { return split_.parts; }
  int64_t begin(int64_t part) const { return n * split_.begin(part); }
  int64_t size(int64_t part) const { return std::min(n * split_.size(part), channels_ - begin(part)); }
  // Of the largest part, in whole vectors.
  int64_t width() const { return n * split_.size(0); }

 private:
  int64_t channels_;
  EvenSplit split_;
};

// Some channels of an image, as a channels_last one: element (row, column) at
// origin + row * source.row_stride + column * source.column_stride.
template <class S>
struct ChannelsSource {
  ImageSource<S> source;
  int64_t origin;
  int64_t channels;
};

// For compilers: they drop the check in loops.
template <class S>
PYOPS_HD ImageSource<S> without_relu(ImageSource<S> x) {
  x.relu_output = nullptr;
  return x;
}

// The elements of an axis that a tile's outputs read.
inline InsideRange source_range(const math::CorrelationAxis& axis, int64_t first, int64_t outputs) {
  InsideRange range(0, 1, 0, 0);
  const int64_t begin = (first + axis.min_shift) * axis.source_step + axis.source_first;
  const int64_t end =
      (first + outputs - 1 + axis.max_shift) * axis.source_step + axis.phases + axis.source_first;
  range.begin = std::clamp<int64_t>(begin, 0, axis.source_size);
  range.end = std::clamp<int64_t>(end, range.begin, axis.source_size);
  return range;
}

// Copies up to a vector of channels of the rows and columns that a tile reads to memory of `scratch`.
template <class T>
ChannelsSource<acc_t<T>> pack_channels(const ImageSource<T>& x, int64_t image, int64_t channel,
                                       int64_t channels, const InsideRange& rows, const InsideRange& columns,
                                       Scratch& scratch) {
  using Acc = acc_t<T>;
  constexpr int64_t n = Vec<Acc>::kLanes;
  const int64_t high = rows.end - rows.begin, wide = columns.end - columns.begin;
  Acc* const packed = scratch.take<Acc>(high * wide * n);
  const int64_t from = image * x.image_stride + channel * x.channel_stride + rows.begin * x.row_stride +
                       columns.begin * x.column_stride;
  if (x.channels_are_neighbours()) {  // the gradient is planar, or the input is
    for (int64_t i = 0; i < high * wide; ++i) {
      const int64_t at = from + i / wide * x.row_stride + i % wide * x.column_stride;
      store(packed + i * n, x.vector(at, static_cast<int>(channels)));
    }
  } else {
    const bool joined = wide == x.row_stride;
    const int64_t runs = joined ? std::min<int64_t>(high, 1) : high, length = joined ? high * wide : wide;
    for (int64_t i = 0; i < runs; ++i) {
      transpose_channels(x, from + i * x.row_stride, length, static_cast<int>(channels), n,
                         packed + i * wide * n);
    }
  }
  return {{packed, nullptr, 0, 1, wide * n, n}, -(rows.begin * wide + columns.begin) * n, n};
}

// A rectangle of outputs of one phase for which the same taps lie inside the image.
struct TapRegion {
  const math::CorrelationAxis* h;
  const math::CorrelationAxis* w;
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
  int64_t first;  // of its taps
  int64_t taps;
};

// The regions of a tile: three by three of them for three taps on an axis.
class TapRegions {
 public:
  // Of sources with these strides; a tap's weights lie tap_stride apart.
  TapRegions(int64_t row_stride, int64_t column_stride, int64_t kernel_columns, int64_t tap_stride)
      : row_stride_(row_stride),
        column_stride_(column_stride),
        kernel_columns_(kernel_columns),
        tap_stride_(tap_stride) {}

  void add(const math::CorrelationAxis& h, const math::CorrelationAxis& w, const ConvTile& tile) {
    const std::vector<int64_t> rows = bounds(h, tile.row, tile.rows);
    const std::vector<int64_t> columns = bounds(w, tile.column, tile.columns);
    for (size_t i = 0; i + 1 < rows.size(); ++i) {
      for (size_t j = 0; j + 1 < columns.size(); ++j) {
        TapRegion region{&h,
                         &w,
                         rows[i],
                         rows[i + 1] - rows[i],
                         columns[j],
                         columns[j + 1] - columns[j],
                         int64_t(offsets_.size()),
                         0};
        list_taps(region);
        regions_.push_back(region);
      }
    }
  }

  const std::vector<TapRegion>& all() const { return regions_; }
  // Where a region's taps read, from where an output at row and column 0 would without padding, and where
  // their weights are.
  const int64_t* offsets(const TapRegion& region) const { return offsets_.data() + region.first; }
  const int64_t* weights(const TapRegion& region) const { return weights_.data() + region.first; }
  // Of an output of a region.
  int64_t source(const TapRegion& region, int64_t row, int64_t column) const {
    return row * region.h->source_step * row_stride_ + column * region.w->source_step * column_stride_;
  }

  // How many taps in a row read neighbours, if each output reads one element further than the one before it;
  // 0 if taps are not neighbours or rows have different numbers of them.
  int64_t neighbours(const TapRegion& region) const {
    if (region.w->source_step != 1 || region.taps == 0) return 0;
    const int64_t* const at = offsets(region);
    int64_t run = 1;
    while (run < region.taps && at[run] - at[run - 1] == column_stride_) ++run;
    for (int64_t t = 0; t < region.taps; ++t) {
      if (t % run != 0 && at[t] - at[t - 1] != column_stride_) return 0;
    }
    return region.taps % run == 0 ? run : 0;
  }

 private:
  // Where regions begin, and the end.
  static std::vector<int64_t> bounds(const math::CorrelationAxis& axis, int64_t begin, int64_t count) {
    std::vector<int64_t> found{begin, std::clamp(axis.count, begin, begin + count)};
    for (const math::ConvTap& tap : axis.taps) {
      const InsideRange inside(axis.source_index(0, tap), axis.source_step, axis.source_size, axis.count);
      found.push_back(std::clamp(inside.begin, found[0], found[1]));
      found.push_back(std::clamp(inside.end, found[0], found[1]));
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
  }

  void list_taps(TapRegion& region) {
    const math::CorrelationAxis &h = *region.h, &w = *region.w;
    for (const math::ConvTap& r : h.taps) {
      const int64_t row = h.source_index(region.row, r);
      if (row < 0 || row >= h.source_size) continue;
      for (const math::ConvTap& s : w.taps) {
        const int64_t column = w.source_index(region.column, s);
        if (column < 0 || column >= w.source_size) continue;
        offsets_.push_back(h.source_index(0, r) * row_stride_ + w.source_index(0, s) * column_stride_);
        weights_.push_back((r.kernel * kernel_columns_ + s.kernel) * tap_stride_);
      }
    }
    region.taps = static_cast<int64_t>(offsets_.size()) - region.first;
  }

  int64_t row_stride_;
  int64_t column_stride_;
  int64_t kernel_columns_;
  int64_t tap_stride_;
  std::vector<TapRegion> regions_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> weights_;
};

// Calls f(channel, lanes) for each vector of channels, with a constant where all lanes are wanted.
template <class Acc, class F>
PYOPS_HD void for_each_vector_of_channels(int64_t channels, const F& f) {
  constexpr int n = Vec<Acc>::kLanes;
  int64_t c = 0;
  for (; c + n <= channels; c += n) f(c, std::integral_constant<int, n>{});
  if (c < channels) f(c, static_cast<int>(channels - c));
}

// A depthwise convolution's weights as those of one group with so many outputs: [tap][channel] is then what
// read_taps and write_taps (pack_weights.h) know.
template <class T>
ConvWeights<T> as_outputs(const ConvWeights<T>& w) {
  ConvWeights<T> all = w;
  all.outputs = w.groups;
  all.output_stride = w.group_stride;
  all.groups = 1;
  all.group_stride = w.groups * w.group_stride;
  all.input_stride = all.group_stride;  // of the only one: taps are neighbours
  return all;
}

}  // namespace pyops::cpu
