// Average pooling on CUDA, with sliding and with adaptive windows. A thread sums the elements of a window or,
// in backward, the windows of an element. For a global average over contiguous planes, a warp sums a plane.
#include "cuda/device/reduce.cuh"
#include "cuda/pooling/planes.cuh"

namespace pyops::cuda {
namespace {

using Sliding = math::AverageSlidingOf<int, Divisor>;
using Adaptive = math::AverageAdaptiveOf<int>;

// Window is Sliding or Adaptive.
template <class Window>
struct AverageAxes {
  Window height, width;
  int height_in, height_out, width_in, width_out;
  int inner;
  int64_t divisor;  // 0: the elements are counted

  // Of a window that counts so many rows and columns.
  template <class Acc>
  __device__ __forceinline__ Acc divisor_of(int64_t rows, int64_t columns) const {
    return static_cast<Acc>(divisor != 0 ? divisor : rows * columns);
  }
};

template <class T, class Window, int kSize>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    avg_pool2d_forward_kernel(PoolRows rows, AverageAxes<Window> axes, const T* input, T* output) {
  using Acc = acc_t<T>;
  for_each_place<kSize>(rows, [&](const PoolPlace& at) {
    const AxisRange down = axes.height.elements(at.row), along = axes.width.elements(at.column);
    Acc sum[kSize] = {};
    for (int i = down.first; i < down.end; ++i) {
      Acc row_sum[kSize] = {};
      const int64_t row = (at.image * axes.height_in + i) * axes.width_in;
      for (int j = along.first; j < along.end; ++j) {
        Acc x[kSize];
        load_elements(input + (row + j) * axes.inner + at.channel, x);
#pragma unroll
        for (int k = 0; k < kSize; ++k) row_sum[k] += x[k];
      }
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] += row_sum[k];
    }
    const Acc divisor = axes.template divisor_of<Acc>(axes.height.count(at.row), axes.width.count(at.column));
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum[k] /= divisor;
    const int64_t pixel = (at.image * axes.height_out + at.row) * axes.width_out + at.column;
    store_elements(output + pixel * axes.inner + at.channel, sum);
  });
}

template <class T, class Window, int kSize>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    avg_pool2d_backward_kernel(PoolRows rows, AverageAxes<Window> axes, const T* grad_output, T* grad_input) {
  using Acc = acc_t<T>;
  for_each_place<kSize>(rows, [&](const PoolPlace& at) {
    const AxisRange down = axes.height.windows(at.row), along = axes.width.windows(at.column);
    Acc sum[kSize] = {};
#pragma unroll 1  // one or two windows, mostly
    for (int i = down.first; i < down.end; ++i) {
      const int64_t row = (at.image * axes.height_out + i) * axes.width_out;
      const int counted = axes.height.count(i);
#pragma unroll 1
      for (int j = along.first; j < along.end; ++j) {
        const Acc divisor = axes.template divisor_of<Acc>(counted, axes.width.count(j));
        Acc grad[kSize];
        load_elements(grad_output + (row + j) * axes.inner + at.channel, grad);
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum[k] += grad[k] / divisor;
      }
    }
    const int64_t pixel = (at.image * axes.height_in + at.row) * axes.width_in + at.column;
    store_elements(grad_input + pixel * axes.inner + at.channel, sum);
  });
}

// The same of contiguous planes.
template <class T, class Window>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    avg_pool2d_planes_forward_kernel(Planes planes, AverageAxes<Window> axes, const T* input, T* output) {
  using Acc = acc_t<T>;
  for_each_plane_place(planes, [&](const PlanePlace& at, uint32_t i) {
    const AxisRange down = axes.height.elements(at.row), along = axes.width.elements(at.item);
    const T* row = input + (at.plane * axes.height_in + down.first) * axes.width_in;
    Acc sum = 0;
    for (int y = down.first; y < down.end; ++y, row += axes.width_in) {
      Acc row_sum = 0;
      for (int x = along.first; x < along.end; ++x) row_sum += to_acc(row[x]);
      sum += row_sum;
    }
    const Acc divisor = axes.template divisor_of<Acc>(axes.height.count(at.row), axes.width.count(at.item));
    output[i] = from_acc<T>(sum / divisor);
  });
}

// A run of elements of a row: the windows that hold the first to the last of them are gone through once.
template <class T, class Window>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    avg_pool2d_planes_backward_kernel(Planes planes, AverageAxes<Window> axes, bool aligned,
                                      const T* grad_output, T* grad_input) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  for_each_plane_place(planes, [&](const PlanePlace& at, uint32_t) {
    const int first = at.item * kSize, last = math::smaller(first + kSize, axes.width_in) - 1;
    const AxisRange down = axes.height.windows(at.row);
    const AxisRange along{axes.width.windows(first).first, axes.width.windows(last).end};
    Acc sum[kSize] = {};
#pragma unroll 1
    for (int i = down.first; i < down.end; ++i) {
      const T* const row = grad_output + (at.plane * axes.height_out + i) * axes.width_out;
      const int counted = axes.height.count(i);
#pragma unroll 1
      for (int j = along.first; j < along.end; ++j) {
        const Acc grad = to_acc(row[j]) / axes.template divisor_of<Acc>(counted, axes.width.count(j));
        const AxisRange held = axes.width.elements(j);
        const unsigned length = held.end - held.first;
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          sum[k] += static_cast<unsigned>(first + k - held.first) < length ? grad : Acc(0);
        }
      }
    }
    T* const row = grad_input + (at.plane * axes.height_in + at.row) * axes.width_in;
    store_run(row, first, axes.width_in, aligned, sum);
  });
}

