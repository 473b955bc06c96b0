// Batch normalisation of rows in which channels alternate: vectors run along the rows, and a block is some
// rows of a strip of columns, cut by the problem alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "cpu/batch_norm/elements.h"
#include "cpu/batch_norm/sums.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

struct Columns {
  static constexpr int64_t kStrip = 1024;   // columns whose sums stay in the L1 cache
  static constexpr int64_t kBlock = 32768;  // elements that are summed in the accumulation type
  static constexpr int64_t kLeastBlock = 16384;
  static constexpr int64_t kMostRows = 128;
  static constexpr int64_t kChunks = 32;  // at least, if there are rows enough, to keep threads busy
  static constexpr int64_t kMostBlocks = 16;

  BatchNormShape shape;
  int64_t rows;
  int64_t width;
  int64_t block_rows;
  int64_t chunk_rows;  // of several blocks, whose sums are merged before they go to memory
  int64_t chunks;
  int64_t strips;

  static Columns of(const BatchNormShape& s) {
    const int64_t rows = s.rows(), width = s.width(), strip = std::max<int64_t>(1, std::min(width, kStrip));
    const int64_t most = std::min(kMostRows, std::max<int64_t>(8, kBlock / strip));
    // Few rows make small blocks, not so small that merging them is felt; many make chunks of several blocks.
    const int64_t least = std::clamp<int64_t>(kLeastBlock / strip, std::min<int64_t>(16, most), most);
    const int64_t block = std::clamp<int64_t>(ceil_div(rows, kChunks), least, most);
    const int64_t blocks = std::clamp<int64_t>(rows / (block * kChunks), 1, kMostBlocks);
    const int64_t chunk = block * blocks;
    return {s, rows, width, block, chunk, ceil_div(rows, chunk), ceil_div(width, kStrip)};
  }

  // Calls f(chunk, first row, end of rows, first column, columns) for every piece.
  template <class F>
  void for_each_piece(bool reversed, const F& f) const {
    const auto work = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t item = reversed ? first + last - 1 - i : i;
        const int64_t chunk = item / strips, row = chunk * chunk_rows, column = item % strips * kStrip;
        f(chunk, row, std::min(rows, row + chunk_rows), column, std::min(kStrip, width - column));
      }
    };
    parallel_for(chunks * strips, chunk_rows * std::min(width, kStrip), work,
                 reversed ? Order::kBackwards : Order::kForwards);
  }
};

// Adds x - shift and its square of kRows rows to the sums of n columns.
template <int kRows, class T>
void add_deviations(const T* x, int64_t stride, int64_t n, const acc_t<T>* shifts, acc_t<T>* sums,
                    acc_t<T>* squares) {
  using V = Vec<acc_t<T>>;
  for_each_vector<acc_t<T>>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const V shift = load_lanes(shifts + i, lanes);
    V sum = load_lanes(sums + i, lanes), square = load_lanes(squares + i, lanes);
    PYOPS_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const V d = load_lanes(x + row * stride + i, lanes) - shift;
      sum += d;
      square = multiply_add(d, d, square);
    }
    store_lanes(sums + i, sum, lanes);
    store_lanes(squares + i, square, lanes);
  });
}

// The sums over a block of rows of x - shift and of its squares, the shift being the mean of the first rows.
template <class Acc>
struct ColumnSums {
  alignas(kVectorBytes) Acc shift[Columns::kStrip];
  alignas(kVectorBytes) Acc sum[Columns::kStrip];
  alignas(kVectorBytes) Acc squares[Columns::kStrip];

  template <class T>
  void of_block(const T* x, int64_t stride, int64_t rows, int64_t n) {
    const int64_t some = std::min<int64_t>(4, rows);
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      Vec<Acc> total = Acc(0);
      for (int64_t r = 0; r < some; ++r) total += load_lanes(x + r * stride + i, lanes);
      store_lanes(shift + i, total * (Acc(1) / static_cast<Acc>(some)), lanes);
      store_lanes(sum + i, Vec<Acc>(Acc(0)), lanes);
      store_lanes(squares + i, Vec<Acc>(Acc(0)), lanes);
    });
    for_each_pair(rows, [&](auto pair, int64_t r) {
      add_deviations<decltype(pair)::value>(x + r * stride, stride, n, shift, sum, squares);
    });
  }
};

// Calls f(channel, number) for every column of a chunk, whose numbers lie one after another.
template <class F>
PYOPS_HD void for_each_channel(const BatchNormShape& s, const double* numbers, const F& f) {
  if (s.inner == 1) {  // in vectors
    for (int64_t c = 0; c < s.channels; ++c) f(c, numbers[c]);
    return;
  }
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t i = 0; i < s.inner; ++i) f(c, numbers[c * s.inner + i]);
  }
}

