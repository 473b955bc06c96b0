// The maximum of a row, and the sum of exp(x - maximum) over it: what softmax and the losses begin with.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/classes/row_groups.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"
#include "math/online_softmax.h"

namespace pyops::cpu {

template <class T>
acc_t<T> row_max(const T* x, int64_t n) {
  using V = Vec<acc_t<T>>;
  constexpr acc_t<T> kLowest = -math::infinity<acc_t<T>>();
  const auto join = [](V& acc, int64_t, V v) { acc = max(v, acc); };
  return horizontal_max(reduce_row(x, n, kLowest, kLowest, join, [](V a, V b) { return max(a, b); }));
}

// Fetches the elements that follow the summed ones into cache: the sum is bound by arithmetic, and the
// maximum of the next piece would otherwise wait for memory.
template <class T>
acc_t<T> row_sum_exp(const T* x, int64_t n, acc_t<T> shift) {
  using V = Vec<acc_t<T>>;
  const auto join = [=](V& acc, int64_t i, V v) {
    __builtin_prefetch(x + n + i);
    acc += exp(v - shift);
  };
  return horizontal_sum(reduce_row(x, n, acc_t<T>(0), -math::infinity<acc_t<T>>(), join, add<V>));
}

template <class T>
struct MaxSum {
  T max;
  T sum;  // of exp(x - shift_of(max))
};

// The row is visited in pieces that fit the L1 cache, so that the sum reads what the maximum has just
// fetched; a new maximum rescales the sum so far.
template <class T>
MaxSum<acc_t<T>> row_max_sum(const T* x, int64_t n) {
  constexpr int64_t kPiece = 4096;
  MaxSum<acc_t<T>> r{-math::infinity<acc_t<T>>(), 0};
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t length = std::min(kPiece, n - begin);
    const acc_t<T> piece_max = row_max(x + begin, length);
    if (piece_max > r.max) {
      if (begin > 0) r.sum *= math::exp(r.max - piece_max);
      r.max = piece_max;
    }
    r.sum += row_sum_exp(x + begin, length, math::shift_of(r.max));
  }
  return r;
}

// ---- panels ---------------------------------------------------------------------------------------------

// The vectors of a panel that is `width` wide.
template <class Acc>
constexpr int panel_vectors(int64_t width) {
  return static_cast<int>(ceil_div(width, Vec<Acc>::kLanes));
}
template <class Acc>
constexpr int panel_lanes(int64_t width, int vector) {
  constexpr int64_t kLanes = Vec<Acc>::kLanes;
  return static_cast<int>(std::min(kLanes, width - vector * kLanes));
}

// Calls f(constant, width): a whole panel's loops have a constant length.
template <class Acc, class F>
void with_panel_width(int64_t width, const F& f) {
  if (width == Panel<Acc>::kRows) {
    f(std::integral_constant<int64_t, Panel<Acc>::kRows>{});
  } else {
    f(width);
  }
}

// A panel's elements, class after class, in memory of their own. In a tensor the classes of a panel often lie
// a power of two apart, and a few dozen of them are more than a cache keeps at such a distance: the second
// pass would fetch them all again.
template <class Acc>
class PanelCopy {
 public:
  static constexpr int64_t kMostClasses = 512;  // 128 KiB: half of a small L2 cache
  static bool suits(int64_t classes) { return classes <= kMostClasses; }

  explicit PanelCopy(int64_t classes)
      : values_(suits(classes) ? scratch_.take<Acc>(classes * Panel<Acc>::kRows) : nullptr) {}

  explicit operator bool() const { return values_ != nullptr; }
  Acc* of_class(int64_t c) const { return values_ + c * Panel<Acc>::kRows; }
  Vec<Acc> vec(int64_t c, int64_t i) const { return load<Acc>(of_class(c) + i); }

 private:
  Scratch scratch_;
  Acc* values_;
};

