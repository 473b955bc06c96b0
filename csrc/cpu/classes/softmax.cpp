// Softmax and log-softmax on the CPU.
#include "math/softmax.h"

#include "binding/softmax.h"
#include "cpu/classes/max_sum.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

template <bool kLog, class T>
void forward_row(const T* x, T* y, int64_t n) {
  using Acc = acc_t<T>;
  const MaxSum<Acc> r = row_max_sum(x, n);
  const math::SoftmaxNormaliser<Acc> row = math::softmax_normaliser(r.max, r.sum, kLog);
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    store_lanes(y + i, math::normalised(load_lanes(x + i, lanes), row, kLog), lanes);
  });
}

template <bool kLog, class T>
void forward_panel(const T* x, T* y, int64_t classes, int64_t stride, int64_t width) {
  using Acc = acc_t<T>;
  Panel<Acc> max, sum;
  panel_max_sum(x, classes, stride, width, max, sum);
  for (int64_t i = 0; i < width; ++i) sum[i] = math::softmax_normaliser(max[i], sum[i], kLog).sum_term;
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      const math::SoftmaxNormaliser<Vec<Acc>> rows{max.vec(i), sum.vec(i)};
      const Vec<Acc> v = load_lanes(x + c * stride + i, lanes);
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
  const auto join = [&](V& acc, int64_t i, V v) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, n - i));
    acc += sum_gradient<kLog, Acc>(v, load_lanes(grad + i, lanes));
  };
  const Acc total = horizontal_sum(reduce_row(y, n, Acc(0), Acc(0), join, add<V>));
  for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
    const V v = input_gradient<kLog, Acc>(load_lanes(y + i, lanes), load_lanes(grad + i, lanes), total);
    store_lanes(dx + i, v, lanes);
  });
}

template <bool kLog, class T>
void backward_panel(const T* grad, const T* y, T* dx, int64_t classes, int64_t stride, int64_t width) {
  using Acc = acc_t<T>;
  Panel<Acc> total;
  total.fill(0);
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      const int64_t at = c * stride + i;
      total.set(
          i, total.vec(i) + sum_gradient<kLog, Acc>(load_lanes(y + at, lanes), load_lanes(grad + at, lanes)));
    });
  }
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      const int64_t at = c * stride + i;
      const Vec<Acc> v =
          input_gradient<kLog, Acc>(load_lanes(y + at, lanes), load_lanes(grad + at, lanes), total.vec(i));
      store_lanes(dx + at, v, lanes);
    });
  }
}

// Calls row(offset) for contiguous rows, or panel(offset, width) for strided ones, in parallel.
template <class Acc, class Row, class PanelF>
void for_each_row(const ReducedShape& s, const Row& row, const PanelF& panel) {
  RowGroups<Acc>(s.classes, s.inner, s.outer).for_each([&](RowGroup g) {
    if (s.inner != 1) return panel(g.offset, g.width);
    for (int64_t i = 0; i < g.width; ++i) row(g.offset + i * s.classes);
  });
}

template <bool kLog, class T>
void forward(const Tensor& input, Tensor& output, const ReducedShape& s) {
  const T* x = data<T>(input);
  T* y = mutable_data<T>(output);
  for_each_row<acc_t<T>>(
      s, [&](int64_t at) { forward_row<kLog>(x + at, y + at, s.classes); },
      [&](int64_t at, int64_t width) { forward_panel<kLog>(x + at, y + at, s.classes, s.inner, width); });
}

template <bool kLog, class T>
void backward(const Tensor& grad_output, const Tensor& output, Tensor& grad_input, const ReducedShape& s) {
  const T* g = data<T>(grad_output);
  const T* y = data<T>(output);
  T* dx = mutable_data<T>(grad_input);
  for_each_row<acc_t<T>>(
      s, [&](int64_t at) { backward_row<kLog>(g + at, y + at, dx + at, s.classes); },
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
