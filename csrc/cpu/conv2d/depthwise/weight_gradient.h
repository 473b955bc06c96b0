// The gradients of a depthwise convolution's weight and bias. Each channel's are sums over its pixels alone:
// a channel's, or a vector of channels', stay in registers while a row passes by.
//
// Vectors lie along the source's neighbours as in correlation.h. Sums are formed for a row or a plane, added
// up over an image and then over a chunk of images; chunks are merged in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv2d/depthwise/correlation.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

// sums[tap] += over rows x columns pixels of x[offsets[tap] + ...] * grad[...], lanes along columns.
template <int taps, class Acc>
void add_plane_products(int64_t rows, int64_t columns, const Acc* x, int64_t x_row, const int64_t* offsets,
                        const Acc* grad, int64_t grad_row, Vec<Acc>* sums) {
  typename Vec<Acc>::Native sum[taps] = {};
  for (int64_t row = 0; row < rows; ++row, x += x_row, grad += grad_row) {
    for_each_vector<Acc>(columns, [&](int64_t i, int lanes) {
      const Vec<Acc> right = load_lanes(grad + i, lanes);
#pragma GCC unroll 16
      for (int t = 0; t < taps; ++t) sum[t] += load_lanes(x + offsets[t] + i, lanes).v * right.v;
    });
  }
  for (int t = 0; t < taps; ++t) sums[t].v += sum[t];
}

// sums[tap] += over `pixels` pixels of a row, lanes along channels; `step` from pixel to pixel of either.
template <int taps, class T>
void add_row_products(int64_t pixels, int lanes, const ImageSource<T>& x, int64_t from, int64_t x_step,
                      const int64_t* offsets, const ImageSource<T>& grad, int64_t grad_from,
                      int64_t grad_step, Vec<acc_t<T>>* sums) {
  typename Vec<acc_t<T>>::Native sum[taps] = {};
  for (int64_t i = 0; i < pixels; ++i) {
    const Vec<acc_t<T>> right = grad.vector(grad_from + i * grad_step, lanes);
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t) sum[t] += x.vector(from + offsets[t] + i * x_step, lanes).v * right.v;
  }
  for (int t = 0; t < taps; ++t) sums[t].v += sum[t];
}

template <class T>
class DepthwiseWeightGradient {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int64_t n = V::kLanes;

  explicit DepthwiseWeightGradient(const WeightGradientProblem<T>& problem)
      : problem_(problem),
        groups_(problem.weights.groups),
        taps_(static_cast<int64_t>(problem.h.taps.size() * problem.w.taps.size())),
        along_channels_(problem.x.channels_are_neighbours() && problem.grad.channels_are_neighbours()),
        channels_(groups_, ceil_div(groups_, along_channels_ ? n : kDepthwisePlanes)),
        chunks_(problem.images,
                std::max<int64_t>(1, std::min(problem.images, ceil_div(kUnits, channels_.parts)))),
        row_tiles_(problem.h.count,
                   std::clamp<int64_t>(problem.pixels() / kDepthwisePixels, 1, problem.h.count)),
        shape_(problem.h, problem.w, row_tiles_.size(0), problem.w.count),
        offsets_(shape_.offsets(problem.h, problem.w, 1)),
        grad_h_(identity(problem.h.count)),
        grad_w_(identity(problem.w.count)) {}

  void run() const {
    Scratch scratch;
    Acc* const partial = scratch.take<Acc>(chunks_.parts * chunk_size());
    const double work =
        4 * double(problem_.images) * double(groups_) * double(problem_.pixels()) * double(taps_);
    parallel_claim(channels_.parts * chunks_.parts, work, [&](int64_t i) {
      const int64_t block = i % channels_.parts, chunk = i / channels_.parts;
      sum_unit(channels_.begin(block), channels_.size(block), chunk, partial + chunk * chunk_size());
    });
    merge(partial);
  }

 private:
  static constexpr int64_t kUnits = 32;  // of work