// Copies a panel, and asks for the lines of the panel behind it; each(u, v) sees every vector of every class.
// Lanes beyond the width are -infinity.
template <class Width, class T, class Each>
void copy_panel(const T* x, int64_t classes, int64_t stride, Width width, const PanelCopy<acc_t<T>>& copy,
                const Each& each) {
  using V = Vec<acc_t<T>>;
  for (int64_t c = 0; c < classes; ++c) {
    const T* const from = x + c * stride;
    acc_t<T>* const to = copy.of_class(c);
    for (int u = 0; u < panel_vectors<acc_t<T>>(width); ++u) {
      __builtin_prefetch(from + Panel<acc_t<T>>::kRows + u * V::kLanes);
      const V v =
          load_lanes(from + u * V::kLanes, panel_lanes<acc_t<T>>(width, u), -math::infinity<acc_t<T>>());
      store(to + u * V::kLanes, v);
      each(u, v);
    }
  }
}

template <class T>
void copied_max_sum(const T* x, int64_t classes, int64_t stride, int64_t width,
                    const PanelCopy<acc_t<T>>& copy, Panel<acc_t<T>>& max_of, Panel<acc_t<T>>& sum_of) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  with_panel_width<Acc>(width, [&](auto w) {
    V most[kUnroll], shift[kUnroll], sum[kUnroll];
    for (V& m : most) m = V(-math::infinity<Acc>());
    copy_panel(x, classes, stride, w, copy, [&](int u, V v) { most[u] = max(v, most[u]); });
    for (int u = 0; u < kUnroll; ++u) {
      shift[u] = select_greater(most[u], V(-math::infinity<Acc>()), most[u], V(Acc(0)));
      sum[u] = V(Acc(0));
    }
    for (int64_t c = 0; c < classes; ++c) {
      for (int u = 0; u < panel_vectors<Acc>(w); ++u) sum[u] += exp(copy.vec(c, u * V::kLanes) - shift[u]);
    }
    for (int u = 0; u < kUnroll; ++u) max_of.set(u * V::kLanes, most[u]), sum_of.set(u * V::kLanes, sum[u]);
  });
}

// Copies the panel of some contiguous rows, each row's elements from class to class.
template <class T>
void copy_rows(const T* x, int64_t classes, int64_t rows, const PanelCopy<acc_t<T>>& copy) {
  for (int64_t c = 0; c < classes; ++c) {
    acc_t<T>* const to = copy.of_class(c);
    for (int64_t i = 0; i < rows; ++i) to[i] = to_acc(x[i * classes + c]);
    std::fill(to + rows, to + Panel<acc_t<T>>::kRows, acc_t<T>(0));
  }
}

// As row_max_sum for the rows of a panel that has been copied.
template <class Acc>
void max_sum_of(const PanelCopy<Acc>& copy, int64_t classes, int64_t width, Panel<Acc>& max_of,
                Panel<Acc>& sum_of) {
  for_each_vector<Acc>(width, [&](int64_t i, int) {
    Vec<Acc> most = -math::infinity<Acc>(), sum = Acc(0);
    for (int64_t c = 0; c < classes; ++c) most = max(copy.vec(c, i), most);
    const Vec<Acc> shift = select_greater(most, Vec<Acc>(-math::infinity<Acc>()), most, Vec<Acc>(Acc(0)));
    for (int64_t c = 0; c < classes; ++c) sum += exp(copy.vec(c, i) - shift);
    max_of.set(i, most);
    sum_of.set(i, sum);
  });
}

// As row_max_sum for every row of a panel; the elements are then in `copy`, if it suits as many classes.
template <class T>
void panel_max_sum(const T* x, int64_t classes, int64_t stride, int64_t width,
                   const PanelCopy<acc_t<T>>& copy, Panel<acc_t<T>>& max, Panel<acc_t<T>>& sum) {
  using Acc = acc_t<T>;
  if (copy) return copied_max_sum(x, classes, stride, width, copy, max, sum);
  max.fill(-math::infinity<Acc>());
  sum.fill(0);
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      Vec<Acc> m = max.vec(i), s = sum.vec(i);
      math::online_push<Acc>(m, s, load_lanes(x + c * stride + i, lanes));
      max.set(i, m);
      sum.set(i, s);
    });
  }
}

}  // namespace pyops::cpu
