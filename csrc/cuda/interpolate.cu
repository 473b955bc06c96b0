// Nearest-neighbour interpolation on CUDA: a gather forward, and a gather of sums backward.
//
// Threads take elements in the order of memory. Where the channels are last and fill whole packs, a pack has
// one source pixel; otherwise a pack of outputs collects single elements. Backward works out which outputs
// copied an input element (NearestAxis::first_output) and adds them in order.
#include "binding/interpolate.h"
#include "cuda/device/blocks.cuh"
#include "cuda/device/divide.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/tensor.cuh"
#include "math/interpolate.h"
#include "math/pooling.h"

namespace pyops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMinBlocks = 2;  // 128 registers per thread

// What the sizes of a tensor [outer, depth, height, width, inner] are divided by: products take the place of
// divisions where 31 bits count its elements.
template <class Index>
struct PlaceSizes {
  using Number = std::conditional_t<sizeof(Index) == 4, Divisor, Index>;
  Number depth, height, width, inner;

  static PlaceSizes of(int64_t depth, int64_t height, int64_t width, int64_t inner) {
    return {number(depth), number(height), number(width), number(inner)};
  }
  static PlaceSizes of_input(const InterpolateShape& s) {
    return of(s.axes[0].input, s.axes[1].input, s.axes[2].input, s.inner);
  }
  static PlaceSizes of_output(const InterpolateShape& s) {
    return of(s.axes[0].output, s.axes[1].output, s.axes[2].output, s.inner);
  }

 private:
  static Number number(int64_t size) {
    if constexpr (sizeof(Index) == 4) {
      return Divisor::of(static_cast<int>(size));
    } else {
      return static_cast<Index>(size);
    }
  }
};

// Where an element is.
template <class Index>
struct Place {
  Index outer, d, h, w, c;

  static __device__ __forceinline__ Place of(Index i, const PlaceSizes<Index>& sizes) {
    using math::quotient;
    Place at;
    const Index pixel = quotient(i, sizes.inner), row = quotient(pixel, sizes.width);
    const Index plane = quotient(row, sizes.height);
    at.c = i - pixel * sizes.inner;
    at.w = pixel - row * sizes.width;
    at.h = row - plane * sizes.height;
    at.outer = quotient(plane, sizes.depth);
    at.d = plane - at.outer * sizes.depth;
    return at;
  }
};

template <class Index, class F>
__device__ __forceinline__ void for_each_index(int64_t count, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    f(static_cast<Index>(i));
}

// The input element that an output element copies.
template <class Index>
__device__ __forceinline__ int64_t source_offset(const InterpolateShape& s, const PlaceSizes<Index>& sizes,
                                                 Index i) {
  const auto at = Place<Index>::of(i, sizes);
  const int64_t plane = at.outer * s.axes[0].input + s.axes[0].source(at.d);
  const int64_t row = plane * s.axes[1].input + s.axes[1].source(at.h);
  return (row * s.axes[2].input + s.axes[2].source(at.w)) * s.inner + at.c;
}

// Element i of `output` is element `source_offset` of `input`; an element is a whole pack with Word = uint4.
template <class Word, class Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    copy_pixels_kernel(InterpolateShape s, PlaceSizes<Index> sizes, int64_t count, const Word* input,
                       Word* output) {
  for_each_index<Index>(count, [&](Index i) { output[i] = input[source_offset(s, sizes, i)]; });
}

// A pack of outputs at a time, begun by one division and continued by counting.
template <class T, class Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    collect_packs_kernel(InterpolateShape s, PlaceSizes<Index> sizes, int64_t packs, const T* input,
                         T* output) {
  constexpr int kSize = Pack<T>::kSize;
  for_each_index<Index>(packs, [&](Index i) {
    acc_t<T> values[kSize];
    const Index first = i * kSize;
    auto at = Place<Index>::of(first, sizes);
    const auto row_of = [&] {
      const int64_t plane = at.outer * s.axes[0].input + s.axes[0].source(at.d);
      return (plane * s.axes[1].input + s.axes[1].source(at.h)) * s.axes[2].input;
    };
    int64_t row = row_of(), pixel = (row + s.axes[2].source(at.w)) * s.inner;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      values[k] = to_acc(input[pixel + at.c]);
      if (k + 1 == kSize || ++at.c < s.inner) continue;
      at.c = 0;
      if (++at.w == s.axes[2].output) {
        at.w = 0;
        if (++at.h == s.axes[1].output) {
          at.h = 0;
          if (++at.d == s.axes[0].output) at.d = 0, ++at.outer;
        }
        row = row_of();
      }
      pixel = (row + s.axes[2].source(at.w)) * s.inner;
    }
    store_pack(output + first, values);
  });
}

