// Layer and group normalisation on the CPU.
//
// A row is read three times, twice for its mean and variance and once to be normalised, from a cache after
// the first time. Sums go from float32 to float64 every few thousand elements. The parameters' gradients are
// sums over rows: of blocks of rows first, whose size depends on the problem alone, then over the blocks in
// order.
#include "math/layer_norm.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "binding/layer_norm.h"
#include "common/integers.h"
#include "cpu/epilogue/activation.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/rows_out.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/multiply_add.h"
#include "math/batch_norm.h"

namespace pyops::cpu {
namespace {

constexpr int64_t kChunk = 2048;  // elements whose sum is formed in float32
constexpr int64_t kSumRows = 32;  // rows of a block, at least
constexpr int64_t kMostBlocks = 128;

// What the rows are mapped by, in the dtype they are computed in.
template <class Acc>
struct Parameters {
  std::vector<Acc> weight;
  std::vector<Acc> bias;

  static Parameters of(const LayerNormShape& s, const Acc* weight, const Acc* bias) {
    const int64_t n = s.parameters();
    Parameters p{std::vector<Acc>(n, Acc(1)), std::vector<Acc>(n, Acc(0))};
    if (weight) std::copy(weight, weight + n, p.weight.begin());
    if (bias) std::copy(bias, bias + n, p.bias.begin());
    return p;
  }
};

template <class Acc>
struct RowStatistics {
  Acc mean;
  Acc rstd;
};

template <class Acc>
struct TwoSums {
  Vec<Acc> first = Acc(0), second = Acc(0);
};

// Calls f(first, lanes, sums) for each vector's worth of n elements, and adds what f has added to `sums` to
// the totals, a chunk at a time.
template <class Acc, class F>
PYOPS_HD void sum_chunks(int64_t n, double& first, double& second, const F& f) {
  constexpr int kLanes = Vec<Acc>::kLanes;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(n, begin + kChunk);
    TwoSums<Acc> even, odd;
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      f(i, kLanes, even);
      f(i + kLanes, kLanes, odd);
    }
    for (; i < end; i += kLanes) f(i, static_cast<int>(std::min<int64_t>(kLanes, end - i)), even);
    first += static_cast<double>(horizontal_sum(even.first + odd.first));
    second += static_cast<double>(horizontal_sum(even.second + odd.second));
  }
}

template <class T>
RowStatistics<acc_t<T>> statistics(const T* x, int64_t n, double eps) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const double count = static_cast<double>(n);
  double sum = 0;
  for (int64_t i = 0; i < n; i += kChunk) {
    sum += static_cast<double>(sum_row(std::min(kChunk, n - i), [](V v) { return v; }, x + i));
  }
  // The sum of deviations, which would be 0 of an exact mean, takes its rounding out of both.
  const Acc near = static_cast<Acc>(sum / count);
  double deviations = 0, squares = 0;
  sum_chunks<Acc>(n, deviations, squares, [&](int64_t i, int lanes, TwoSums<Acc>& to) {
    const V d = load_lanes(x + i, lanes, near) - V(near);
    to.first += d;
    to.second += d * d;
  });
  const auto moments = math::Moments::of(count, static_cast<double>(near), deviations, squares);
  const double rstd = math::reciprocal_deviation(moments.variance(), eps);
  return {static_cast<Acc>(moments.mean), static_cast<Acc>(rstd)};
}

template <class Acc>
Vec<Acc> parameters_at(const Acc* p, int64_t i, int lanes) {
  return load_lanes(p + i, lanes);
}
template <class Acc>
Vec<Acc> parameters_at(Acc p, int64_t, int) {
  return Vec<Acc>(p);
}

// Calls f(first element, count, parameter), the parameter as a number for each run of one channel, or as a
// pointer to one for each element of the whole row.
template <class Acc, class F>
void for_each_run(const LayerNormShape& s, const F& f) {
  if (s.inner == 1) return f(int64_t{0}, s.size, [](const Acc* p) { return p; });
  for (int64_t c = 0; c < s.channels(); ++c) f(c * s.inner, s.inner, [c](const Acc* p) { return p[c]; });
}

