// Max pooling on CUDA. Forward keeps the position of each maximum in its window. Backward gathers: every
// element of the input sums the gradients of the windows whose maximum it is, in the order of the windows.
#include "cuda/pooling/max_pool_planes.cuh"

namespace pyops::cuda {
namespace {

__device__ __forceinline__ WindowAxes without_dilation(WindowAxes axes) {
  axes.height.dilation = axes.width.dilation = Divisor{};
  return axes;
}

// kKernel: the window's height and width, known so that its loads are issued together, without dilation; 0:
// known at run time.
template <class T, class A, int kSize, int kKernel>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool2d_forward_kernel(PoolRows rows, WindowAxes given, const T* input, T* output, A* argmax) {
  using Acc = acc_t<T>;
  const WindowAxes axes = kKernel > 0 ? without_dilation(given) : given;
  for_each_place<kSize>(rows, [&](const PoolPlace& at) {
    const AxisRange down = axes.height.taps(at.row), along = axes.width.taps(at.column);
    const int64_t image = at.image * axes.height.in;
    const int top = axes.height.start(at.row), left = axes.width.start(at.column);
    const int kernel_width = kKernel > 0 ? kKernel : axes.width.kernel;
    Acc maximum[kSize];
    int position[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      maximum[k] = -math::infinity<Acc>();
      position[k] =
          static_cast<int>(axes.height.first_tap(at.row) * kernel_width + axes.width.first_tap(at.column));
    }
    const auto visit = [&](int i, int j) {
      const int row = top + i * axes.height.dilation, column = left + j * axes.width.dilation;
      const int64_t pixel = (image + row) * axes.width.in + column;
      Acc x[kSize];
      load_elements(input + pixel * axes.inner + at.channel, x);
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (!math::replaces_maximum(x[k], maximum[k])) continue;
        maximum[k] = x[k];
        position[k] = i * kernel_width + j;
      }
    };
    if constexpr (kKernel > 0) {
#pragma unroll
      for (int i = 0; i < kKernel; ++i) {
#pragma unroll
        for (int j = 0; j < kKernel; ++j) {
          if (i >= down.first && i < down.end && j >= along.first && j < along.end) visit(i, j);
        }
      }
    } else {
      for (int i = down.first; i < down.end; ++i)
        for (int j = along.first; j < along.end; ++j) visit(i, j);
    }
    const int64_t pixel = (at.image * axes.height.out + at.row) * axes.width.out + at.column;
    store_elements(output + pixel * axes.inner + at.channel, maximum);
    store_positions(argmax + pixel * axes.inner + at.channel, position);
  });
}

template <class T, class A, int kSize>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool2d_backward_kernel(PoolRows rows, WindowAxes axes, const T* grad_output, const A* argmax,
                               T* grad_input) {
  using Acc = acc_t<T>;
  for_each_place<kSize>(rows, [&](const PoolPlace& at) {
    const AxisRange down = axes.height.windows(at.row), along = axes.width.windows(at.column);
    Acc sum[kSize] = {};
    for (int i = down.first; i < down.end; ++i) {
      const int row_tap = axes.height.tap(i, at.row);
      if (row_tap < 0) continue;
      for (int j = along.first; j < along.end; ++j) {
        const int tap = axes.width.tap(j, at.column);
        if (tap < 0) continue;
        const int64_t pixel = (at.image * axes.height.out + i) * axes.width.out + j;
        const int wanted = row_tap * axes.width.kernel + tap;
        Acc grad[kSize];
        int position[kSize];
        load_elements(grad_output + pixel * axes.inner + at.channel, grad);
        load_positions(argmax + pixel * axes.inner + at.channel, position);
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum[k] += position[k] == wanted ? grad[k] : Acc(0);
      }
    }
    const int64_t pixel = (at.image * axes.height.in + at.row) * axes.width.in + at.column;
    store_elements(grad_input + pixel * axes.inner + at.channel, sum);
  });
}

template <class A>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool2d_indices_kernel(PoolRows rows, WindowAxes axes, const A* argmax, int64_t* indices) {
  for_each_place<1>(rows, [&](const PoolPlace& at) {
    const int64_t pixel = (at.image * axes.height.out + at.row) * axes.width.out + at.column;
    const int64_t element = pixel * axes.inner + at.channel;
    indices[element] = math::flat_index(axes.height, axes.width, at.row, at.column, argmax[element]);
  });
}

bool has_dilation(const WindowAxes& axes) { return axes.height.dilation > 1 || axes.width.dilation > 1; }

template <class T, class A>
void forward(const Tensor& input, const Image& in, const Windows& windows, const WindowAxes& axes,
             Tensor& output, Tensor& argmax, cudaStream_t stream) {
  const Image out = windows.output_of(in);
  const T* x = data<T>(input);
  T* y = mutable_data<T>(output);
  A* positions = mutable_data<A>(argmax);
  if constexpr (std::is_same_v<A, uint8_t>) {
    if (are_common_planes(windows, in)) return max_pool_planes_forward(axes, out, x, y, positions, stream);
  }
  const auto kernel_of = [&](auto size) {
    if constexpr (std::is_same_v<A, uint8_t>) {  // positions in windows so small are bytes
      const bool plain = axes.height.kernel == axes.width.kernel && !has_dilation(axes);
      const int kernel = plain ? axes.height.kernel : 0;
      if (kernel == 2) return max_pool2d_forward_kernel<T, A, size(), 2>;
      if (kernel == 3) return max_pool2d_forward_kernel<T, A, size(), 3>;
    }
    return max_pool2d_forward_kernel<T, A, size(), 0>;
  };
  const bool aligned = is_aligned(x, kPackBytes) && is_aligned(y, kPackBytes) && is_aligned(positions, 8);
  launch_pool<T>(out, aligned, stream, kernel_of, axes, x, y, positions);
}

std::tuple<Tensor, Tensor> max_pool2d_forward(Tensor input, Sizes kernel, Sizes stride, Sizes padding,
                                              Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_forward";
  check_floating(input, op, "input");
  const Image in = Image::of(input, channels_last, op, "input");
  const Windows windows =
      Windows::of({in.height, in.width}, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.output_of(in);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, out.shape, input.scalar_type());
  Tensor argmax = new_tensor(input, out.shape, windows.argmax_type());
  dispatch_argmax(input.scalar_type(), windows, op, [&](auto tag, auto position) {
    const auto axes = WindowAxes::of(windows, in, op);
    forward<decltype(tag), decltype(position)>(input, in, windows, axes, output, argmax, device.stream);
  });
  return {output, argmax};
}

}  // namespace

