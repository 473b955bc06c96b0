// What the depthwise correlation and its weight gradient share. Every channel has a kernel of its own, so
// nothing is shared between channels but instructions: vectors lie along channels.
//
// Of a tile, a vector of channels at a time is brought into [row][column][kLanes channels] with zeros around
// the image, whatever the tensor's format: from a planar image in transposed squares. All outputs then have
// the same taps at the same offsets, and no time goes into the image's borders.
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

 private:
  int64_t channels_;
  EvenSplit split_;
};

// The part of an image that a tile reads, as it is packed: elements from (row, column) on, which may lie
// outside of the image.
struct PackedPart {
  PackedPart(const math::CorrelationAxis& h, const math::CorrelationAxis& w, const ConvTile& tile)
      : row(h.source_index(tile.row, {0, 0, h.min_shift})),
        rows(span(h, tile.rows)),
        column(w.source_index(tile.column, {0, 0, w.min_shift})),
        columns(span(w, tile.columns)),
        inside_rows(row, 1, h.source_size, rows),
        inside_columns(column, 1, w.source_size, columns) {}

  // From one packed vector of channels to the next: one cache line more than its pixels, so that what is
  // stored to several does not fall into one set of the L1 cache.
  template <class Acc>
  int64_t plane() const {
    return (rows * columns + 1) * Vec<Acc>::kLanes;
  }

  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
  InsideRange inside_rows;
  InsideRange inside_columns;

 private:
  static int64_t span(const math::CorrelationAxis& axis, int64_t outputs) {
    return (axis.source_span(outputs) - 1) * axis.source_step + axis.phases;
  }
};

// Vectors of channels that are packed together where channels are neighbours in memory: whole lines of the
// cache follow each other, and some tens of them.
inline constexpr int64_t kVectorsTogether = 8;
// Pixels whose channels are fetched ahead: the CPU's prefetcher does not follow lines so short and so far
// apart.
inline constexpr int64_t kPixelsAhead = 6;

// Packs some channels, each vector of them to a plane of its own. Writes what lies inside of the image; the
// zeros around it stay there from one packing to the next.
template <class T>
void pack_channels(const ImageSource<T>& x, int64_t image, int64_t channel, int64_t channels,
                   const PackedPart& part, acc_t<T>* packed) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  const InsideRange &rows = part.inside_rows, &columns = part.inside_columns;
  const int64_t high = rows.end - rows.begin, wide = columns.end - columns.begin;
  if (high == 0 || wide == 0) return;
  const int64_t from = image * x.image_stride + channel * x.channel_stride +
                       (part.row + rows.begin) * x.row_stride +
                       (part.column + columns.begin) * x.column_stride;
  const int64_t plane = part.template plane<Acc>();
  Acc* const to = packed + (rows.begin * part.columns + columns.begin) * n;
  if (x.channels_are_neighbours()) {
    const int64_t ahead = kPixelsAhead * x.column_stride;
    for (int64_t i = 0; i < high; ++i) {
      for (int64_t j = 0; j < wide; ++j) {
        const int64_t at = from + i * x.row_stride + j * x.column_stride;
        Acc* place = to + (i * part.columns + j) * n;
        for_each_vector<Acc>(channels, [&](int64_t c, int lanes) {
          __builtin_prefetch(x.values + at + ahead + c);
          if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + at + ahead + c);
          store(place, x.vector(at + c, lanes));
          place += plane;
        });
      }
    }
    return;
  }
  // Rows that follow each other without a gap are one long row.
  const bool joined = wide == x.row_stride;
  const int64_t runs = joined ? 1 : high, length = joined ? high * wide : wide;
  for (int64_t c = 0; c < channels; c += n) {
    const int count = static_cast<int>(std::min<int64_t>(n, channels - c));
    for (int64_t run = 0; run < runs; ++run) {
      int64_t row = run, column = 0;
      for_each_vector<Acc>(length, [&](int64_t p, int lanes) {
        Vec<Acc> square[n];
        read_square(x, from + c * x.channel_stride + run * x.row_stride + p, count, lanes, square);
        for (int i = 0; i < lanes; ++i) {
          store(to + c / n * plane + (row * part.columns + column) * n, square[i]);
          if (++column == wide) column = 0, ++row;
        }
      });
    }
  }
}

// The taps of one phase on a packed part: runs of neighbours in it, all of one length.
class DepthwiseTaps {
 public:
  // The longest run that has a micro-kernel; longer ones are taken apart.
  static constexpr int64_t kMost = 7;

  DepthwiseTaps(const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t row_length,
                int64_t kernel_columns) {
    const std::vector<Tap> rows = in_order(h), columns = in_order(w);
    const int64_t across = static_cast<int64_t>(columns.size());
    bool neighbours = across <= kMost;
    for (int64_t i = 1; i < across; ++i) neighbours = neighbours && columns[i].at == columns[i - 1].at + 1;
    length_ = neighbours ? std::max<int64_t>(1, across) : 1;
    for (const Tap& r : rows) {
      for (int64_t i = 0; i < across; ++i) {
        if (i % length_ == 0) offsets_.push_back(r.at * row_length + columns[i].at);
        taps_.push_back(r.kernel * kernel_columns + columns[i].kernel);
      }
    }
  }

  int64_t length() const { return length_; }
  int64_t count() const { return static_cast<int64_t>(offsets_.size()); }
  // Where runs begin, in pixels from where an output's least tap reads.
  const std::vector<int64_t>& offsets() const { return offsets_; }
  // The kernel's elements, one run after the other.
  const std::vector<int64_t>& taps() const { return taps_; }

 private:
  struct Tap {
    int64_t at;
    int64_t kernel;
  };
  static std::vector<Tap> in_order(const math::CorrelationAxis& axis) {
    std::vector<Tap> found;
    const int64_t least = axis.source_index(0, {0, 0, axis.min_shift});
    for (const math::ConvTap& tap : axis.taps)
      found.push_back({axis.source_index(0, tap) - least, tap.kernel});
    std::sort(found.begin(), found.end(), [](const Tap& one, const Tap& other) { return one.at < other.at; });
    return found;
  }

  int64_t length_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> taps_;
};

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