  // A thread's memory for a unit.
  struct UnitScratch {
    UnitScratch(int64_t planes_size, int64_t grads_size, int64_t sums)
        : planes(memory.take<Acc>(planes_size + 5 * n)),
          grads(memory.take<Acc>(grads_size + 5 * n)),
          image_sums(memory.take<V>(sums)),
          sums(memory.take<V>(sums)) {}
    Scratch memory;
    Acc* planes;  // packed, if vectors lie along columns
    Acc* grads;
    V* image_sums;  // [channel, unless vectors lie along them][tap, then bias]
    V* sums;
  };

  static math::CorrelationAxis identity(int64_t count) {
    math::CorrelationAxis axis{count, 0, 1, count, 0, 1, {}};
    axis.add({0, 0, 0});
    return axis;
  }

  // A chunk's sums: [tap, then bias][channel].
  int64_t line() const { return round_up(groups_, n); }
  int64_t chunk_size() const { return (taps_ + 1) * line(); }

  void sum_unit(int64_t channel, int64_t channels, int64_t chunk, Acc* to) const {
    const int64_t grad_plane = row_tiles_.size(0) * problem_.w.count;
    const int64_t sums = (along_channels_ ? 1 : channels) * (taps_ + 1);
    const UnitScratch scratch(along_channels_ ? 0 : channels * shape_.channel(),
                              along_channels_ ? 0 : channels * grad_plane, sums);
    std::fill_n(scratch.sums, sums, V(Acc(0)));
    for (int64_t i = 0; i < chunks_.size(chunk); ++i) {
      const int64_t image = chunks_.begin(chunk) + i;
      std::fill_n(scratch.image_sums, sums, V(Acc(0)));
      if (along_channels_) {
        add_rows(image, channel, static_cast<int>(channels), scratch.image_sums);
      } else {
        for (int64_t tile = 0; tile < row_tiles_.parts; ++tile)
          add_planes(image, channel, channels, tile, scratch);
      }
      for (int64_t k = 0; k < sums; ++k) scratch.sums[k] += scratch.image_sums[k];
    }
    for (int64_t t = 0; t <= taps_; ++t) {
      if (along_channels_) {
        store(to + t * line() + channel, scratch.sums[t]);
      } else {
        for (int64_t c = 0; c < channels; ++c)
          to[t * line() + channel + c] = horizontal_sum(scratch.sums[c * (taps_ + 1) + t]);
      }
    }
  }

  void add_planes(int64_t image, int64_t channel, int64_t channels, int64_t index,
                  const UnitScratch& scratch) const {
    const int64_t columns = problem_.w.count;
    const ConvTile tile{row_tiles_.begin(index), row_tiles_.size(index), 0, columns};
    const PackedInputShape grad_shape(grad_h_, grad_w_, row_tiles_.size(0), columns);
    if (problem_.weight != nullptr) {
      pack_input(problem_.x, image, channel, channels, problem_.h, problem_.w, shape_, tile, scratch.planes);
    }
    pack_input(problem_.grad, image, channel, channels, grad_h_, grad_w_, grad_shape, tile, scratch.grads);
    for (int64_t c = 0; c < channels; ++c) {
      const Acc* const plane = scratch.planes + c * shape_.channel();
      const Acc* const grad = scratch.grads + c * grad_shape.channel();
      V* const sums = scratch.image_sums + c * (taps_ + 1);
      for (int64_t t = 0; problem_.weight != nullptr && t < taps_;) {
        const auto add = [&](auto count) {
          add_plane_products<decltype(count)::value>(tile.rows, columns, plane, shape_.columns,
                                                     offsets_.data() + t, grad, columns, sums + t);
          t += decltype(count)::value;
        };
        taps_ - t >= 9   ? add(std::integral_constant<int, 9>{})
        : taps_ - t >= 3 ? add(std::integral_constant<int, 3>{})
                         : add(std::integral_constant<int, 1>{});
      }
      if (problem_.bias != nullptr) {
        V total = Acc(0);
        for_each_vector<Acc>(tile.rows * columns,
                             [&](int64_t i, int lanes) { total += load_lanes(grad + i, lanes); });
        sums[taps_] += total;
      }
    }
  }

