// The output's gradient as the weight gradient's kernels want it, and its sums, which are the bias's
// gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"

namespace pyops::cpu {

// A tile of one image's gradient of `outputs` channels, the first at element `origin`, as panels
// [pixel][output channel] of `total` pixels, beginning with number `first`.
template <class T>
void pack_gradient(const ImageSource<T>& grad, int64_t origin, int64_t outputs, const ConvTile& tile,
                   const ChannelPanels<acc_t<T>>& panels, int64_t first, int64_t total, acc_t<T>* packed) {
  using Acc = acc_t<T>;
  constexpr int64_t n = Vec<Acc>::kLanes;
  const bool joined = tile.columns * grad.column_stride == grad.row_stride;
  const int64_t rows = joined ? 1 : tile.rows, columns = joined ? tile.rows * tile.columns : tile.columns;
  for (int64_t k = 0; k < panels.padded(); k += n) {
    const int64_t panel = k / panels.kWide, width = panels.width(panel);
    const int count = static_cast<int>(std::clamp<int64_t>(outputs - k, 0, n));
    Acc* to = packed + panels.begin(panel) * total + first * width + k - panels.begin(panel);
    for (int64_t row = 0; row < rows; ++row, to += columns * width) {
      const int64_t from = origin + row * grad.row_stride + k * grad.channel_stride;
      if (grad.channel_stride != 1) {
        transpose_channels(grad, from, columns, count, width, to);
        continue;
      }
      for (int64_t p = 0; p < columns; ++p) {
        const int64_t at = from + p * grad.column_stride;
        store(to + p * width, count > 0 ? grad.vector(at, count) : Vec<Acc>(Acc(0)));
      }
    }
  }
}

// A tile of one group's gradient, image after image; returns its pixels.
template <class T>
int64_t pack_gradients(const WeightGradientProblem<T>& problem, const TileImages& images, int64_t group,
                       const ConvTile& tile, const ChannelPanels<acc_t<T>>& panels, acc_t<T>* packed) {
  const ImageSource<T>& grad = problem.grad;
  const int64_t outputs = problem.weights.outputs, pixels = tile.rows * tile.columns;
  const int64_t total = images.count * pixels;
  const int64_t origin =
      group * outputs * grad.channel_stride + tile.row * grad.row_stride + tile.column * grad.column_stride;
  for (int64_t i = 0; i < images.count; ++i) {
    pack_gradient(grad, origin + (images.first + i) * grad.image_stride, outputs, tile, panels, i * pixels,
                  total, packed);
  }
  return total;
}

// Terms that are added up before their sum joins that of the others: in one long chain the error would grow
// with its length.
constexpr int64_t kSummedInARow = 16;

// The sum of `terms` vectors, `stride` apart.
template <class Acc>
Vec<Acc> sum_of_vectors(int64_t terms, const Acc* from, int64_t stride) {
  Vec<Acc> total = Acc(0);
  for (int64_t begin = 0; begin < terms; begin += kSummedInARow) {
    Vec<Acc> part = Acc(0);
    const int64_t end = std::min(terms, begin + kSummedInARow);
    for (int64_t i = begin; i < end; ++i) part += load<Acc>(from + i * stride);
    total += part;
  }
  return total;
}

// Sums of packed panels over their pixels, added to `sums` or put there.
template <class Acc>
void add_packed(const ChannelPanels<Acc>& panels, int64_t pixels, const Acc* packed, Acc* sums,
                bool accumulate) {
  for (int64_t k = 0; k < panels.padded(); k += Vec<Acc>::kLanes) {
    const int64_t panel = k / panels.kWide, width = panels.width(panel);
    const Acc* const from = packed + panels.begin(panel) * pixels + k - panels.begin(panel);
    const Vec<Acc> total = sum_of_vectors(pixels, from, width);
    store(sums + k, accumulate ? load<Acc>(sums + k) + total : total);
  }
}

// Sums of `channels` planes, `plane` apart with rows of `line` elements, over a tile's pixels.
template <class Acc>
void add_planes(const ConvTile& tile, int64_t channels, int64_t line, int64_t plane, const Acc* planes,
                Acc* sums, bool accumulate) {
  for (int64_t k = 0; k < channels; ++k) {
    Vec<Acc> total = Acc(0);
    for (int64_t row = 0; row < tile.rows; ++row) {
      const Acc* const from = planes + k * plane + row * line;
      for_each_vector<Acc>(tile.columns, [&](int64_t i, int lanes) { total += load_lanes(from + i, lanes); });
    }
    sums[k] = accumulate ? sums[k] + horizontal_sum(total) : horizontal_sum(total);
  }
}

}  // namespace pyops::cpu
