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

// The sum in float64, by eight sums that wait for no other.
template <class T>
double sum_of(const T* values, int64_t n) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int lane = 0; lane < kSums; ++lane) sums[lane] += static_cast<double>(to_acc(values[i + lane]));
  }
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += static_cast<double>(to_acc(values[i]));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

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

  // Calls add(rows, row, first, second) for two rows at a time of some (`rows` is a compile-time constant),
  // which adds to sums of columns in Acc, and then to_channel(channel, first, second) with the sums over a
  // channel in float64.
  template <class Acc, class Add, class ToChannel>
  void sum(int64_t begin, int64_t end, const Add& add, const ToChannel& to_channel) const {
    const int64_t n = (end - begin) * shape.inner;
    // Side by side, because two large arrays would begin at the same place of a page: a load of one would
    // wait for a store to the other.
    alignas(kVectorBytes) Acc sums[2 * Columns::kStrip + 16];
    Acc *const first = sums, *const second = sums + round_up(n, 16) + 16;
    double totals[2][Columns::kStrip];
    std::fill_n(totals[0], end - begin, 0.0);
    std::fill_n(totals[1], end - begin, 0.0);
    for (int64_t row = 0; row < shape.outer; row += Columns::kMostRows) {
      std::fill_n(first, n, Acc(0));
      std::fill_n(second, n, Acc(0));
      for_each_pair(std::min(shape.outer - row, Columns::kMostRows),
                    [&](auto rows, int64_t r) { add(rows, row + r, first, second); });
      for (int64_t c = 0; c < end - begin; ++c) {
        totals[0][c] += sum_of(first + c * shape.inner, shape.inner);
        totals[1][c] += sum_of(second + c * shape.inner, shape.inner);
      }
    }
    for (int64_t c = begin; c < end; ++c) to_channel(c, totals[0][c - begin], totals[1][c - begin]);
  }
};

// Moments of channels [begin, end), which are one strip.
template <class T>
void strip_moments(const Strips& strips, const T* x, int64_t begin, int64_t end, Moments* moments) {
  using Acc = acc_t<T>;
  const BatchNormShape& s = strips.shape;
  const int64_t n = (end - begin) * s.inner, width = s.width();
  const T* const strip = x + begin * s.inner;
  // The mean of some values is near that of all.
  const int64_t some = std::min(s.outer, ceil_div(16, s.inner)), of_row = std::min<int64_t>(16, s.inner);
  alignas(kVectorBytes) Acc shifts[Columns::kStrip];
  strips.spread(begin, end, shifts, [&](int64_t c) {
    double sum = 0;
    for (int64_t row = 0; row < some; ++row) sum += sum_of(x + row * width + c * s.inner, of_row);
    return static_cast<Acc>(sum / static_cast<double>(some * of_row));
  });
  const auto add = [&](auto rows, int64_t row, Acc* sums, Acc* squares) {
    add_deviations<decltype(rows)::value>(strip + row * width, width, n, shifts, sums, squares);
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
  const auto add = [&](auto rows, int64_t row, Acc* grads, Acc* products) {
    constexpr int kRows = decltype(rows)::value;
    add_gradients<kOf, kRows>(activation, columns,
                              all.from(row * s.width() + first, row * s.mask_bytes() + first / 8), n, grads,
                              products);
  };
  strips.sum<Acc>(begin, end, add,
                  [&](int64_t c, double grad, double product) { sums[c] = {grad, product}; });
}

}  // namespace pyops::cpu