template <class T, class Index, int kWidth>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    sum_outputs_kernel(InterpolateShape s, PlaceSizes<Index> sizes, int64_t count, const T* grad, T* dx) {
  using Acc = acc_t<T>;
  const Index depth = s.axes[0].output, height = s.axes[1].output, width = s.axes[2].output;
  const Index inner = s.inner;
  const auto outputs = [&](int axis, Index at) {
    return math::RangeOf<Index>{static_cast<Index>(s.axes[axis].first_output(at)),
                                static_cast<Index>(s.axes[axis].first_output(at + Index(1)))};
  };
  for_each_index<Index>(count, [&](Index i) {
    const Index first = i * kWidth;
    const auto at = Place<Index>::of(first, sizes);
    const math::RangeOf<Index> ds = outputs(0, at.d), hs = outputs(1, at.h), ws = outputs(2, at.w);
    Acc sum[kWidth] = {};
#pragma unroll 1
    for (Index d = ds.first; d < ds.end; ++d) {
#pragma unroll 1
      for (Index h = hs.first; h < hs.end; ++h) {
        const Index row = ((at.outer * depth + d) * height + h) * width;
        const T* const p = grad + (row * inner + at.c);
        for (Index w = ws.first; w < ws.end; ++w) {
          if constexpr (kWidth == 1) {
            sum[0] += to_acc(p[w * inner]);
          } else {
            Acc values[kWidth];
            widen(load_pack(p + w * inner), values);
#pragma unroll
            for (int k = 0; k < kWidth; ++k) sum[k] += values[k];
          }
        }
      }
    }
    if constexpr (kWidth == 1) {
      dx[first] = from_acc<T>(sum[0]);
    } else {
      store_pack(dx + first, sum);
    }
  });
}

// Rows whose elements stand kRepeat times side by side, channels first: a pack of outputs from a few inputs
// in a row. `sizes` counts packs of the output's rows.
template <class T, int kRepeat>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    repeat_elements_kernel(InterpolateShape s, PlaceSizes<uint32_t> sizes, int64_t packs, const T* input,
                           T* output) {
  constexpr int kSize = Pack<T>::kSize, kInputs = kSize / kRepeat;
  const uint32_t depth = s.axes[0].input, height = s.axes[1].input, width = s.axes[2].input;
  for_each_index<uint32_t>(packs, [&](uint32_t i) {
    const auto at = Place<uint32_t>::of(i, sizes);
    const uint32_t d = s.axes[0].source(at.d), h = s.axes[1].source(at.h);
    const T* const from = input + (((at.outer * depth + d) * height + h) * width + at.w * kInputs);
    acc_t<T> values[kSize];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      const acc_t<T> value = to_acc(from[k]);
#pragma unroll
      for (int r = 0; r < kRepeat; ++r) values[k * kRepeat + r] = value;
    }
    store_pack(output + i * kSize, values);
  });
}

// The gradient of such rows: a pack of inputs from kRepeat packs of each row. `sizes` counts packs of the
// input's rows.
template <class T, int kRepeat>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    sum_repeated_kernel(InterpolateShape s, PlaceSizes<uint32_t> sizes, int64_t packs, const T* grad, T* dx) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const uint32_t depth = s.axes[0].output, height = s.axes[1].output, width = s.axes[2].output;
  for_each_index<uint32_t>(packs, [&](uint32_t i) {
    const auto at = Place<uint32_t>::of(i, sizes);
    const uint32_t d1 = s.axes[0].first_output(at.d + 1), h1 = s.axes[1].first_output(at.h + 1);
    Acc sum[kSize] = {};
#pragma unroll 1
    for (uint32_t d = s.axes[0].first_output(at.d); d < d1; ++d) {
#pragma unroll 1
      for (uint32_t h = s.axes[1].first_output(at.h); h < h1; ++h) {
        const T* const row =
            grad + (((at.outer * depth + d) * height + h) * width + at.w * (kSize * kRepeat));
        Acc values[kRepeat][kSize];
#pragma unroll
        for (int r = 0; r < kRepeat; ++r) widen(load_pack(row + r * kSize), values[r]);
#pragma unroll
        for (int k = 0; k < kSize * kRepeat; ++k) sum[k / kRepeat] += values[k / kSize][k % kSize];
      }
    }
    store_pack(dx + i * kSize, sum);
  });
}

// Tensors of fewer elements are counted in 32 bits.
const int64_t kNarrow = unless_in_tests(int64_t{1} << 31, 1 << 9);

// Calls f with the type that counts the elements of both tensors.
template <class F>
void dispatch_count(const InterpolateShape& s, const F& f) {
  if (s.input_elements() < kNarrow && s.output_elements() < kNarrow) return f(uint32_t{});
  return f(uint64_t{});
}

