// Batch normalisation of small images, in which a channel's run is too short for a loop of its own: vectors
// run along the neighbouring channels of a strip. A thread takes whole strips, which stay in its cache
// between the pass that sums and the pass that writes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/batch_norm/columns.h"
#include "cpu/batch_norm/elements.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {

struct Strips {
  static constexpr int64_t kStep = 8;  // channels: the bits of a mask's row begin with a byte
  static constexpr int64_t kFewest = 8 * kStep;
  static constexpr int64_t kCache = int64_t{256} << 10;

  BatchNormShape shape;
  int64_t channels;  // of a strip

  // Chosen by the problem alone, because the sums are other ones than those of columns.h.
  static bool suit(const BatchNormShape& s, int64_t element_bytes) {
    return s.inner > 1 && !s.has_runs() && s.channels >= kFewest && s.numel() > 0 &&
           s.outer * s.inner * kStep * element_bytes <= kCache;
  }

  static Strips of(const BatchNormShape& s, int64_t element_bytes) {
    const int64_t threads = std::max<int64_t>(1, ThreadPool{}.threads());
    const int64_t most = std::min({Columns::kStrip / s.inner, kCache / (s.outer * s.inner * element_bytes),
                                   s.channels / (4 * threads)});
    return {s, std::max(kStep, most / kStep * kStep)};
  }

  // Calls f(begin, end) for the channels of every strip.
  template <class F>
  void for_each(int64_t passes, const F& f) const {
    const int64_t count = ceil_div(shape.channels, channels);
    parallel_for(count, passes * channels * shape.count(), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(i * channels, std::min(shape.channels, (i + 1) * channels));
    });
  }

  // The same number for each of a channel's columns.
  template <class Acc, class Of>
  void spread(int64_t begin, int64_t end, Acc* to, const Of& of) const {
    for (int64_t c = begin; c < end; ++c, to += shape.inner) std::fill_n(to, shape.inner, of(c));
  }

  // A channel's table for each of its columns.
  template <class Acc>
  NormTable<Acc> columns(const NormTable<Acc>& table, int64_t begin, int64_t end, Acc* to, int arrays) const {
    const int64_t n = (end - begin) * shape.inner;
    for (int array = 0; array < arrays; ++array) {
      spread(begin, end, to + array * n, [&](int64_t c) { return table.at(array, c); });
    }
    return {n, to};
  }

  // Calls add(row, first, second) for every row of some, which adds to sums of columns in Acc, and then
  // to_channel(channel, first, second) with the sums over a channel in float64.
  template <class Acc, class Add, class ToChannel>
  void sum(int64_t begin, int64_t end, const Add& add, const ToChannel& to_channel) const {
    const int64_t n = (end - begin) * shape.inner;
    alignas(kVectorBytes) Acc first[Columns::kStrip], second[Columns::kStrip];
    double totals[2][Columns::kStrip];
    std::fill_n(totals[0], end - begin, 0.0);
    std::fill_n(totals[1], end - begin, 0.0);
    for (int64_t row = 0; row < shape.outer; row += Columns::kMostRows) {
      std::fill_n(first, n, Acc(0));
      std::fill_n(second, n, Acc(0));
      for (int64_t r = row; r < std::min(shape.outer, row + Columns::kMostRows); ++r) add(r, first, second);
      for (int64_t c = 0; c < end - begin; ++c) {
        for (int64_t i = c * shape.inner; i < (c + 1) * shape.inner; ++i) {
          totals[0][c] += first[i], totals[1][c] += second[i];
        }
      }
    }
    for (int64_t c = begin; c < end; ++c) to_channel(c, totals[0][c - begin], totals[1][c - begin]);
  }
};

template <class Acc>
void add_lanes(Acc* sums, int64_t i, int lanes, Vec<Acc> v) {
  store_lanes(sums + i, load_lanes(sums + i, lanes) + v, lanes);
}

// Moments of channels [begin, end), which are one strip.
template <class T>
void strip_moments(const Strips& strips, const T* x, int64_t begin, int64_t end, Moments* moments) {
  using Acc = acc_t<T>;
  const BatchNormShape& s = strips.shape;
  const int64_t n = (end - begin) * s.inner, width = s.width();
  const T* const strip = x + begin * s.inner;
  // The mean of some values is near that of all.
  const int64_t some = std::min(s.outer, ceil_div(16, s.inner));
  alignas(kVectorBytes) Acc shifts[Columns::kStrip];
  strips.spread(begin, end, shifts, [&](int64_t c) {
    Acc sum = 0;
    for (int64_t row = 0; row < some; ++row) {
      for (int64_t i = 0; i < s.inner; ++i) sum += to_acc(x[row * width + c * s.inner + i]);
    }
    return sum / static_cast<Acc>(some * s.inner);
  });
  const auto add = [&](int64_t row, Acc* sums, Acc* squares) {
    if (row + 1 < s.outer) fetch(strip + (row + 1) * width, n);
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const Vec<Acc> d = load_lanes(strip + row * width + i, lanes) - load_lanes(shifts + i, lanes);
      add_lanes(sums, i, lanes, d);
      store_lanes(squares + i, multiply_add(d, d, load_lanes(squares + i, lanes)), lanes);
    });
  };
  strips.sum<Acc>(begin, end, add, [&](int64_t c, double sum, double square) {
    const Acc shift = shifts[(c - begin) * s.inner];
    moments[c] = Moments::of(static_cast<double>(s.count()), shift, sum, square);
    if (std::isfinite(moments[c].m2)) return;
    moments[c] = moments_in_double(s.count(), [&](int64_t i) {
      return double(to_acc(x[i / s.inner * width + c * s.inner + i % s.inner]));
    });
  });
}

template <GradientOf kOf, class T>
void strip_gradient_sums(const Strips& strips, const AnyActivation<acc_t<T>>& activation,
                         const EachColumn<acc_t<T>>& columns, const GradientInputs<T>& all, int64_t begin,
                         int64_t end, GradientSums* sums) {
  using Acc = acc_t<T>;
  const BatchNormShape& s = strips.shape;
  const int64_t n = (end - begin) * s.inner, first = begin * s.inner;
  const auto add = [&](int64_t row, Acc* grads, Acc* products) {
    const GradientInputs<T> from = all.from(row * s.width() + first, row * s.mask_bytes() + first / 8);
    if (row + 1 < s.outer) fetch(from.grad + s.width(), n), fetch(from.x + s.width(), n);
    for_each_gradient<kOf>(activation, columns, from, n, [&](int64_t i, int lanes, auto g, auto d) {
      add_lanes(grads, i, lanes, g);
      store_lanes(products + i, multiply_add(g, d, load_lanes(products + i, lanes)), lanes);
    });
  };
  strips.sum<Acc>(begin, end, add,
                  [&](int64_t c, double grad, double product) { sums[c] = {grad, product}; });
}

}  // namespace pyops::cpu
