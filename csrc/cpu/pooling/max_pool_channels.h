// Rows of max pooling and of its gradient, for channels_last tensors with at least a vector of channels:
// vectors run along the channels of a pixel, a few at a time, so that one list of taps serves them all.
#pragma once

#include "cpu/pooling/position_lanes.h"
#include "math/pooling.h"

namespace pyops::cpu {

// Calls f(first, lanes, block) for blocks of vectors of `channels` elements. `lanes` is a compile-time
// constant except for what is left at the end, and block(g) calls g(0), ..., g(vectors of the block - 1),
// unrolled.
template <int... kVector>
struct ChannelBlock {
  static constexpr int kVectors = sizeof...(kVector);
  template <class G>
  PYOPS_HD void operator()(const G& g) const {
    (g(kVector), ...);
  }
};

template <class Acc, class F>
PYOPS_HD void for_each_channel_block(int64_t channels, const F& f) {
  constexpr std::integral_constant<int, Vec<Acc>::kLanes> kLanes;
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) f(c, kLanes, ChannelBlock<0, 1, 2, 3>{});
  for (; c + kLanes <= channels; c += kLanes) f(c, kLanes, ChannelBlock<0>{});
  if (c < channels) f(c, static_cast<int>(channels - c), ChannelBlock<0>{});
}

template <class T, class A>
class MaxPoolChannels {
 public:
  using Acc = acc_t<T>;

  MaxPoolChannels(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels)
      : MaxPoolChannels(height, width, channels, channels, width.in) {}
  // Pixels are `pitch` elements apart, in the output too, and rows `row_pixels` pixels.
  MaxPoolChannels(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels,
                  int64_t pitch, int64_t row_pixels)
      : height_(height), width_(width), channels_(channels), pitch_(pitch), row_pixels_(row_pixels) {}

  void forward(const T* x, int64_t row, T* output, A* argmax) {
    const int64_t image = row / height_.out, row_window = row % height_.out;
    const int64_t top = image * height_.in + height_.start(row_window);
    for (int64_t window = 0; window < width_.out; ++window) {
      list_taps(height_.taps(row_window), width_.taps(window));
      const int64_t first = height_.first_tap(row_window) * width_.kernel + width_.first_tap(window);
      pool(x + (top * row_pixels_ + width_.start(window)) * pitch_, first, output + window * pitch_,
           argmax + window * pitch_);
    }
  }

 private:
  struct Tap {
    int64_t offset;  // from the window's first, which may lie in the padding
    int64_t position;
  };

  void list_taps(math::Range rows, math::Range columns) {
    if (rows == rows_ && columns == columns_) return;
    rows_ = rows;
    columns_ = columns;
    taps_.clear();
    for (int64_t i = rows.first; i < rows.end; ++i) {
      for (int64_t j = columns.first; j < columns.end; ++j) {
        const int64_t pixel = i * height_.dilation * row_pixels_ + j * width_.dilation;
        taps_.push_back({pixel * pitch_, i * width_.kernel + j});
      }
    }
  }

  void pool(const T* x, int64_t first, T* output, A* argmax) const {
    constexpr int kStep = Vec<Acc>::kLanes;
    for_each_channel_block<Acc>(channels_, [&](int64_t c, auto lanes, auto block) {
      MaximumLanes<Acc> maximum[block.kVectors];
      block([&](int u) { maximum[u] = MaximumLanes<Acc>::starting_at(all_positions<Acc>(first)); });
      for (const Tap& tap : taps_) {
        const T* const from = x + tap.offset + c;
        const Positions<Acc> at = all_positions<Acc>(tap.position);
        block([&](int u) { maximum[u].push(load_lanes(from + u * kStep, lanes), at); });
      }
      block([&](int u) {
        store_lanes(output + c + u * kStep, maximum[u].value, lanes);
        store_positions<Acc>(argmax + c + u * kStep, maximum[u].position, lanes);
      });
    });
  }

  math::SlidingAxis height_, width_;
  int64_t channels_;
  int64_t pitch_;
  int64_t row_pixels_;
  math::Range rows_{0, -1}, columns_{0, -1};
  std::vector<Tap> taps_;
};

template <class T, class A>
class MaxPoolGradientChannels {
 public:
  using Acc = acc_t<T>;

  MaxPoolGradientChannels(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t channels)
      : height_(height), width_(width), channels_(channels) {
    for (int64_t element = 0; element < width.in; ++element)
      column_windows_.push_back(width.windows(element));
  }

  void backward(const T* grad_output, const A* argmax, int64_t row, T* grad_input) {
    const int64_t image = row / height_.in, element = row % height_.in;
    const math::Range row_windows = height_.windows(element);
    for (int64_t column = 0; column < width_.in; ++column) {
      sources_.clear();
      for (int64_t i = row_windows.first; i < row_windows.end; ++i) {
        const int64_t row_tap = height_.tap(i, element);
        if (row_tap < 0) continue;
        for (int64_t j = column_windows_[column].first; j < column_windows_[column].end; ++j) {
          const int64_t tap = width_.tap(j, column);
          if (tap < 0) continue;
          const int64_t window = (image * height_.out + i) * width_.out + j;
          sources_.push_back({window * channels_, row_tap * width_.kernel + tap});
        }
      }
      gather(grad_output, argmax, grad_input + column * channels_);
    }
  }

 private:
  struct Source {
    int64_t offset;
    int64_t position;
  };

  void gather(const T* grad_output, const A* argmax, T* grad_input) const {
    constexpr int kStep = Vec<Acc>::kLanes;
    for_each_channel_block<Acc>(channels_, [&](int64_t c, auto lanes, auto block) {
      Vec<Acc> sum[block.kVectors];
      block([&](int u) { sum[u] = Acc(0); });
      for (const Source& source : sources_) {
        const T* const grad = grad_output + source.offset + c;
        const A* const position = argmax + source.offset + c;
        const Positions<Acc> at = all_positions<Acc>(source.position);
        block([&](int u) {
          add_where_maximum<Acc>(sum[u], load_lanes(grad + u * kStep, lanes),
                                 load_positions<Acc>(position + u * kStep, lanes), at);
        });
      }
      block([&](int u) { store_lanes(grad_input + c + u * kStep, sum[u], lanes); });
    });
  }

  math::SlidingAxis height_, width_;
  int64_t channels_;
  std::vector<math::Range> column_windows_;
  std::vector<Source> sources_;
};

}  // namespace pyops::cpu
