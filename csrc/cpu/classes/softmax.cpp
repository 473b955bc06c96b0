// Softmax and log-softmax on the CPU.
#include "math/softmax.h"

#include "binding/softmax.h"
#include "cpu/classes/max_sum.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

// In 16 bits: exp of the elements is kept in float32 until their sum is known.
template <class T>
void forward_row_kept(const T* x, T* y, int64_t n) {
  using V = Vec<float>;
  using Two = TwoVectors<T>;
  constexpr int kPair = 2 * V::kLanes;
  Scratch scratch;
  float* const kept = scratch.take<float>(round_up(n, kPair));
  const float max = row_max(x, n);
  const V shift = math::shift_of(max);
  V sum[2] = {V(0.0f), V(0.0f)};
  const int64_t paired = n / kPair * kPair;
  for (int64_t i = 0; i < paired; i += kPair) {
    const Two v = Two::load(x + i);
    const V e[2] = {exp(v.first - shift), exp(v.second - shift)};
    for (int u = 0; u < 2; ++u) {
      store(kept + i + u * V::kLanes, e[u]);
      sum[u] += e[u];
    }
  }
  for_each_vector<float>(n - paired, [&](int64_t i, int lanes) {
    const V e = exp(load_lanes(x + paired + i, lanes, -math::infinity<float>()) - shift);
    store(kept + paired + i, e);
    sum[0] += e;
  });
  const V factor = math::softmax_normaliser(max, horizontal_sum(sum[0] + sum[1]), false).sum_term;
  for (int64_t i = 0; i < paired; i += kPair) {
    Two{load<float>(kept + i) * factor, load<float>(kept + i + V::kLanes) * factor}.store(y + i);
  }
  for_each_vector<float>(n - paired, [&](int64_t i, int lanes) {
    store_lanes(y + paired + i, load<float>(kept + paired + i) * factor, lanes);
  });
}

template <bool kLog, class T>
void forward_row(const T* x, T* y, int64_t n) {
  using Acc = acc_t<T>;
  constexpr int64_t kMostKept = kShortRow;  // half of an L1 cache
  if constexpr (!kLog && !std::is_same_v<T, Acc>) {
    if (n <= kMostKept) return forward_row_kept(x, y, n);
  }
  const MaxSum<Acc> r = row_max_sum(x, n);
  const math::SoftmaxNormaliser<Acc> row = math::softmax_normaliser(r.max, r.sum, kLog);
  transform(n, [&](Vec<Acc> v) { return math::normalised(v, row, kLog); }, y, x);
}

// Asks the L2 cache for what lies `ahead` elements behind p: several rows at a time are read, each too short
// for the hardware to see that more follow.
template <class T>
PYOPS_HD void fetch_behind(const T* p, int64_t ahead) {
  __builtin_prefetch(p + ahead, 0, 2);
}

// Some short rows side by side. A row's numbers do not depend on how many there are.
template <bool kLog, int kRows, class T>
void forward_short_rows(const T* x, T* y, int64_t n) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  constexpr Acc kLowest = -math::infinity<Acc>();
  constexpr bool kKeepsExp = !kLog && std::is_same_v<T, Acc>;  // of the elements, where the output goes
  V most[kRows], sum[kRows];
  Acc shift[kRows];
  math::SoftmaxNormaliser<Acc> row[kRows];
  for (int r = 0; r < kRows; ++r) most[r] = V(kLowest), sum[r] = V(Acc(0));
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    PYOPS_UNROLL
    for (int r = 0; r < kRows; ++r) most[r] = max(load_lanes(x + r * n + i, lanes, kLowest), most[r]);
  });
  for (int r = 0; r < kRows; ++r) {
    row[r].max = horizontal_max(most[r]);
    shift[r] = math::shift_of(row[r].max);
  }
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    PYOPS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      fetch_behind(x + r * n + i, kRows * n);
      const V e = exp(load_lanes(x + r * n + i, lanes, kLowest) - V(shift[r]));
      sum[r] += e;
      if constexpr (kKeepsExp) store_lanes(y + r * n + i, e, lanes);
    }
  });
  for (int r = 0; r < kRows; ++r) row[r] = math::softmax_normaliser(row[r].max, horizontal_sum(sum[r]), kLog);
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    PYOPS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      T* const to = y + r * n + i;
      if constexpr (kKeepsExp) {
        store_lanes(to, load_lanes(to, lanes) * V(row[r].sum_term), lanes);
      } else {
        store_lanes(to, math::normalised(load_lanes(x + r * n + i, lanes), row[r], kLog), lanes);
      }
    }
  });
}

