// Softmax and log-softmax on CUDA.
//
// A kernel visits each row twice, once to reduce it and once to write. Between the two it keeps a row that
// fits in registers (CachedRows), so global memory is read once. Otherwise the L2 cache mostly serves the
// second visit.
#include "binding/softmax.h"
#include "cuda/device/rows.cuh"
#include "cuda/device/tensor.cuh"
#include "math/online_softmax.h"

namespace pyops::cuda {
namespace {

constexpr int kCachedPacks = 8;  // per thread, over all inputs: 32 registers

// Calls f with `log` as a constant: a loop asks once, and not for each of its elements.
template <class F>
__device__ __forceinline__ void with_constant(bool log, const F& f) {
  log ? f(std::true_type{}) : f(std::false_type{});
}

template <class T, class Layout>
__global__ void __launch_bounds__(Layout::kMaxThreads, Layout::kMinBlocks)
    softmax_forward_kernel(RowShape shape, const T* input, T* output, bool log) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  const T* const inputs[1] = {input};
  layout.for_each_row([&](const Row& row) {
    layout.load(row, inputs);
    math::OnlineSoftmax<Acc, T> softmax;
    layout.template for_each<4>(row, inputs, [&](ClassRange, auto& x) { softmax.add(x[0]); });
    Acc max[1] = {softmax.max};
    layout.template reduce<Max>(max);
    softmax.raise(max[0]);
    Acc sum[1] = {softmax.sum};
    layout.template reduce<Sum>(sum);
    const math::SoftmaxNormaliser<Acc> normaliser = math::softmax_normaliser(max[0], sum[0], log);
    with_constant(log, [&](auto logarithm) {
      layout.template for_each<2>(row, inputs, [&](ClassRange at, auto& x) {
        for (Acc& value : x[0]) value = math::normalised<T>(value, normaliser, logarithm());
        layout.store(output, row, at, x[0]);
      });
    });
  });
}

template <class T, class Layout>
__global__ void __launch_bounds__(Layout::kMaxThreads, Layout::kMinBlocks)
    softmax_backward_kernel(RowShape shape, const T* grad_output, const T* output, T* grad_input, bool log) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  const T* const inputs[2] = {output, grad_output};
  layout.for_each_row([&](const Row& row) {
    layout.load(row, inputs);
    Acc total[1] = {Acc(0)};
    with_constant(log, [&](auto logarithm) {
      layout.template for_each<2>(row, inputs, [&](ClassRange, auto& v) {
        constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
        for (int k = 0; k < kCount; ++k) total[0] += logarithm() ? v[1][k] : v[0][k] * v[1][k];
      });
    });
    layout.template reduce<Sum>(total);
    with_constant(log, [&](auto logarithm) {
      layout.template for_each<2>(row, inputs, [&](ClassRange at, auto& v) {
        constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
        for (int k = 0; k < kCount; ++k) {
          v[0][k] = logarithm() ? math::log_softmax_gradient<T>(v[0][k], v[1][k], total[0])
                                : math::softmax_gradient(v[0][k], v[1][k], total[0]);
        }
        layout.store(grad_input, row, at, v[0]);
      });
    });
  });
}

template <class Layout>
struct LayoutTag {
  using type = Layout;
};

// Launches kernel_of(LayoutTag<Layout>{})(shape, arguments...) for the layout that suits the shape.
template <class T, int kInputs, class KernelOf, class... Arguments>
void launch_rows(const ReducedShape& s, bool aligned, cudaStream_t stream, const KernelOf& kernel_of,
                 Arguments... arguments) {
  constexpr int kPacks = kCachedPacks / kInputs;
  const auto run = [&](const RowLaunch& plan, auto tag) {
    launch(kernel_of(tag), plan.blocks, plan.threads, 0, stream, plan.shape, arguments...);
  };
  const RowLaunch cached = plan_rows<T>(s.outer, s.classes, s.inner, aligned, kMaxCachedThreads);
  if (cached.columns) {
    run(cached, LayoutTag<ColumnRows<T>>{});
  } else if (cached.packs_per_thread <= kPacks) {
    run(cached, LayoutTag<CachedRows<T, kInputs, kPacks>>{});
  } else {
    run(plan_rows<T>(s.outer, s.classes, s.inner, aligned), LayoutTag<ContiguousRows<T>>{});
  }
}

Tensor softmax_forward(Tensor input, int64_t dim, bool log) {
  const char* op = "softmax_forward";
  check_dense(input, op, "input", input);
  const ReducedShape s = ReducedShape::of(input, dim, op);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.rows() * s.classes == 0) return;
    const T* x = data<T>(input);
    T* y = mutable_data<T>(output);
    const auto kernel_of = [](auto layout) {
      return softmax_forward_kernel<T, typename decltype(layout)::type>;
    };
    launch_rows<T, 1>(s, same_alignment(x, y), device.stream, kernel_of, x, y, log);
  });
  return output;
}

Tensor softmax_backward(Tensor grad_output, Tensor output, int64_t dim, bool log) {
  const char* op = "softmax_backward";
  check_softmax_backward(grad_output, output, op);
  const ReducedShape s = ReducedShape::of(output, dim, op);
  const DeviceScope device(output);
  Tensor grad_input = new_tensor(output, shape_of(output), output.scalar_type());
  dispatch_floating(output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.rows() * s.classes == 0) return;
    const T* g = data<T>(grad_output);
    const T* y = data<T>(output);
    T* dx = mutable_data<T>(grad_input);
    const auto kernel_of = [](auto layout) {
      return softmax_backward_kernel<T, typename decltype(layout)::type>;
    };
    launch_rows<T, 2>(s, same_alignment(g, y, dx), device.stream, kernel_of, g, y, dx, log);
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("softmax_forward", TORCH_BOX(&pyops::cuda::softmax_forward));
  m.impl("softmax_backward", TORCH_BOX(&pyops::cuda::softmax_backward));
}
