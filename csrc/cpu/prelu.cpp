// PReLU on the CPU.
//
// The slopes repeat after a period of channels * inner elements. With a short period (one slope, channels
// last, few pixels) the tensor is treated as rows of several periods, and vectors run along a row of slopes;
// otherwise vectors run along the elements of one channel.
#include "math/prelu.h"

#include <algorithm>
#include <vector>

#include "binding/prelu.h"
#include "common/integers.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/rows_out.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {
namespace {

constexpr int64_t kLongRun = 128;   // elements of one channel in a row that are worth a loop of their own
constexpr int64_t kWideRow = 1024;  // at least as many slopes are laid out, to last for many vectors
constexpr int64_t kStrip = 2048;    // columns whose sums stay in the L1 cache
constexpr int64_t kSumRows = 32;    // rows added before the sums go to memory
constexpr int64_t kChunk = 8192;    // elements of one channel whose sum goes to memory

template <class Acc>
Vec<Acc> slopes_of(Acc slope, int64_t, int) {
  return Vec<Acc>(slope);
}
template <class Acc>
Vec<Acc> slopes_of(const Acc* slopes, int64_t i, int lanes) {
  return load_lanes(slopes + i, lanes);
}

// As many slopes as elements.
template <class T>
void forward_run(const T* x, const acc_t<T>* slopes, T* y, int64_t n, bool stream) {
  using V = Vec<acc_t<T>>;
  stream = can_stream(y, stream);
  for_each_vector<acc_t<T>>(n, [&](int64_t i, int lanes) {
    const V v = math::prelu(load_lanes(x + i, lanes), slopes_of<acc_t<T>>(slopes, i, lanes));
    put(y + i, v, lanes, stream && lanes == V::kLanes);
  });
  if (stream) end_of_streams();
}

// One slope for all.
template <class T>
void forward_run(const T* x, acc_t<T> slope, T* y, int64_t n, bool stream) {
  using V = Vec<acc_t<T>>;
  const auto f = [slope](V v) { return math::prelu(v, V(slope)); };
  if (!can_stream(y, stream)) return transform(n, f, y, x);
  transform<true>(n, f, y, x);
  end_of_streams();
}

// Calls add(i, lanes, v) with what each vector adds to its slopes' gradients.
template <class T, class Slopes, class Add>
PYOPS_HD void backward_run(const T* grad, const T* x, Slopes slopes, T* dx, int64_t n, bool stream,
                           const Add& add) {
  using Acc = acc_t<T>;
  stream = can_stream(dx, stream);
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    const Vec<Acc> v = load_lanes(x + i, lanes), g = load_lanes(grad + i, lanes);
    put(dx + i, math::prelu_input_gradient(v, slopes_of<Acc>(slopes, i, lanes), g), lanes,
        stream && lanes == Vec<Acc>::kLanes);
    add(i, lanes, math::prelu_slope_gradient(v, g));
  });
  if (stream) end_of_streams();
}

template <class T>
bool streams(const PreluShape& s, int64_t tensors) {
  return passes_caches(tensors * s.numel() * static_cast<int64_t>(sizeof(T)));
}

// The elements of one slope lie in a row.
PreluShape joined(PreluShape s) {
  if (s.channels != 1) return s;
  s.inner *= s.outer;
  s.outer = 1;
  return s;
}

// Rows of `width` slopes, a multiple of the period. The last row may end early.
template <class Acc>
struct WideRows {
  int64_t width;
  int64_t rows;
  std::vector<Acc> slopes;

  template <class T>
  static WideRows of(const PreluShape& s, const T* weight) {
    const int64_t period = s.period();
    const int64_t repeats = std::max<int64_t>(1, kWideRow / std::max<int64_t>(1, period));
    WideRows w{period * repeats, 0, std::vector<Acc>(period * repeats)};
    w.rows = w.width == 0 ? 0 : ceil_div(s.numel(), w.width);
    // Without a division for each: a thousand of those take as long as the pass over 200 thousand elements.
    Acc* next = w.slopes.data();
    for (int64_t c = 0; c < s.channels; ++c) next = std::fill_n(next, s.inner, to_acc(weight[c]));
    for (int64_t i = 1; i < repeats; ++i) next = std::copy_n(w.slopes.data(), period, next);
    return w;
  }
};

template <class T>
void forward(const PreluShape& s, const T* x, const T* weight, T* y) {
  using Acc = acc_t<T>;
  const bool stream = streams<T>(s, 2);
  if (s.inner >= kLongRun) {
    const int64_t chunks = ceil_div(s.inner, kChunk);
    parallel_for(s.outer * s.channels * chunks, std::min(s.inner, kChunk), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / chunks, first = item % chunks * kChunk, at = row * s.inner + first;
        forward_run(x + at, to_acc(weight[row % s.channels]), y + at, std::min(kChunk, s.inner - first),
                    stream);
      }
    });
    return;
  }
  const auto wide = WideRows<Acc>::of(s, weight);
  const Acc* const slopes = wide.slopes.data();
  parallel_for(wide.rows, wide.width, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * wide.width; at < std::min(s.numel(), end * wide.width); at += wide.width) {
      forward_run(x + at, slopes, y + at, std::min(wide.width, s.numel() - at), stream);
    }
  });
}

