// Batch normalisation where a channel's elements lie in long runs.
//
// A block is a few thousand elements of one channel, cut by the problem alone. The channels are worked on in
// groups that stay in cache between the pass that sums and the pass that writes.
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

struct Runs {
  static constexpr int64_t kBlock = 4096;  // elements

  BatchNormShape shape;
  int64_t piece;   // elements of a run that one block takes, a multiple of 64
  int64_t pieces;  // of a run
  int64_t images;  // whose runs, or pieces, make a block
  int64_t blocks;  // of one channel

  static Runs of(const BatchNormShape& s) {
    const int64_t parts = ceil_div(s.inner, kBlock);
    const int64_t piece = round_up(ceil_div(s.inner, parts), 64);
    const int64_t pieces = ceil_div(s.inner, piece);
    const int64_t images = std::max<int64_t>(1, kBlock / std::min(piece, s.inner));
    return {s, piece, pieces, images, ceil_div(s.outer, images) * pieces};
  }
  int64_t block_elements() const { return images * std::min(piece, shape.inner); }

  // Calls f(at, n, bit) for the runs of one block: n elements from number `at`, whose bits begin with byte
  // `bit` of the mask.
  template <class F>
  void for_each_run(int64_t channel, int64_t block, const F& f) const {
    const int64_t first = block / pieces * images, begin = block % pieces * piece;
    const int64_t n = std::min(piece, shape.inner - begin);
    for (int64_t image = first; image < std::min(shape.outer, first + images); ++image) {
      const int64_t row = image * shape.channels + channel;
      f(row * shape.inner + begin, n, row * shape.mask_bytes() + begin / 8);
    }
  }

  // Calls f(channel, block) for the blocks of channels [begin, end), several at a time; each thread works
  // backwards where `reversed`, beginning with what the pass before has left in its cache.
  template <class F>
  void for_each_block(int64_t begin, int64_t end, bool reversed, const F& f) const {
    parallel_for((end - begin) * blocks, block_elements(), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t item = reversed ? first + last - 1 - i : i;
        f(begin + item / blocks, item % blocks);
      }
    });
  }

  // Calls f(begin, end) for groups of channels whose elements about fill the threads' caches.
  template <class F>
  void for_each_group(int64_t bytes_of_element, const F& f) const {
    constexpr int64_t kCache = int64_t{1} << 20;
    const int64_t bytes = std::max<int64_t>(1, shape.count() * bytes_of_element);
    const int64_t group = std::max<int64_t>(1, kCache * ThreadPool{}.threads() / bytes);
    for (int64_t begin = 0; begin < shape.channels; begin += group) {
      f(begin, std::min(shape.channels, begin + group));
    }
  }
};

template <class T>
Moments block_moments(const Runs& runs, const T* x, int64_t channel, int64_t block) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  constexpr int kLanes = V::kLanes;
  V sums[kUnroll], squares[kUnroll];
  for (int u = 0; u < kUnroll; ++u) sums[u] = squares[u] = V(Acc(0));
  Acc shift = 0;
  int64_t count = 0;
  runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t) {
    const T* const run = x + at;
    if (count == 0) {  // the mean of some of the values is near that of all, however they are distributed
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n));
      shift = horizontal_sum(load_lanes(run, lanes)) / static_cast<Acc>(lanes);
    }
    const auto add = [&](int u, V v) {
      const V d = v - V(shift);
      sums[u] += d;
      squares[u] = multiply_add(d, d, squares[u]);
    };
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll; ++u) add(u, load<Acc>(run + i + u * kLanes));
    }
    for (; i < n; i += kLanes) {
      add(0, load_lanes(run + i, static_cast<int>(std::min<int64_t>(kLanes, n - i)), shift));
    }
    count += n;
  });
  const double sum = horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const double square = horizontal_sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if (std::isfinite(square)) return Moments::of(static_cast<double>(count), shift, sum, square);
  std::vector<double> values;
  runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t) {
    for (int64_t i = 0; i < n; ++i) values.push_back(to_acc(x[at + i]));
  });
  return moments_in_double(count, [&](int64_t i) { return values[i]; });
}

// Moments of channels [begin, end) into moments[begin...].
template <class T>
void run_moments(const Runs& runs, const T* x, int64_t begin, int64_t end, Moments* moments) {
  std::vector<Moments> partial((end - begin) * runs.blocks);
  runs.for_each_block(begin, end, false, [&](int64_t channel, int64_t block) {
    partial[(channel - begin) * runs.blocks + block] = block_moments(runs, x, channel, block);
  });
  for (int64_t c = begin; c < end; ++c) {
    moments[c] = {};
    for (int64_t b = 0; b < runs.blocks; ++b) {
      moments[c] = math::merge(moments[c], partial[(c - begin) * runs.blocks + b]);
    }
  }
}

template <GradientOf kOf, class T>
void run_gradient_sums(const Runs& runs, const AnyActivation<acc_t<T>>& activation,
                       const NormTable<acc_t<T>>& table, const GradientInputs<T>& all, int64_t begin,
                       int64_t end, GradientSums* sums) {
  using V = Vec<acc_t<T>>;
  std::vector<GradientSums> partial((end - begin) * runs.blocks);
  runs.for_each_block(begin, end, false, [&](int64_t channel, int64_t block) {
    const auto of_channel = OneChannel<acc_t<T>>::of(table, channel, false);
    V grads = V(0), products = V(0), other_grads = V(0), other_products = V(0);
    runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t bit) {
      for_each_gradient<kOf>(activation, of_channel, all.from(at, bit), n, [&](int64_t i, int, V g, V d) {
        if (i / V::kLanes % 2) {
          other_grads += g;
          other_products = multiply_add(g, d, other_products);
        } else {
          grads += g;
          products = multiply_add(g, d, products);
        }
      });
    });
    partial[(channel - begin) * runs.blocks + block] = {horizontal_sum(grads + other_grads),
                                                        horizontal_sum(products + other_products)};
  });
  for (int64_t c = begin; c < end; ++c) {
    sums[c] = {};
    for (int64_t b = 0; b < runs.blocks; ++b) sums[c] += partial[(c - begin) * runs.blocks + b];
  }
}

}  // namespace pyops::cpu
