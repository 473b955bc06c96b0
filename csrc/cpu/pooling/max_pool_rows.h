// Rows of max pooling and of its gradient, for tensors whose pixels hold fewer channels than a vector has
// lanes (NCHW: one). Vectors run along the windows (strided_rows.h).
#pragma once

#include "cpu/pooling/position_lanes.h"
#include "cpu/pooling/strided_rows.h"

namespace pyops::cpu {

// Output rows of [outer, height, width, inner], any row in any order, though rows in order are faster.
template <class T, class A>
class MaxPoolRows {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

  MaxPoolRows(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t inner)
      : MaxPoolRows(height, width, inner, width.in * inner) {}
  // Rows of x are `pitch` elements apart.
  MaxPoolRows(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t inner, int64_t pitch)
      : height_(height),
        pitch_(pitch),
        layout_(width, inner),
        offsets_(layout_.offsets()),
        ring_(std::min(height.in, (height.kernel - 1) * height.dilation + 1), layout_.elements(), kLowest),
        first_tap_(width.out * inner + V::kLanes, 0) {
    for (int64_t window = 0; window < width.out && width.first_tap(window) > 0; ++window)
      std::fill_n(first_tap_.begin() + window * inner, inner, width.first_tap(window));
  }

  // Row `row` (counted over all of outer) of the output of x.
  void forward(const T* x, int64_t row, T* output, A* argmax) {
    const int64_t image = row / height_.out, window = row % height_.out;
    const math::Range taps = height_.taps(window);
    rows_.clear();
    for (int64_t tap = taps.first; tap < taps.end; ++tap) {
      const int64_t at = image * height_.in + height_.start(window) + tap * height_.dilation;
      const T* const source = x + at * pitch_;
      rows_.push_back(ring_.get(at, [&](Acc* split) { layout_.split_row(source, split, kLowest); }));
    }
    switch (layout_.axis.kernel) {
      case 2:
        return pool<2>(taps.first, output, argmax);
      case 3:
        return pool<3>(taps.first, output, argmax);
      default:
        return pool<0>(taps.first, output, argmax);
    }
  }

 private:
  static constexpr Acc kLowest = -math::infinity<Acc>();

  template <int kKernel>
  void pool(int64_t first_row, T* output, A* argmax) const {
    const int64_t kernel = kKernel > 0 ? kKernel : layout_.axis.kernel;
    for_each_vector<Acc>(layout_.axis.out * layout_.inner, [&](int64_t i, int lanes) {
      Positions<Acc> at = all_positions<Acc>(first_row * kernel);
      auto maximum = MaximumLanes<Acc>::starting_at(at + load_positions_of(i));
      for (const Acc* row : rows_) {
#pragma GCC unroll 3
        for (int64_t tap = 0; tap < kernel; ++tap) {
          maximum.push(load<Acc>(row + offsets_[tap] + i), at);
          at += 1;
        }
      }
      store_lanes(output + i, maximum.value, lanes);
      store_positions<Acc>(argmax + i, maximum.position, lanes);
    });
  }

  Positions<Acc> load_positions_of(int64_t i) const {
    Positions<Acc> first;
    memcpy(&first, first_tap_.data() + i, sizeof(first));
    return first;
  }

  math::SlidingAxis height_;
  int64_t pitch_;
  SplitLayout<Acc> layout_;
  std::vector<int64_t> offsets_;
  RowRing<Acc> ring_;
  std::vector<position_t<Acc>> first_tap_;  // of each output element's window, along its row
  std::vector<const Acc*> rows_;
};

// Rows of the input's gradient.
template <class T, class A>
class MaxPoolGradientRows {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

  MaxPoolGradientRows(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t inner)
      : height_(height),
        layout_(width, inner),
        blocks_((width.in + width.padding) / width.stride + 1),
        padded_((layout_.reach + std::max(width.out, blocks_)) * inner + V::kLanes),
        merged_elements_(blocks_ * inner + 2 * V::kLanes),
        grads_(ring_rows(height), padded_, Acc(0)),
        argmaxes_(ring_rows(height), padded_, 0),
        merged_(layout_.phases() * merged_elements_) {
    for (int64_t phase = 0; phase < layout_.phases(); ++phase) taps_.push_back(layout_.taps_of(phase));
  }

  // Row `row` (counted over all of outer) of the gradient of the input.
  void backward(const T* grad_output, const A* argmax, int64_t row, T* grad_input) {
    const int64_t image = row / height_.in, element = row % height_.in;
    const math::Range windows = height_.windows(element);
    sources_.clear();
    for (int64_t window = windows.first; window < windows.end; ++window) {
      const int64_t tap = height_.tap(window, element);
      if (tap >= 0) sources_.push_back(source(grad_output, argmax, image * height_.out + window, tap));
    }
    for (int64_t phase = 0; phase < layout_.phases(); ++phase) gather(phase);
    layout_.merge_row(merged_.data(), merged_elements_, grad_input);
  }

 private:
  // A row of windows, and the position of its first tap that can be in the row of elements.
  struct Source {
    const Acc* grad;
    const position_t<Acc>* argmax;
    int64_t position;
  };

  static int64_t ring_rows(const math::SlidingAxis& axis) {
    return std::min(axis.out, (axis.kernel - 1) * axis.dilation / axis.stride + 1);
  }

  Source source(const T* grad_output, const A* argmax, int64_t row, int64_t tap) {
    const int64_t n = layout_.axis.out * layout_.inner, margin = layout_.reach * layout_.inner;
    const Acc* grad = grads_.get(row, [&](Acc* to) {
      const T* from = grad_output + row * n;
      for_each_vector<Acc>(
          n, [&](int64_t i, int lanes) { store_lanes(to + margin + i, load_lanes(from + i, lanes), lanes); });
    });
    const position_t<Acc>* positions = argmaxes_.get(row, [&](position_t<Acc>* to) {
      const A* from = argmax + row * n;
      for (int64_t i = 0; i < n; ++i) to[margin + i] = from[i];
    });
    return {grad, positions, tap * layout_.axis.kernel};
  }

  // The gradients of every stride-th element of the padded row.
  void gather(int64_t phase) {
    const int64_t n = blocks_ * layout_.inner;
    Acc* to = merged_.data() + phase * merged_elements_;
    for (int64_t i = 0; i < n; i += V::kLanes) {
      V sum = Acc(0);
      for (const Source& source : sources_) {
        for (const auto& [tap, offset] : taps_[phase]) {
          Positions<Acc> positions;
          memcpy(&positions, source.argmax + offset + i, sizeof(positions));
          add_where_maximum<Acc>(sum, load<Acc>(source.grad + offset + i), positions,
                                 all_positions<Acc>(source.position + tap));
        }
      }
      store(to + i, sum);
    }
  }

  math::SlidingAxis height_;
  SplitLayout<Acc> layout_;
  int64_t blocks_;  // per phase of the padded row
  int64_t padded_;  // elements of a row of windows with the margins that shifted reads reach
  int64_t merged_elements_;
  RowRing<Acc> grads_;
  RowRing<position_t<Acc>> argmaxes_;
  std::vector<Acc> merged_;
  std::vector<Source> sources_;
  std::vector<std::vector<typename SplitLayout<Acc>::PhaseTap>> taps_;  // by phase
};

}  // namespace pyops::cpu