// One number per plane of n contiguous elements.
template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    average_planes_kernel(int64_t planes, int64_t n, acc_t<T> divisor, const T* input, T* output) {
  using Acc = acc_t<T>;
  const int lane = threadIdx.x % kWarpSize, warps = kPoolThreads / kWarpSize;
  // Whole warps go through the loop together: every lane joins the reduction.
  for (int64_t plane = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / kWarpSize; plane < planes;
       plane += static_cast<int64_t>(gridDim.x) * warps) {
    Acc sum[1] = {Acc(0)};
    for (int64_t i = lane; i < n; i += kWarpSize) sum[0] += to_acc(input[plane * n + i]);
    reduce_lanes<Sum>(sum, kWarpSize);
    if (lane == 0) output[plane] = from_acc<T>(sum[0] / divisor);
  }
}

template <class Window>
bool is_global(const AverageAxes<Window>& axes) {
  const auto whole = [](const Window& axis, int in, int out) {
    return out == 1 && axis.elements(0) == AxisRange{0, in};
  };
  return axes.inner == 1 && whole(axes.height, axes.height_in, axes.height_out) &&
         whole(axes.width, axes.width_in, axes.width_out);
}

template <class T, class Window>
void average_planes(const AverageAxes<Window>& axes, int64_t planes, const T* x, T* y, cudaStream_t stream) {
  constexpr int kWarps = kPoolThreads / kWarpSize;
  const int64_t counted = static_cast<int64_t>(axes.height_in) * axes.width_in;
  const auto divisor = static_cast<acc_t<T>>(axes.divisor != 0 ? axes.divisor : counted);
  launch(average_planes_kernel<T>, blocks_for(planes, kWarps), kPoolThreads, 0, stream, planes, counted,
         divisor, x, y);
}

template <class Window>
Tensor forward(const Tensor& input, const Image& in, const AverageAxes<Window>& axes, const char* op) {
  const Image out = in.resized(axes.height_out, axes.width_out);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, out.shape, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const T* x = data<T>(input);
    T* y = mutable_data<T>(output);
    if (is_global(axes) && out.elements() > 0) return average_planes(axes, in.outer, x, y, device.stream);
    if (are_planes(in, out)) {
      return launch_planes(avg_pool2d_planes_forward_kernel<T, Window>, out, 1, device.stream, axes, x, y);
    }
    const auto kernel_of = [](auto size) { return avg_pool2d_forward_kernel<T, Window, size()>; };
    const bool aligned = is_aligned(x, kPackBytes) && is_aligned(y, kPackBytes);
    launch_pool<T>(out, aligned, device.stream, kernel_of, axes, x, y);
  });
  return output;
}

template <class Window>
Tensor backward(const Tensor& grad_output, const Image& out, const AverageAxes<Window>& axes,
                const char* op) {
  const Image in = out.resized(axes.height_in, axes.width_in);
  const DeviceScope device(grad_output);
  Tensor grad_input = new_tensor(grad_output, in.shape, grad_output.scalar_type());
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const T* g = data<T>(grad_output);
    T* dx = mutable_data<T>(grad_input);
    if (are_planes(in, out)) {
      return launch_planes(avg_pool2d_planes_backward_kernel<T, Window>, in, Pack<T>::kSize, device.stream,
                           axes, has_whole_runs(in, dx), g, dx);
    }
    const auto kernel_of = [](auto size) { return avg_pool2d_backward_kernel<T, Window, size()>; };
    const bool aligned = is_aligned(g, kPackBytes) && is_aligned(dx, kPackBytes);
    launch_pool<T>(in, aligned, device.stream, kernel_of, axes, g, dx);
  });
  return grad_input;
}