template <bool kLog, class T>
void forward_panel(const T* x, T* y, int64_t classes, int64_t stride, int64_t width) {
  using Acc = acc_t<T>;
  const PanelCopy<Acc> copy(classes);
  Panel<Acc> max, sum;
  panel_max_sum(x, classes, stride, width, copy, max, sum);
  for_each_vector<Acc>(width, [&](int64_t i, int) {
    sum.set(i, math::softmax_normaliser(max.vec(i), sum.vec(i), kLog).sum_term);
  });
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      const math::SoftmaxNormaliser<Vec<Acc>> rows{max.vec(i), sum.vec(i)};
      const Vec<Acc> v = copy ? copy.vec(c, i) : load_lanes(x + c * stride + i, lanes);
      store_lanes(y + c * stride + i, math::normalised(v, rows, kLog), lanes);
    });
  }
}

// The factor of the row sum: softmax sums g y, log-softmax sums g.
template <bool kLog, class Acc>
Vec<Acc> sum_gradient(Vec<Acc> y, Vec<Acc> grad) {
  return kLog ? grad : y * grad;
}

template <bool kLog, class Acc>
Vec<Acc> input_gradient(Vec<Acc> y, Vec<Acc> grad, Vec<Acc> total) {
  return kLog ? math::log_softmax_gradient(y, grad, total) : math::softmax_gradient(y, grad, total);
}

template <bool kLog, class T>
void backward_row(const T* grad, const T* y, T* dx, int64_t n) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const V total = sum_row(n, sum_gradient<kLog, Acc>, y, grad);
  transform(n, [&](V v, V g) { return input_gradient<kLog, Acc>(v, g, total); }, dx, y, grad);
}

template <bool kLog, int kRows, class T>
void backward_rows(const T* grad, const T* y, T* dx, int64_t n) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  V sums[kRows], other_sums[kRows], total[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = other_sums[r] = V(Acc(0));
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    PYOPS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      V& sum = i / V::kLanes % 2 ? other_sums[r] : sums[r];
      sum += sum_gradient<kLog, Acc>(load_lanes(y + r * n + i, lanes), load_lanes(grad + r * n + i, lanes));
    }
  });
  for (int r = 0; r < kRows; ++r) total[r] = V(horizontal_sum(sums[r] + other_sums[r]));
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    PYOPS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * n + i;
      fetch_behind(y + at, kRows * n);
      fetch_behind(grad + at, kRows * n);
      const V v =
          input_gradient<kLog, Acc>(load_lanes(y + at, lanes), load_lanes(grad + at, lanes), total[r]);
      store_lanes(dx + at, v, lanes);
    }
  });
}

// Sums the panel's rows, and writes their gradients from the copies, if there are any.
template <bool kLog, class T>
void backward_panel(const T* grad, const T* y, T* dx, int64_t classes, int64_t stride, int64_t width) {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  const PanelCopy<Acc> grads(classes), outputs(classes);
  Panel<Acc> total;
  total.fill(0);
  if (grads) {
    with_panel_width<Acc>(width, [&](auto w) {
      V sum[kUnroll];
      for (V& v : sum) v = V(Acc(0));
      copy_panel(y, classes, stride, w, outputs, [](int, V) {});
      int64_t at = 0;  // of the output's vector
      copy_panel(grad, classes, stride, w, grads, [&](int u, V g) {
        const V v = outputs.vec(at, u * V::kLanes);
        if (u + 1 == panel_vectors<Acc>(w)) ++at;
        sum[u] += sum_gradient<kLog, Acc>(v, g);
      });
      for (int u = 0; u < kUnroll; ++u) total.set(u * V::kLanes, sum[u]);
    });
  } else {
    for (int64_t c = 0; c < classes; ++c) {
      for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
        const V g = load_lanes(grad + c * stride + i, lanes), v = load_lanes(y + c * stride + i, lanes);
        total.set(i, total.vec(i) + sum_gradient<kLog, Acc>(v, g));
      });
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      const int64_t at = c * stride + i;
      const V g = grads ? grads.vec(c, i) : load_lanes(grad + at, lanes);
      const V v = outputs ? outputs.vec(c, i) : load_lanes(y + at, lanes);
      store_lanes(dx + at, input_gradient<kLog, Acc>(v, g, total.vec(i)), lanes);
    });
  }
}

