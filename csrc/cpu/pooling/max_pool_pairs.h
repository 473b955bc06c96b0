// Rows of max pooling and of its gradient, for windows of 2 x 2 that lie side by side inside the image and
// pixels of one channel: the elements of neighbouring windows are two vectors of each of two rows, and each
// element's gradient is that of one window or zero.
#pragma once

#include "binding/pooling.h"
#include "cpu/pooling/position_lanes.h"
#include "cpu/pooling/strided_rows.h"

namespace pyops::cpu {

inline bool side_by_side(const math::SlidingAxis& axis) {
  return axis.kernel == 2 && axis.stride == 2 && axis.padding == 0 && axis.dilation == 1 &&
         2 * axis.out <= axis.in;
}
inline bool in_pairs(const Windows& windows, int64_t inner) {
  return inner == 1 && side_by_side(windows.height()) && side_by_side(windows.width());
}

template <class T, class A>
class MaxPoolPairs {
 public:
  using Acc = acc_t<T>;

  MaxPoolPairs(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t)
      : height_(height), width_(width) {}

  void forward(const T* x, int64_t row, T* output, A* argmax) const {
    const int64_t image = row / height_.out, window = row % height_.out;
    const T* const top = x + (image * height_.in + 2 * window) * width_.in;
    for_each_vector<Acc>(width_.out, [&](int64_t i, int lanes) {
      auto maximum = MaximumLanes<Acc>::starting_at(all_positions<Acc>(0));
      PYOPS_UNROLL
      for (int tap = 0; tap < 2; ++tap) {
        const T* const elements = top + tap * width_.in;
        const Vec<Acc> a = load_within<Acc>(elements, 2 * i, width_.in, 0),
                       b = load_within<Acc>(elements, 2 * i + Vec<Acc>::kLanes, width_.in, 0);
        maximum.push(every_other<0>(a, b), all_positions<Acc>(2 * tap));
        maximum.push(every_other<1>(a, b), all_positions<Acc>(2 * tap + 1));
      }
      store_lanes(output + i, maximum.value, lanes);
      store_positions<Acc>(argmax + i, maximum.position, lanes);
    });
  }

 private:
  math::SlidingAxis height_, width_;
};

template <class T, class A>
class MaxPoolGradientPairs {
 public:
  using Acc = acc_t<T>;

  MaxPoolGradientPairs(const math::SlidingAxis& height, const math::SlidingAxis& width, int64_t)
      : height_(height), width_(width) {}

  void backward(const T* grad_output, const A* argmax, int64_t row, T* grad_input) const {
    constexpr int kLanes = Vec<Acc>::kLanes;
    const int64_t image = row / height_.in, element = row % height_.in, window = element / 2;
    if (window >= height_.out) return std::fill(grad_input, grad_input + width_.in, from_acc<T>(Acc(0)));
    const int64_t first = (image * height_.out + window) * width_.out, tap = element % 2 * 2;
    for_each_vector<Acc>(width_.out, [&](int64_t i, int lanes) {
      const Vec<Acc> grad = load_lanes(grad_output + first + i, lanes);
      const Positions<Acc> at = load_positions<Acc>(argmax + first + i, lanes);
      Vec<Acc> even = Acc(0), odd = Acc(0);
      add_where_maximum<Acc>(even, grad, at, all_positions<Acc>(tap));
      add_where_maximum<Acc>(odd, grad, at, all_positions<Acc>(tap + 1));
      T* const to = grad_input + 2 * i;
      store_lanes(to, interleave<0>(even, odd), std::min(kLanes, 2 * lanes));
      if (2 * lanes > kLanes) store_lanes(to + kLanes, interleave<1>(even, odd), 2 * lanes - kLanes);
    });
    std::fill(grad_input + 2 * width_.out, grad_input + width_.in, from_acc<T>(Acc(0)));
  }

 private:
  math::SlidingAxis height_, width_;
};

}  // namespace pyops::cpu