// weight (x - mean) rstd + bias of n elements.
template <class T, class Out, class P>
void scale_run(const T* x, RowStatistics<acc_t<T>> row, P weight, P bias, Out* y, int64_t n, bool stream) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  stream = can_stream(y, stream);
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    const V v = math::standardized(load_lanes(x + i, lanes), V(row.mean), V(row.rstd));
    const V z = math::scaled(v, parameters_at<Acc>(weight, i, lanes), parameters_at<Acc>(bias, i, lanes));
    put(y + i, z, lanes, stream && lanes == V::kLanes);
  });
  if (stream) end_of_streams();
}

template <class T, class Out>
void scale_row(const LayerNormShape& s, const T* x, RowStatistics<acc_t<T>> row, const acc_t<T>* weight,
               const acc_t<T>* bias, Out* y, bool stream) {
  for_each_run<acc_t<T>>(s, [&](int64_t at, int64_t n, auto of) {
    scale_run(x + at, row, of(weight), of(bias), y + at, n, stream);
  });
}

// The same and the activation.
template <class T>
void forward_row(const LayerNormShape& s, const T* x, RowStatistics<acc_t<T>> row, const acc_t<T>* weight,
                 const acc_t<T>* bias, const math::ActivationParams& params, T* y, bool stream) {
  using Acc = acc_t<T>;
  if (params.is(math::ActivationKind::kIdentity)) return scale_row(s, x, row, weight, bias, y, stream);
  if constexpr (std::is_same_v<T, Acc>) {
    scale_row(s, x, row, weight, bias, y, false);
    AnyActivation<Acc>{params}.forward(y, s.size);
  } else {
    Scratch scratch;
    Acc* const z = scratch.take<Acc>(s.size);
    scale_row(s, x, row, weight, bias, z, false);
    AnyActivation<Acc>{params}.forward(z, s.size);
    transform(s.size, [](Vec<Acc> v) { return v; }, y, z);
  }
}

template <class T>
void forward(const LayerNormShape& s, const T* x, const Parameters<acc_t<T>>& p, double eps,
             const math::ActivationParams& params, T* y, acc_t<T>* mean, acc_t<T>* rstd) {
  const bool stream = passes_caches(2 * s.rows * s.size * static_cast<int64_t>(sizeof(T)));
  parallel_for(s.rows, s.size * (1 + activation_cost(params)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * s.size, first = row % s.groups * s.channels();
      const auto found = statistics(x + at, s.size, eps);
      mean[row] = found.mean;
      rstd[row] = found.rstd;
      forward_row(s, x + at, found, p.weight.data() + first, p.bias.data() + first, params, y + at, stream);
    }
  });
}

// ---- backward -------------------------------------------------------------------------------------------

// Adds the sums of weight * grad and of its product with the standardized x, and to the parameters'
// gradients, where there are any, those of each element.
template <class T, class G>
void sum_elements(const T* x, const G* grad, RowStatistics<acc_t<T>> row, const acc_t<T>* weight,
                  acc_t<T>* dweight, acc_t<T>* dbias, int64_t n, double& sum, double& product) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  sum_chunks<Acc>(n, sum, product, [&](int64_t i, int lanes, TwoSums<Acc>& to) {
    const V g = load_lanes(grad + i, lanes);
    const V v = math::standardized(load_lanes(x + i, lanes), V(row.mean), V(row.rstd));
    const V weighted = g * load_lanes(weight + i, lanes);
    to.first += weighted;
    to.second += weighted * v;
    if (dweight) {
      store_lanes(dweight + i, load_lanes(dweight + i, lanes) + g * v, lanes);
      store_lanes(dbias + i, load_lanes(dbias + i, lanes) + g, lanes);
    }
  });
}