  // Of a vector of channels.
  void add_rows(int64_t image, int64_t channel, int lanes, V* sums) const {
    const math::CorrelationAxis &h = problem_.h, &w = problem_.w;
    const ImageSource<T>&x = problem_.x, &grad = problem_.grad;
    const int64_t x_step = w.source_step * x.column_stride, in_row = static_cast<int64_t>(w.taps.size());
    std::vector<InsideRange> inside;
    std::vector<int64_t> offsets;
    int64_t first = 0, last = w.count;  // columns for which all taps lie inside the image
    for (const math::ConvTap& s : w.taps) {
      inside.emplace_back(w.source_index(0, s), w.source_step, w.source_size, w.count);
      offsets.push_back(w.source_index(0, s) * x.column_stride);
      first = std::max(first, inside.back().begin);
      last = std::min(last, inside.back().end);
    }
    last = std::max(first, last);
    for (int64_t row = 0; row < h.count; ++row) {
      const int64_t right = image * grad.image_stride + row * grad.row_stride + channel;
      if (problem_.bias != nullptr) {
        V total = Acc(0);
        for (int64_t i = 0; i < w.count; ++i) total += grad.vector(right + i * grad.column_stride, lanes);
        sums[taps_] += total;
      }
      for (size_t k = 0; problem_.weight != nullptr && k < h.taps.size(); ++k) {
        const int64_t source_row = h.source_index(row, h.taps[k]);
        if (source_row < 0 || source_row >= h.source_size) continue;
        const int64_t left = image * x.image_stride + source_row * x.row_stride + channel;
        V* const to = sums + static_cast<int64_t>(k) * in_row;
        for (int64_t s = 0; s < in_row; ++s) {  // what the others' columns leave over
          const auto add = [&](int64_t begin, int64_t end) {
            if (begin >= end) return;
            add_row_products<1>(end - begin, lanes, x, left + begin * x_step, x_step, offsets.data() + s,
                                grad, right + begin * grad.column_stride, grad.column_stride, to + s);
          };
          add(inside[s].begin, std::min(first, inside[s].end));
          add(std::max(last, inside[s].begin), inside[s].end);
        }
        for (int64_t s = 0; s < in_row;) {
          const auto add = [&](auto count) {
            add_row_products<decltype(count)::value>(
                last - first, lanes, x, left + first * x_step, x_step, offsets.data() + s, grad,
                right + first * grad.column_stride, grad.column_stride, to + s);
            s += decltype(count)::value;
          };
          in_row - s >= 5   ? add(std::integral_constant<int, 5>{})
          : in_row - s >= 3 ? add(std::integral_constant<int, 3>{})
                            : add(std::integral_constant<int, 1>{});
        }
      }
    }
  }

  void merge(const Acc* partial) const {
    const auto total = [&](int64_t tap, int64_t channel) {
      Acc sum = 0;
      for (int64_t chunk = 0; chunk < chunks_.parts; ++chunk)
        sum += partial[chunk * chunk_size() + tap * line() + channel];
      return sum;
    };
    const ConvWeights<T>& w = problem_.weights;
    int64_t tap = 0;
    for (const math::ConvTap& r : problem_.h.taps) {
      for (const math::ConvTap& s : problem_.w.taps) {
        for (int64_t g = 0; problem_.weight != nullptr && g < groups_; ++g) {
          problem_.weight[g * w.group_stride + r.kernel * w.row_stride + s.kernel * w.column_stride] =
              from_acc<T>(total(tap, g));
        }
        ++tap;
      }
    }
    for (int64_t g = 0; problem_.bias != nullptr && g < groups_; ++g)
      problem_.bias[g] = from_acc<T>(total(taps_, g));
  }

  const WeightGradientProblem<T>& problem_;
  int64_t groups_;
  int64_t taps_;
  bool along_channels_;
  EvenSplit channels_;
  EvenSplit chunks_;  // of images
  EvenSplit row_tiles_;
  PackedInputShape shape_;
  std::vector<int64_t> offsets_;
  math::CorrelationAxis grad_h_;  // the gradient's pixels as they lie
  math::CorrelationAxis grad_w_;
};

}  // namespace pyops::cpu