// The sums over blocks, [blocks, channels], added up in the order of the blocks.
template <class T>
void finish(const std::vector<double>& partials, int64_t channels, T* dweight) {
  std::vector<double> total(channels);
  const int64_t count = static_cast<int64_t>(partials.size());
  for (int64_t first = 0; first < count; first += channels) {
    for (int64_t c = 0; c < channels; ++c) total[c] += partials[first + c];
  }
  for (int64_t c = 0; c < channels; ++c) dweight[c] = from_acc<T>(static_cast<acc_t<T>>(total[c]));
}

// Vectors run along a channel's elements.
template <class T>
std::vector<double> backward_runs(const PreluShape& s, const T* grad, const T* x, const T* weight, T* dx) {
  using Acc = acc_t<T>;
  const int64_t chunks = ceil_div(s.inner, kChunk);
  const int64_t items = s.outer * chunks * s.channels;
  std::vector<double> partials(items);
  parallel_for(items, std::min(s.inner, kChunk), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / chunks, chunk = item % chunks, channel = row % s.channels;
      const int64_t first = chunk * kChunk, at = row * s.inner + first;
      Vec<Acc> sums[2] = {Acc(0), Acc(0)};
      int turn = 0;
      backward_run(grad + at, x + at, to_acc(weight[channel]), dx + at, std::min(kChunk, s.inner - first),
                   streams<T>(s, 3), [&](int64_t, int, Vec<Acc> v) { sums[turn ^= 1] += v; });
      const int64_t block = row / s.channels * chunks + chunk;
      partials[block * s.channels + channel] = horizontal_sum(sums[0] + sums[1]);
    }
  });
  return partials;
}

// Vectors run along rows of slopes; a block is kSumRows rows of a strip of columns.
template <class T>
std::vector<double> backward_rows(const PreluShape& s, const T* grad, const T* x, const T* weight, T* dx) {
  using Acc = acc_t<T>;
  const auto wide = WideRows<Acc>::of(s, weight);
  const int64_t period = s.period();
  // A strip begins and ends between channels, so no two strips add to one sum.
  const int64_t strip = kStrip / s.inner * s.inner, strips = ceil_div(wide.width, strip);
  const bool whole = wide.width <= kStrip;
  const int64_t blocks = ceil_div(wide.rows, kSumRows);
  std::vector<double> partials(blocks * s.channels);
  parallel_for(blocks * (whole ? 1 : strips), kSumRows * std::min(wide.width, strip),
               [&](int64_t begin, int64_t end) {
                 alignas(kVectorBytes) Acc sums[kStrip];
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t block = whole ? item : item / strips;
                   const int64_t first = whole ? 0 : item % strips * strip;
                   const int64_t columns = whole ? wide.width : std::min(strip, wide.width - first);
                   std::fill(sums, sums + columns, Acc(0));
                   const int64_t last = std::min(wide.rows, (block + 1) * kSumRows);
                   for (int64_t row = block * kSumRows; row < last; ++row) {
                     const int64_t at = row * wide.width + first;
                     backward_run(grad + at, x + at, wide.slopes.data() + first, dx + at,
                                  std::min(columns, s.numel() - at), streams<T>(s, 3),
                                  [&](int64_t i, int lanes, Vec<Acc> v) {
                                    store_lanes(sums + i, load_lanes(sums + i, lanes) + v, lanes);
                                  });
                   }
                   double* const out = partials.data() + block * s.channels;
                   for (int64_t i = 0; i < columns; ++i) out[(first + i) % period / s.inner] += sums[i];
                 }
               });
  return partials;
}

Tensor prelu_forward(Tensor input, Tensor weight, int64_t dim) {
  const char* op = "prelu_forward";
  const PreluShape shape = joined(PreluShape::of(input, weight, dim, op));
  Tensor output = new_output(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (shape.numel() == 0) return;
    forward(shape, data<T>(input), data<T>(weight), mutable_data<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor> prelu_backward(Tensor grad_output, Tensor input, Tensor weight, int64_t dim) {
  const char* op = "prelu_backward";
  const PreluShape shape = joined(check_prelu_backward(grad_output, input, weight, dim, op));
  Tensor grad_input = new_output(input, shape_of(input), input.scalar_type());
  Tensor grad_weight = new_tensor(weight, shape_of(weight), weight.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const T* const g = data<T>(grad_output);
    const T* const x = data<T>(input);
    const T* const w = data<T>(weight);
    T* const dx = mutable_data<T>(grad_input);
    std::vector<double> partials;
    if (shape.numel() > 0) {
      partials =
          shape.inner >= kLongRun ? backward_runs(shape, g, x, w, dx) : backward_rows(shape, g, x, w, dx);
    }
    finish(partials, shape.channels, mutable_data<T>(grad_weight));
  });
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("prelu_forward", TORCH_BOX(&pyops::cpu::prelu_forward));
  m.impl("prelu_backward", TORCH_BOX(&pyops::cpu::prelu_backward));
}