// Moments of every channel from those of every chunk and column: first the means, then the deviations from
// them.
inline void merge_columns(const Columns& columns, const double* means, const double* m2s, Moments* moments) {
  const BatchNormShape& s = columns.shape;
  std::vector<double> mean(s.channels), m2(s.channels);
  double *const to_mean = mean.data(), *const to_m2 = m2.data();
  const double all = static_cast<double>(s.count());
  const auto rows_of = [&](int64_t chunk) {
    return static_cast<double>(std::min(columns.chunk_rows, columns.rows - chunk * columns.chunk_rows));
  };
  for (int64_t chunk = 0; chunk < columns.chunks; ++chunk) {
    const double share = rows_of(chunk) / all;
    for_each_channel(s, means + chunk * columns.width, [=](int64_t c, double v) { to_mean[c] += share * v; });
  }
  for (int64_t chunk = 0; chunk < columns.chunks; ++chunk) {
    const double rows = rows_of(chunk);
    for_each_channel(s, m2s + chunk * columns.width, [=](int64_t c, double v) { to_m2[c] += v; });
    for_each_channel(s, means + chunk * columns.width,
                     [=](int64_t c, double v) { to_m2[c] += rows * (v - to_mean[c]) * (v - to_mean[c]); });
  }
  for (int64_t c = 0; c < s.channels; ++c) moments[c] = {all, to_mean[c], to_m2[c]};
}

// Moments of every channel.
template <class T>
void column_moments(const Columns& columns, const T* x, Moments* moments) {
  const int64_t width = columns.width;
  std::vector<double> means(columns.chunks * width), m2s(columns.chunks * width);
  columns.for_each_piece(false, [&](int64_t chunk, int64_t row, int64_t end, int64_t column, int64_t n) {
    ColumnSums<acc_t<T>> block;
    // The moments of all blocks, about the first block's shift.
    double reference[Columns::kStrip], sum[Columns::kStrip], squares[Columns::kStrip];
    const T* const piece = x + row * width + column;
    for (int64_t first = row; first < end; first += columns.block_rows) {
      const int64_t rows = std::min(columns.block_rows, end - first);
      block.of_block(x + first * width + column, width, rows, n);
      if (first == row) {
        for (int64_t i = 0; i < n; ++i) reference[i] = block.shift[i], sum[i] = squares[i] = 0;
      }
      const double count = static_cast<double>(rows);
      for (int64_t i = 0; i < n; ++i) {
        const double apart = block.shift[i] - reference[i], within = block.sum[i];
        sum[i] += within + count * apart;
        squares[i] += block.squares[i] + apart * (2 * within + count * apart);
      }
    }
    const int64_t rows = end - row;
    double* const to_means = means.data() + chunk * width + column;
    double* const to_m2s = m2s.data() + chunk * width + column;
    for (int64_t i = 0; i < n; ++i) {
      const Moments m = Moments::of(static_cast<double>(rows), reference[i], sum[i], squares[i]);
      to_means[i] = m.mean, to_m2s[i] = m.m2;
    }
    int64_t odd = 0;
    for (int64_t i = 0; i < n; ++i) odd |= to_m2s[i] - to_m2s[i] != 0;  // infinity or NaN
    for (int64_t i = 0; odd && i < n; ++i) {
      if (std::isfinite(to_m2s[i])) continue;
      const Moments m =
          moments_in_double(rows, [&](int64_t r) { return double(to_acc(piece[r * width + i])); });
      to_means[i] = m.mean, to_m2s[i] = m.m2;
    }
  });
  merge_columns(columns, means.data(), m2s.data(), moments);
}

template <GradientOf kOf, class T>
void column_gradient_sums(const Columns& columns, const AnyActivation<acc_t<T>>& activation,
                          const NormTable<acc_t<T>>& table, const GradientInputs<T>& all,
                          GradientSums* sums) {
  using Acc = acc_t<T>;
  const int64_t width = columns.width, row_bytes = columns.shape.mask_bytes();
  std::vector<double> grad_sums(columns.chunks * width), product_sums(columns.chunks * width);
  columns.for_each_piece(false, [&](int64_t chunk, int64_t row, int64_t end, int64_t column, int64_t n) {
    const EachColumn<Acc> channels{table, column};
    double* const grad_sum = grad_sums.data() + chunk * width + column;
    double* const product_sum = product_sums.data() + chunk * width + column;
    alignas(kVectorBytes) Acc grads[Columns::kStrip], products[Columns::kStrip];
    for (int64_t first = row; first < end; first += columns.block_rows) {
      std::fill(grads, grads + n, Acc(0));
      std::fill(products, products + n, Acc(0));
      for_each_pair(std::min(end - first, columns.block_rows), [&](auto rows, int64_t r) {
        const GradientInputs<T> from =
            all.from((first + r) * width + column, (first + r) * row_bytes + column / 8);
        add_gradients<kOf, decltype(rows)::value>(activation, channels, from, n, grads, products);
      });
      for (int64_t i = 0; i < n; ++i) grad_sum[i] += grads[i], product_sum[i] += products[i];
    }
  });
  std::fill(sums, sums + columns.shape.channels, GradientSums{});
  for (int64_t chunk = 0; chunk < columns.chunks; ++chunk) {
    for_each_channel(columns.shape, grad_sums.data() + chunk * width,
                     [=](int64_t c, double v) { sums[c].grad += v; });
    for_each_channel(columns.shape, product_sums.data() + chunk * width,
                     [=](int64_t c, double v) { sums[c].product += v; });
  }
}

}  // namespace pyops::cpu