// The same of channels of several elements, whose sums are the parameters' gradients of this row.
template <class T, class G>
void sum_channels(const LayerNormShape& s, const T* x, const G* grad, RowStatistics<acc_t<T>> row,
                  const acc_t<T>* weight, acc_t<T>* dweight, acc_t<T>* dbias, double& sum, double& product) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  for (int64_t c = 0; c < s.channels(); ++c) {
    double of_channel = 0, of_product = 0;
    const int64_t at = c * s.inner;
    sum_chunks<Acc>(s.inner, of_channel, of_product, [&](int64_t i, int lanes, TwoSums<Acc>& to) {
      const V g = load_lanes(grad + at + i, lanes);
      to.first += g;
      to.second += g * math::standardized(load_lanes(x + at + i, lanes), V(row.mean), V(row.rstd));
    });
    sum += of_channel * static_cast<double>(weight[c]);
    product += of_product * static_cast<double>(weight[c]);
    if (dweight) {
      dweight[c] = static_cast<Acc>(of_product);
      dbias[c] = static_cast<Acc>(of_channel);
    }
  }
}

// dweight and dbias: added to if channels are of one element, else overwritten; null if nobody wants them.
template <class T, class G>
void backward_row(const LayerNormShape& s, const T* x, const G* grad, RowStatistics<acc_t<T>> row,
                  const acc_t<T>* weight, T* dx, acc_t<T>* dweight, acc_t<T>* dbias, bool stream) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  double sum = 0, product = 0;
  if (s.inner == 1) {
    sum_elements(x, grad, row, weight, dweight, dbias, s.size, sum, product);
  } else {
    sum_channels(s, x, grad, row, weight, dweight, dbias, sum, product);
  }
  const Acc mean_grad = static_cast<Acc>(sum / static_cast<double>(s.size));
  const Acc mean_product = static_cast<Acc>(product / static_cast<double>(s.size));
  for_each_run<Acc>(s, [&](int64_t at, int64_t n, auto of) {
    const auto w = of(weight);
    const bool streams = can_stream(dx + at, stream);
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const V v = math::standardized(load_lanes(x + at + i, lanes), V(row.mean), V(row.rstd));
      const V g = load_lanes(grad + at + i, lanes) * parameters_at<Acc>(w, i, lanes);
      put(dx + at + i, math::row_gradient(g, v, V(mean_grad), V(mean_product), V(row.rstd)), lanes,
          streams && lanes == V::kLanes);
    });
    if (streams) end_of_streams();
  });
}

template <class T>
struct Gradients {
  const T* grad;
  const T* x;
  const acc_t<T>* mean;
  const acc_t<T>* rstd;
  T* dx;
  math::ActivationParams params;
  bool stream;
};

// One row, with the gradient of what the activation gets formed first.
template <class T>
void backward_through(const LayerNormShape& s, const Gradients<T>& t, const Parameters<acc_t<T>>& p,
                      int64_t row, acc_t<T>* dweight, acc_t<T>* dbias) {
  using Acc = acc_t<T>;
  const int64_t at = row * s.size, first = row % s.groups * s.channels();
  const RowStatistics<Acc> found{t.mean[row], t.rstd[row]};
  const Acc* const weight = p.weight.data() + first;
  if (t.params.is(math::ActivationKind::kIdentity)) {
    return backward_row(s, t.x + at, t.grad + at, found, weight, t.dx + at, dweight, dbias, t.stream);
  }
  Scratch scratch;
  Acc* const z = scratch.take<Acc>(s.size);
  Acc* const g = scratch.take<Acc>(s.size);
  scale_row(s, t.x + at, found, weight, p.bias.data() + first, z, false);
  transform(s.size, [](Vec<Acc> v) { return v; }, g, t.grad + at);
  AnyActivation<Acc>{t.params}.backward(z, false, g, s.size);
  backward_row(s, t.x + at, g, found, weight, t.dx + at, dweight, dbias, t.stream);
}