void max_pool_gradient(const Windows& windows, const Image& in, const Tensor& grad_output,
                       const Tensor& argmax, const Tensor& grad_input, cudaStream_t stream, const char* op) {
  dispatch_argmax(grad_output.scalar_type(), windows, op, [&](auto tag, auto position) {
    using T = decltype(tag);
    using A = decltype(position);
    const T* g = data<T>(grad_output);
    const A* positions = data<A>(argmax);
    T* dx = mutable_data<T>(grad_input);
    const auto axes = WindowAxes::of(windows, in, op);
    const auto kernel_of = [](auto size) { return max_pool2d_backward_kernel<T, A, size()>; };
    if constexpr (std::is_same_v<A, uint8_t>) {
      if (are_common_planes(windows, in) && max_pool_planes_backward(axes, in, g, positions, dx, stream))
        return;
    }
    const bool aligned = is_aligned(g, kPackBytes) && is_aligned(dx, kPackBytes) && is_aligned(positions, 8);
    launch_pool<T>(in, aligned, stream, kernel_of, axes, g, positions, dx);
  });
}

namespace {

Tensor max_pool2d_backward(Tensor grad_output, Tensor argmax, Sizes input_size, Sizes kernel, Sizes stride,
                           Sizes padding, Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_backward";
  const Windows windows = Windows::of(input_size, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.check_backward(grad_output, argmax, channels_last, op);
  const Image in = windows.input_of(out);
  const DeviceScope device(grad_output);
  Tensor grad_input = new_tensor(grad_output, in.shape, grad_output.scalar_type());
  max_pool_gradient(windows, in, grad_output, argmax, grad_input, device.stream, op);
  return grad_input;
}

Tensor max_pool2d_indices(Tensor argmax, Sizes input_size, Sizes kernel, Sizes stride, Sizes padding,
                          Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_indices";
  const Windows windows = Windows::of(input_size, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.check_argmax(argmax, channels_last, op);
  const DeviceScope device(argmax);
  Tensor indices = new_tensor(argmax, out.shape, ScalarType::Long);
  const auto axes = WindowAxes::of(windows, out, op);
  const auto expand = [&](auto position) {
    using A = decltype(position);
    const auto kernel_of = [](auto) { return max_pool2d_indices_kernel<A>; };
    launch_pool<int64_t>(out, false, device.stream, kernel_of, axes, data<A>(argmax),
                         mutable_data<int64_t>(indices));
  };
  windows.argmax_type() == ScalarType::Byte ? expand(uint8_t{}) : expand(int32_t{});
  return indices;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("max_pool2d_forward", TORCH_BOX(&pyops::cuda::max_pool2d_forward));
  m.impl("max_pool2d_backward", TORCH_BOX(&pyops::cuda::max_pool2d_backward));
  m.impl("max_pool2d_indices", TORCH_BOX(&pyops::cuda::max_pool2d_indices));
}
