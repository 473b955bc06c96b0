// Batch normalisation where a channel's elements lie in long runs.
//
// A block is a few thousand elements of one channel, cut by the problem alone. A thread takes whole channels,
// which stay in its cache between the pass that sums and the pass that writes: the whole call is one parallel
// loop. Of small images it takes some neighbouring channels at a time, image by image: memory gives kilobytes
// in a row sooner than as many short runs that lie far apart.
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
  static constexpr int64_t kBlock = 4096;   // elements
  static constexpr int64_t kGroup = 8;      // channels, at most
  static constexpr int64_t kRow = 1024;     // elements of a group in an image that are enough
  static constexpr int64_t kCache = 65536;  // elements of a group that stay in the cache with their gradients

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

  // Calls f(channel, at, n, bit, ahead) for the runs of one block of channels [begin, end): n elements from
  // number `at`, whose bits begin with byte `bit` of the mask. Those that begin `ahead` elements later are
  // needed soon.
  template <class F>
  void for_each_run(int64_t begin, int64_t end, int64_t block, const F& f) const {
    constexpr int64_t kAhead = 1024;
    const int64_t first = block / pieces * images, offset = block % pieces * piece;
    const int64_t n = std::min(piece, shape.inner - offset);
    const int64_t ahead = n < kAhead ? ceil_div(kAhead, n * (end - begin)) : 0;
    const int64_t stride = shape.channels * shape.inner;
    for (int64_t image = first; image < std::min(shape.outer, first + images); ++image) {
      const int64_t later = std::min(ahead, shape.outer - 1 - image) * stride;
      for (int64_t channel = begin; channel < end; ++channel) {
        const int64_t row = image * shape.channels + channel;
        f(channel, row * shape.inner + offset, n, row * shape.mask_bytes() + offset / 8, later);
      }
    }
  }

  // Whether threads can take whole channels. Otherwise they share every channel, in two loops over all of
  // them: the same blocks are summed and merged in the same order.
  bool by_channel() const {
    const int64_t threads = std::max<int64_t>(1, ThreadPool{}.threads());
    return shape.channels * 8 >= round_up(shape.channels, threads) * 7;
  }

  // How many channels a thread takes at a time: their sums are formed each by itself.
  int64_t group() const {
    const int64_t threads = std::max<int64_t>(1, ThreadPool{}.threads());
    const int64_t most =
        std::min({kGroup, ceil_div(kRow, shape.inner), kCache / std::max<int64_t>(1, shape.count()),
                  shape.channels / (4 * threads)});
    return std::max<int64_t>(1, most);
  }

  // Calls f(begin, end) for groups of channels, each for a thread that finds them in its cache when it comes
  // to them again.
  template <class F>
  void for_each_group(int64_t passes, const F& f) const {
    const int64_t channels = group();
    parallel_for(ceil_div(shape.channels, channels), passes * channels * shape.count(),
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) {
                     f(i * channels, std::min(shape.channels, (i + 1) * channels));
                   }
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

// The sums over some runs of a channel of x - shift and of its squares.
template <class Acc>
struct RunSums {
  using V = Vec<Acc>;
  static constexpr int kLanes = V::kLanes;
  V sums[kUnroll], squares[kUnroll];
  Acc shift = 0;
  int64_t count = 0;

  RunSums() {
    for (int u = 0; u < kUnroll; ++u) sums[u] = squares[u] = V(Acc(0));
  }

  template <class T>
  void add(const T* run, int64_t n) {
    if (count == 0) {  // the mean of some of the values is near that of all, however they are distributed
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n));
      shift = horizontal_sum(load_lanes(run, lanes)) / static_cast<Acc>(lanes);
    }
    V sum[kUnroll], square[kUnroll];
    for (int u = 0; u < kUnroll; ++u) sum[u] = sums[u], square[u] = squares[u];
    const auto one = [&](int u, V v) __attribute__((always_inline)) {
      const V d = v - V(shift);
      sum[u] += d;
      square[u] = multiply_add(d, d, square[u]);
    };
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
      PYOPS_UNROLL
      for (int u = 0; u < kUnroll; ++u) one(u, load<Acc>(run + i + u * kLanes));
    }
    for (; i < n; i += kLanes) {
      one(0, load_lanes(run + i, static_cast<int>(std::min<int64_t>(kLanes, n - i)), shift));
    }
    for (int u = 0; u < kUnroll; ++u) sums[u] = sum[u], squares[u] = square[u];
    count += n;
  }

  double sum() const { return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3])); }
  double square() const { return horizontal_sum((squares[0] + squares[1]) + (squares[2] + squares[3])); }
};

