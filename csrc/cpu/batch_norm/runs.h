// Batch normalisation where a channel's elements lie in long runs.
//
// A block is a few thousand elements of one channel, cut by the problem alone. A thread takes whole channels,
// one after another, which stay in its cache between the pass that sums and the pass that writes: the whole
// call is one parallel loop.
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

  // Calls f(at, n, bit, ahead) for the runs of one block: n elements from number `at`, whose bits begin with
  // byte `bit` of the mask. Those that begin `ahead` elements later are needed soon.
  template <class F>
  void for_each_run(int64_t channel, int64_t block, const F& f) const {
    constexpr int64_t kAhead = 1024;
    const int64_t first = block / pieces * images, begin = block % pieces * piece;
    const int64_t n = std::min(piece, shape.inner - begin);
    const int64_t ahead = n < kAhead ? ceil_div(kAhead, n) : 0, stride = shape.channels * shape.inner;
    for (int64_t image = first; image < std::min(shape.outer, first + images); ++image) {
      const int64_t row = image * shape.channels + channel;
      const int64_t later = std::min(ahead, shape.outer - 1 - image);
      f(row * shape.inner + begin, n, row * shape.mask_bytes() + begin / 8, later * stride);
    }
  }

  // Whether threads can take whole channels. Otherwise they share every channel, in two loops over all of
  // them: the same blocks are summed and merged in the same order.
  bool by_channel() const {
    const int64_t threads = std::max<int64_t>(1, ThreadPool{}.threads());
    return shape.channels * 8 >= round_up(shape.channels, threads) * 7;
  }

  // Calls f(channel), each for a thread that finds the channel in its cache when it comes to it again.
  template <class F>
  void for_each_channel(int64_t passes, const F& f) const {
    parallel_for(shape.channels, passes * shape.count(), [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) f(channel);
    });
  }

  // Calls f(channel, block) for the blocks of all channels; backwards where `reversed`, beginning with what
  // the loop before has left in the caches.
  template <class F>
  void for_each_block(bool reversed, const F& f) const {
    const auto work = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t item = reversed ? first + last - 1 - i : i;
        f(item / blocks, item % blocks);
      }
    };
    parallel_for(shape.channels * blocks, block_elements(), work,
                 reversed ? Order::kBackwards : Order::kForwards);
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
  runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t, int64_t ahead) {
    const T* const run = x + at;
    if (ahead > 0) fetch(run + ahead, n);
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
  runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t, int64_t) {
    for (int64_t i = 0; i < n; ++i) values.push_back(to_acc(x[at + i]));
  });
  return moments_in_double(count, [&](int64_t i) { return values[i]; });
}

// The sums of f(channel, block) over the blocks of every channel, merged in their order by join(sums, sum).
template <class Sum, class Join, class F>
void sum_blocks(const Runs& runs, Sum* sums, const Join& join, const F& f) {
  std::vector<Sum> partial(runs.shape.channels * runs.blocks);
  runs.for_each_block(false, [&](int64_t channel, int64_t block) {
    partial[channel * runs.blocks + block] = f(channel, block);
  });
  for (int64_t c = 0; c < runs.shape.channels; ++c) {
    sums[c] = {};
    for (int64_t b = 0; b < runs.blocks; ++b) sums[c] = join(sums[c], partial[c * runs.blocks + b]);
  }
}

// The same for one channel, by the calling thread.
template <class Sum, class Join, class F>
Sum sum_blocks_of(const Runs& runs, int64_t channel, const Join& join, const F& f) {
  Sum sum{};
  for (int64_t b = 0; b < runs.blocks; ++b) sum = join(sum, f(channel, b));
  return sum;
}

template <class T>
void run_moments(const Runs& runs, const T* x, Moments* moments) {
  sum_blocks(runs, moments, math::merge,
             [&](int64_t channel, int64_t block) { return block_moments(runs, x, channel, block); });
}

template <class T>
Moments channel_moments(const Runs& runs, const T* x, int64_t channel) {
  return sum_blocks_of<Moments>(runs, channel, math::merge,
                                [&](int64_t c, int64_t block) { return block_moments(runs, x, c, block); });
}

template <GradientOf kOf, class T>
GradientSums block_gradient_sums(const Runs& runs, const AnyActivation<acc_t<T>>& activation,
                                 const NormTable<acc_t<T>>& table, const GradientInputs<T>& all,
                                 int64_t channel, int64_t block) {
  using V = Vec<acc_t<T>>;
  const auto of_channel = OneChannel<acc_t<T>>::of(table, channel, false);
  V grads = V(0), products = V(0), other_grads = V(0), other_products = V(0);
  runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t bit, int64_t ahead) {
    if (ahead > 0) fetch(all.grad + at + ahead, n), fetch(all.x + at + ahead, n);
    for_each_gradient<kOf, 1>(activation, of_channel, all.from(at, bit), false, n,
                              [&](int64_t i, int, const auto&, const V(&g)[1], const V(&d)[1])
                                  __attribute__((always_inline)) {
                                    if (i / V::kLanes % 2) {
                                      other_grads += g[0];
                                      other_products = multiply_add(g[0], d[0], other_products);
                                    } else {
                                      grads += g[0];
                                      products = multiply_add(g[0], d[0], products);
                                    }
                                  });
  });
  return {horizontal_sum(grads + other_grads), horizontal_sum(products + other_products)};
}

}  // namespace pyops::cpu