AverageAxes<Sliding> sliding_axes(const Windows& windows, bool count_include_pad, const Image& image,
                                  int64_t divisor, const char* op) {
  const Axis h = narrow(windows.height(), op), w = narrow(windows.width(), op);
  return {{h, count_include_pad},
          {w, count_include_pad},
          h.in,
          h.out,
          w.in,
          w.out,
          static_cast<int>(image.inner),
          divisor};
}

AverageAxes<Adaptive> adaptive_axes(const Image& in, const Image& out) {
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };  // check_adaptive bounds the sizes
  const int height_in = narrow(in.height), height_out = narrow(out.height);
  const int width_in = narrow(in.width), width_out = narrow(out.width);
  return {{height_in, height_out},
          {width_in, width_out},
          height_in,
          height_out,
          width_in,
          width_out,
          narrow(in.inner),
          0};
}

// Calls f with the axes. Windows of one size are those of sliding axes, whose places are found without
// division.
template <class F>
Tensor with_adaptive_axes(const Image& in, const Image& out, const char* op, const F& f) {
  constexpr int64_t kLargest = 1 << 29;  // sums of three sizes are less than 2^31
  const auto slides = [](int64_t in, int64_t out) { return out > 0 && in % out == 0 && in < kLargest; };
  if (!slides(in.height, out.height) || !slides(in.width, out.width)) return f(adaptive_axes(in, out));
  const int64_t h = in.height / out.height, w = in.width / out.width;
  const Windows windows{{{in.height, out.height, h, h, 0, 1}, {in.width, out.width, w, w, 0, 1}}};
  return f(sliding_axes(windows, false, in, 0, op));
}

Tensor avg_pool2d_forward(Tensor input, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode,
                          bool count_include_pad, std::optional<int64_t> divisor_override,
                          bool channels_last) {
  const char* op = "avg_pool2d_forward";
  const Image in = Image::of(input, channels_last, op, "input");
  const Windows windows = Windows::of({in.height, in.width}, kernel, stride, padding, {1, 1}, ceil_mode, op);
  const int64_t divisor = check_divisor(divisor_override, op);
  return forward(input, in, sliding_axes(windows, count_include_pad, in, divisor, op), op);
}

Tensor avg_pool2d_backward(Tensor grad_output, Sizes input_size, Sizes kernel, Sizes stride, Sizes padding,
                           bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override,
                           bool channels_last) {
  const char* op = "avg_pool2d_backward";
  const Image out = Image::of(grad_output, channels_last, op, "grad_output");
  const Windows windows = Windows::of(input_size, kernel, stride, padding, {1, 1}, ceil_mode, op);
  windows.check_output(out, op, "grad_output");
  const int64_t divisor = check_divisor(divisor_override, op);
  return backward(grad_output, out, sliding_axes(windows, count_include_pad, out, divisor, op), op);
}

Tensor adaptive_avg_pool2d_forward(Tensor input, Sizes output_size, bool channels_last) {
  const char* op = "adaptive_avg_pool2d_forward";
  const Image in = Image::of(input, channels_last, op, "input");
  check_adaptive({in.height, in.width}, output_size, op);
  return with_adaptive_axes(in, in.resized(output_size[0], output_size[1]), op,
                            [&](const auto& axes) { return forward(input, in, axes, op); });
}

Tensor adaptive_avg_pool2d_backward(Tensor grad_output, Sizes input_size, bool channels_last) {
  const char* op = "adaptive_avg_pool2d_backward";
  const Image out = Image::of(grad_output, channels_last, op, "grad_output");
  check_adaptive(input_size, {out.height, out.width}, op);
  return with_adaptive_axes(out.resized(input_size[0], input_size[1]), out, op,
                            [&](const auto& axes) { return backward(grad_output, out, axes, op); });
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("avg_pool2d_forward", TORCH_BOX(&pyops::cuda::avg_pool2d_forward));
  m.impl("avg_pool2d_backward", TORCH_BOX(&pyops::cuda::avg_pool2d_backward));
  m.impl("adaptive_avg_pool2d_forward", TORCH_BOX(&pyops::cuda::adaptive_avg_pool2d_forward));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&pyops::cuda::adaptive_avg_pool2d_backward));
}
