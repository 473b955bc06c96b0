// Rows of max pooling and of its gradient, for windows that are 3 elements wide and 2 apart and pixels of one
// channel.
#pragma once

#include "binding/pooling.h"
#include "cpu/pooling/triples.h"

namespace pyops::cpu {

inline bool in_triples(const Windows& windows, int64_t inner) {
  return inner == 1 && in_triples(windows.width());
}

template <class T, class A>
class MaxPoolTriples {
 public:
  using Acc = acc_t<T>;

  MaxPoolTriples(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t)
      : height_(height), width_(width) {}

  void forward(const T* x, int64_t row, T* output, A* argmax) const {
    const int64_t image = row / height_.out, window = row % height_.out;
    const math::Range taps = height_.taps(window);
    const T* const top = x + (image * height_.in + height_.start(window)) * width_.in;
    // Loops of constant length need not make positions.
    if (taps == math::Range{0, 3}) {
      forward(std::integral_constant<int64_t, 0>{}, std::integral_constant<int64_t, 3>{}, top, output,
              argmax);
    } else {
      forward(taps.first, taps.end, top, output, argmax);
    }
  }

 private:
  template <class First, class End>
  void forward(First first, End end, const T* top, T* output, A* argmax) const {
    constexpr Acc kLowest = -math::infinity<Acc>();
    const int64_t pitch = height_.dilation * width_.in, stop = end;
    for_each_vector<Acc>(width_.out, [&](int64_t i, int lanes) {
      auto maximum = MaximumLanes<Acc>::starting_at(first_positions(first, i));
#pragma GCC unroll 3
      for (int64_t r = first; r < stop; ++r) {
        // Rows are too short, and too many are read at a time, for the hardware to see that more follow.
        if (r < 2) fetch(top + (r + kAhead) * width_.in + 2 * i);
        const auto from = load_triples<Acc>(top + r * pitch, 2 * i - width_.padding, width_.in, kLowest);
        const auto of = TripleTaps<Acc>::of(from.a, from.b, from.c);
        PYOPS_UNROLL
        for (int tap = 0; tap < 3; ++tap) maximum.push(of.tap[tap], all_positions<Acc>(3 * r + tap));
      }
      store_lanes(output + i, maximum.value, lanes);
      store_positions<Acc>(argmax + i, maximum.position, lanes);
    });
  }

  static constexpr int64_t kAhead = 12;  // rows

  static void fetch(const T* p) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; i < 2 * Vec<Acc>::kLanes; i += kLine) __builtin_prefetch(p + i);
  }

  // Of the windows' first elements in the image.
  Positions<Acc> first_positions(int64_t first_row, int64_t window) const {
    alignas(kVectorBytes) static constexpr position_t<Acc> kFirst[Vec<Acc>::kLanes] = {1};
    Positions<Acc> in_padding{};
    if (window == 0 && width_.padding == 1) memcpy(&in_padding, kFirst, sizeof(in_padding));
    return all_positions<Acc>(3 * first_row) + in_padding;
  }

  math::SlidingAxis height_, width_;
};

template <class T, class A>
class MaxPoolGradientTriples {
 public:
  using Acc = acc_t<T>;

  MaxPoolGradientTriples(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t)
      : height_(height), width_(width) {}

  // An element at an even place of the padded row is the first of a window and the last of the one before;
  // one at an odd place is in the middle of a window.
  void backward(const T* grad_output, const A* argmax, int64_t row, T* grad_input) const {
    const int64_t image = row / height_.in, element = row % height_.in, n = width_.out;
    const math::Range windows = height_.windows(element);
    for (int64_t i = 0; 2 * i < width_.in; i += kLanes) {
      const int64_t begun = i + width_.padding;  // the windows that begin at the vector's even places
      const auto before = RowPart<Acc>::of(begun - 1, n), here = RowPart<Acc>::of(begun, n),
                 around = RowPart<Acc>::of(i, n);
      Vec<Acc> even = Acc(0), odd = Acc(0);
      for (int64_t window = windows.first; window < windows.end; ++window) {
        const int64_t row_tap = height_.tap(window, element);
        if (row_tap < 0) continue;
        const T* const grad = grad_output + (image * height_.out + window) * n;
        const A* const at = argmax + (image * height_.out + window) * n;
        const Positions<Acc> tap = all_positions<Acc>(3 * row_tap);
        add_where_maximum<Acc>(even, before.load(grad, Acc(0)), before.positions(at), tap + 2);
        add_where_maximum<Acc>(even, here.load(grad, Acc(0)), here.positions(at), tap);
        add_where_maximum<Acc>(odd, around.load(grad, Acc(0)), around.positions(at), tap + 1);
      }
      if (width_.padding == 1) {
        store_alternating(grad_input + 2 * i, Alternating<T>{odd, even}, width_.in - 2 * i);
      } else {
        store_alternating(grad_input + 2 * i, Alternating<T>{even, odd}, width_.in - 2 * i);
      }
    }
  }

 private:
  static constexpr int kLanes = Vec<Acc>::kLanes;

  math::SlidingAxis height_, width_;
};

}  // namespace pyops::cpu