// Sums [parts, 2, width] over the parts, for each of `width` columns.
template <class Acc>
void finish(const std::vector<Acc>& partials, int64_t width, Acc* dweight, Acc* dbias) {
  const int64_t parts = static_cast<int64_t>(partials.size()) / (2 * width);
  parallel_for(width, 2 * parts, [&](int64_t begin, int64_t end) {
    std::vector<double> total(2 * (end - begin));
    for (int64_t part = 0; part < parts; ++part) {
      const Acc* const from = partials.data() + part * 2 * width;
      for (int64_t c = begin; c < end; ++c) {
        total[2 * (c - begin)] += static_cast<double>(from[c]);
        total[2 * (c - begin) + 1] += static_cast<double>(from[width + c]);
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      dweight[c] = static_cast<Acc>(total[2 * (c - begin)]);
      dbias[c] = static_cast<Acc>(total[2 * (c - begin) + 1]);
    }
  });
}

// dweight and dbias are null if nobody wants them. A part of their sums is a block of rows, or, where a row
// has sums of its own, the rows of all groups.
template <class T>
void backward(const LayerNormShape& s, const Gradients<T>& t, const Parameters<acc_t<T>>& p,
              acc_t<T>* dweight, acc_t<T>* dbias) {
  using Acc = acc_t<T>;
  const bool added = s.inner == 1 && s.groups == 1;
  const int64_t of_part = added ? std::max(kSumRows, ceil_div(s.rows, kMostBlocks)) : s.groups,
                width = s.parameters();
  const int64_t parts = ceil_div(s.rows, of_part), cost = s.size * (2 + activation_cost(t.params));
  std::vector<Acc> partials(dweight ? parts * 2 * width : 0);
  const auto of_row = [&](int64_t row) {
    if (!dweight) return backward_through<T>(s, t, p, row, nullptr, nullptr);
    Acc* const to = partials.data() + row / of_part * 2 * width + row % s.groups * s.channels();
    backward_through(s, t, p, row, to, to + width);
  };
  if (added && dweight) {
    parallel_for(parts, of_part * cost, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * of_part; row < std::min(s.rows, end * of_part); ++row) of_row(row);
    });
  } else {
    parallel_for(s.rows, cost, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) of_row(row);
    });
  }
  if (dweight) finish(partials, width, dweight, dbias);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(Tensor input, std::optional<Tensor> weight,
                                                      std::optional<Tensor> bias, int64_t size, int64_t inner,
                                                      int64_t groups, double eps, int64_t kind, double alpha,
                                                      double beta) {
  const char* op = "layer_norm_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const LayerNormShape s = check_layer_norm(input, weight, bias, size, inner, groups, params, op);
  Tensor output = new_output(input, shape_of(input), input.scalar_type());
  const ScalarType acc = accumulate_type(input.scalar_type());
  Tensor mean = new_tensor(input, {s.rows}, acc), rstd = new_tensor(input, {s.rows}, acc);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const auto p = Parameters<Acc>::of(s, data_or_null<Acc>(weight), data_or_null<Acc>(bias));
    forward(s, data<T>(input), p, eps, params, mutable_data<T>(output), mutable_data<Acc>(mean),
            mutable_data<Acc>(rstd));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad_output, Tensor input,
                                                       std::optional<Tensor> weight,
                                                       std::optional<Tensor> bias, Tensor mean, Tensor rstd,
                                                       int64_t size, int64_t inner, int64_t groups,
                                                       int64_t kind, double alpha, double beta,
                                                       bool needs_parameters) {
  const char* op = "layer_norm_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const LayerNormShape s = check_layer_norm(input, weight, bias, size, inner, groups, params, op);
  check_layer_norm_backward(grad_output, input, mean, rstd, s, op);
  Tensor grad_input = new_output(input, shape_of(input), input.scalar_type());
  const ScalarType acc = accumulate_type(input.scalar_type());
  const int64_t count = needs_parameters ? s.parameters() : 0;
  Tensor grad_weight = new_tensor(input, {count}, acc), grad_bias = new_tensor(input, {count}, acc);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const auto p = Parameters<Acc>::of(s, data_or_null<Acc>(weight), data_or_null<Acc>(bias));
    const Gradients<T> tensors{
        data<T>(grad_output),
        data<T>(input),
        data<Acc>(mean),
        data<Acc>(rstd),
        mutable_data<T>(grad_input),
        params,
        passes_caches(3 * s.rows * s.size * static_cast<int64_t>(sizeof(T))),
    };
    backward(s, tensors, p, needs_parameters ? mutable_data<Acc>(grad_weight) : nullptr,
             needs_parameters ? mutable_data<Acc>(grad_bias) : nullptr);
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&pyops::cpu::layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&pyops::cpu::layer_norm_backward));
}