// Of channels [begin, end), to[0] being the first's.
template <class T>
void block_moments(const Runs& runs, const T* x, int64_t begin, int64_t end, int64_t block, Moments* to) {
  RunSums<acc_t<T>> all[Runs::kGroup];
  runs.for_each_run(begin, end, block, [&](int64_t channel, int64_t at, int64_t n, int64_t, int64_t ahead) {
    if (ahead > 0) fetch(x + at + ahead, n);
    all[channel - begin].add(x + at, n);
  });
  for (int64_t c = begin; c < end; ++c) {
    const RunSums<acc_t<T>>& of = all[c - begin];
    to[c - begin] = Moments::of(static_cast<double>(of.count), of.shift, of.sum(), of.square());
    if (std::isfinite(of.square())) continue;
    std::vector<double> values;
    runs.for_each_run(c, c + 1, block, [&](int64_t, int64_t at, int64_t n, int64_t, int64_t) {
      for (int64_t i = 0; i < n; ++i) values.push_back(to_acc(x[at + i]));
    });
    to[c - begin] = moments_in_double(of.count, [&](int64_t i) { return values[i]; });
  }
}

// The sums that f(begin, end, block, sums) forms over the blocks of channels [begin, end), by the calling
// thread, merged in their order by join(sums, sum).
template <class Sum, class Join, class F>
void sum_blocks_of(const Runs& runs, int64_t begin, int64_t end, Sum* sums, const Join& join, const F& f) {
  for (int64_t c = begin; c < end; ++c) sums[c] = {};
  for (int64_t b = 0; b < runs.blocks; ++b) {
    Sum of_block[Runs::kGroup];
    f(begin, end, b, of_block);
    for (int64_t c = begin; c < end; ++c) sums[c] = join(sums[c], of_block[c - begin]);
  }
}

// The same for all channels, whose blocks threads share.
template <class Sum, class Join, class F>
void sum_blocks(const Runs& runs, Sum* sums, const Join& join, const F& f) {
  std::vector<Sum> partial(runs.shape.channels * runs.blocks);
  runs.for_each_block(false, [&](int64_t channel, int64_t block) {
    f(channel, channel + 1, block, &partial[channel * runs.blocks + block]);
  });
  for (int64_t c = 0; c < runs.shape.channels; ++c) {
    sums[c] = {};
    for (int64_t b = 0; b < runs.blocks; ++b) sums[c] = join(sums[c], partial[c * runs.blocks + b]);
  }
}

template <class T>
void run_moments(const Runs& runs, const T* x, Moments* moments) {
  sum_blocks(runs, moments, math::merge, [&](int64_t begin, int64_t end, int64_t block, Moments* to) {
    block_moments(runs, x, begin, end, block, to);
  });
}

template <class T>
void channel_moments(const Runs& runs, const T* x, int64_t begin, int64_t end, Moments* moments) {
  sum_blocks_of(runs, begin, end, moments, math::merge,
                [&](int64_t first, int64_t last, int64_t block, Moments* to) {
                  block_moments(runs, x, first, last, block, to);
                });
}

// The sums over some runs of a channel of the gradient and of its product with x - center.
template <class Acc>
struct RunGradientSums {
  Vec<Acc> grads[2], products[2];

  RunGradientSums() {
    for (int u = 0; u < 2; ++u) grads[u] = products[u] = Vec<Acc>(Acc(0));
  }

  template <GradientOf kOf, class T>
  void add(const AnyActivation<Acc>& activation, const OneChannel<Acc>& of_channel,
           const GradientInputs<T>& from, int64_t n) {
    using V = Vec<Acc>;
    V grad[2] = {grads[0], grads[1]}, product[2] = {products[0], products[1]};
    for_each_gradient<kOf, 1>(activation, of_channel, from, false, n,
                              [&](int64_t i, int, const auto&, const V(&g)[1], const V(&d)[1])
                                  __attribute__((always_inline)) {
                                    if (i / V::kLanes % 2) {
                                      grad[1] += g[0];
                                      product[1] = multiply_add(g[0], d[0], product[1]);
                                    } else {
                                      grad[0] += g[0];
                                      product[0] = multiply_add(g[0], d[0], product[0]);
                                    }
                                  });
    for (int u = 0; u < 2; ++u) grads[u] = grad[u], products[u] = product[u];
  }
};

template <GradientOf kOf, class T>
void block_gradient_sums(const Runs& runs, const AnyActivation<acc_t<T>>& activation,
                         const NormTable<acc_t<T>>& table, const GradientInputs<T>& inputs, int64_t begin,
                         int64_t end, int64_t block, GradientSums* to) {
  using Acc = acc_t<T>;
  RunGradientSums<Acc> all[Runs::kGroup];
  OneChannel<Acc> channels[Runs::kGroup];
  for (int64_t c = begin; c < end; ++c) channels[c - begin] = OneChannel<Acc>::of(table, c, false);
  runs.for_each_run(begin, end, block, [&](int64_t c, int64_t at, int64_t n, int64_t bit, int64_t ahead) {
    if (ahead > 0) fetch(inputs.grad + at + ahead, n), fetch(inputs.x + at + ahead, n);
    all[c - begin].template add<kOf>(activation, channels[c - begin], inputs.from(at, bit), n);
  });
  for (int64_t c = begin; c < end; ++c) {
    const RunGradientSums<Acc>& of = all[c - begin];
    to[c - begin] = {horizontal_sum(of.grads[0] + of.grads[1]),
                     horizontal_sum(of.products[0] + of.products[1])};
  }
}

}  // namespace pyops::cpu