template <class Kernel, class Index, class... Arguments>
void launch_over(Kernel kernel, const InterpolateShape& s, const PlaceSizes<Index>& sizes, int64_t count,
                 cudaStream_t stream, Arguments... arguments) {
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, stream, s, sizes, count, arguments...);
}

template <class T>
bool whole_packs(const InterpolateShape& s, const void* a, const void* b) {
  return s.inner % Pack<T>::kSize == 0 && is_aligned(a) && is_aligned(b);
}

// Whether a row's elements stand twice side by side, in whole packs: of the input, or at least of the output.
template <class T>
bool doubles_rows(const InterpolateShape& s, int64_t row, const void* a, const void* b) {
  return s.inner == 1 && s.axes[2].repeat == 2 && row % Pack<T>::kSize == 0 && is_aligned(a) && is_aligned(b);
}

template <class T, class Index>
void forward(const InterpolateShape& s, const T* x, T* y, cudaStream_t stream) {
  constexpr int kSize = Pack<T>::kSize;
  using Sizes = PlaceSizes<Index>;
  const int64_t count = s.output_elements();
  if constexpr (sizeof(Index) == 4) {
    const int64_t row = s.axes[2].output;
    if (doubles_rows<T>(s, row, y, y)) {
      const Sizes packs = Sizes::of(s.axes[0].output, s.axes[1].output, row / kSize, 1);
      return launch_over(repeat_elements_kernel<T, 2>, s, packs, count / kSize, stream, x, y);
    }
  }
  if (whole_packs<T>(s, x, y)) {
    InterpolateShape packs = s;
    packs.inner /= kSize;
    launch_over(copy_pixels_kernel<uint4, Index>, packs, Sizes::of_output(packs), count / kSize, stream,
                reinterpret_cast<const uint4*>(x), reinterpret_cast<uint4*>(y));
  } else if (count % kSize == 0 && is_aligned(y)) {
    launch_over(collect_packs_kernel<T, Index>, s, Sizes::of_output(s), count / kSize, stream, x, y);
  } else {
    launch_over(copy_pixels_kernel<T, Index>, s, Sizes::of_output(s), count, stream, x, y);
  }
}

Tensor interpolate_nearest_forward(Tensor input, std::vector<int64_t> output_size,
                                   std::vector<double> scale_factors, bool exact, bool channels_last) {
  const char* op = "interpolate_nearest_forward";
  std::vector<int64_t> shape;
  const InterpolateShape s =
      check_interpolate(input, "input", output_size, scale_factors, exact, channels_last, true, op, shape);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.output_elements() == 0) return;
    dispatch_count(s, [&](auto index) {
      forward<T, decltype(index)>(s, data<T>(input), mutable_data<T>(output), device.stream);
    });
  });
  return output;
}

Tensor interpolate_nearest_backward(Tensor grad_output, std::vector<int64_t> input_size,
                                    std::vector<double> scale_factors, bool exact, bool channels_last) {
  const char* op = "interpolate_nearest_backward";
  std::vector<int64_t> shape;
  const InterpolateShape s = check_interpolate(grad_output, "grad_output", input_size, scale_factors, exact,
                                               channels_last, false, op, shape);
  const DeviceScope device(grad_output);
  Tensor grad_input = new_tensor(grad_output, shape, grad_output.scalar_type());
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.input_elements() == 0) return;
    const T* g = data<T>(grad_output);
    T* dx = mutable_data<T>(grad_input);
    dispatch_count(s, [&](auto index) {
      using Index = decltype(index);
      constexpr int kSize = Pack<T>::kSize;
      const int64_t count = s.input_elements();
      using Sizes = PlaceSizes<Index>;
      if constexpr (sizeof(Index) == 4) {
        const int64_t row = s.axes[2].input;
        if (doubles_rows<T>(s, row, g, dx)) {
          const Sizes packs = Sizes::of(s.axes[0].input, s.axes[1].input, row / kSize, 1);
          return launch_over(sum_repeated_kernel<T, 2>, s, packs, count / kSize, device.stream, g, dx);
        }
      }
      const Sizes sizes = Sizes::of_input(s);
      whole_packs<T>(s, g, dx)
          ? launch_over(sum_outputs_kernel<T, Index, kSize>, s, sizes, count / kSize, device.stream, g, dx)
          : launch_over(sum_outputs_kernel<T, Index, 1>, s, sizes, count, device.stream, g, dx);
    });
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("interpolate_nearest_forward", TORCH_BOX(&pyops::cuda::interpolate_nearest_forward));
  m.impl("interpolate_nearest_backward", TORCH_BOX(&pyops::cuda::interpolate_nearest_backward));
}