// Whether rows are so long that nothing is gained side by side. In 16 bits, whose conversions are cheaper for
// two vectors at a time and whose exp is kept, they soon are.
template <class T>
constexpr bool one_by_one(int64_t classes) {
  return classes > kShortRow || (sizeof(T) == 2 && classes >= 256);
}

// Calls rows(offset, constant count) for contiguous rows, or panel(offset, width) for strided ones, in
// parallel.
template <class Acc, class Rows, class PanelF>
void for_each_row(const ReducedShape& s, const Rows& rows, const PanelF& panel) {
  RowGroups<Acc>(s.classes, s.inner, s.outer).for_each([&](RowGroup g) {
    if (s.inner != 1) return panel(g.offset, g.width);
    if (g.width == kShortRows) return rows(g.offset, std::integral_constant<int, kShortRows>{});
    for (int64_t i = 0; i < g.width; ++i) rows(g.offset + i * s.classes, std::integral_constant<int, 1>{});
  });
}

template <bool kLog, class T>
void forward(const Tensor& input, Tensor& output, const ReducedShape& s) {
  const T* x = data<T>(input);
  T* y = mutable_data<T>(output);
  for_each_row<acc_t<T>>(
      s,
      [&](int64_t at, auto rows) {
        if (one_by_one<T>(s.classes)) {
          for (int64_t row = at; row < at + rows * s.classes; row += s.classes) {
            forward_row<kLog>(x + row, y + row, s.classes);
          }
          return;
        }
        forward_short_rows<kLog, decltype(rows)::value>(x + at, y + at, s.classes);
      },
      [&](int64_t at, int64_t width) { forward_panel<kLog>(x + at, y + at, s.classes, s.inner, width); });
}

template <bool kLog, class T>
void backward(const Tensor& grad_output, const Tensor& output, Tensor& grad_input, const ReducedShape& s) {
  const T* g = data<T>(grad_output);
  const T* y = data<T>(output);
  T* dx = mutable_data<T>(grad_input);
  for_each_row<acc_t<T>>(
      s,
      [&](int64_t at, auto rows) {
        if (one_by_one<T>(s.classes)) {
          for (int64_t row = at; row < at + rows * s.classes; row += s.classes) {
            backward_row<kLog>(g + row, y + row, dx + row, s.classes);
          }
          return;
        }
        backward_rows<kLog, decltype(rows)::value>(g + at, y + at, dx + at, s.classes);
      },
      [&](int64_t at, int64_t width) {
        backward_panel<kLog>(g + at, y + at, dx + at, s.classes, s.inner, width);
      });
}

Tensor softmax_forward(Tensor input, int64_t dim, bool log) {
  const char* op = "softmax_forward";
  check_dense(input, op, "input", input);
  const ReducedShape shape = ReducedShape::of(input, dim, op);
  Tensor output = new_output(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    log ? forward<true, T>(input, output, shape) : forward<false, T>(input, output, shape);
  });
  return output;
}

Tensor softmax_backward(Tensor grad_output, Tensor output, int64_t dim, bool log) {
  const char* op = "softmax_backward";
  check_softmax_backward(grad_output, output, op);
  const ReducedShape shape = ReducedShape::of(output, dim, op);
  Tensor grad_input = new_output(output, shape_of(output), output.scalar_type());
  dispatch_floating(output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    log ? backward<true, T>(grad_output, output, grad_input, shape)
        : backward<false, T>(grad_output, output, grad_input, shape);
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("softmax_forward", TORCH_BOX(&pyops::cpu::softmax_forward));
  m.impl("softmax_backward", TORCH_BOX(&pyops::cpu::softmax_backward));
}
