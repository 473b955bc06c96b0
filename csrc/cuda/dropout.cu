// Dropout, and bias + activation + dropout + residual in one pass, on CUDA.
//
// The bias's gradient is summed where the gradient is made: by columns where the bias lies along the last
// dimension, by rows where rows of elements share one. Blocks leave partial sums that a second kernel adds up
// in order.
#include <algorithm>

#include "binding/dropout.h"
#include "cuda/device/tensor.cuh"
#include "cuda/dropout.cuh"
#include "cuda/epilogue/fused.cuh"

namespace pyops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnLanes = 32;
constexpr int64_t kPartials = std::min<int64_t>(512, kMaxBlocks);  // blocks that sum a bias's gradient
constexpr int64_t kSmall = int64_t{1} << 31;                       // indices below need no 64-bit division

// The bias of elements of a tensor [outer, channels, inner].
template <class T>
struct ChannelBias {
  using Acc = acc_t<T>;
  const T* bias;  // null: none
  int64_t channels;
  int64_t inner;
  bool small;       // all indices are below kSmall
  bool neighbours;  // a group's elements have neighbouring channels, at a 16-byte boundary
  bool shared;      // a group's elements have one channel

  static ChannelBias of(const T* bias, const ReducedShape& s) {
    const bool aligned = reinterpret_cast<uintptr_t>(bias) % kPackBytes == 0;
    return {bias,
            s.classes,
            s.inner,
            s.rows() * s.classes < kSmall,
            s.inner == 1 && s.classes % kGroup == 0 && aligned,
            s.inner % kGroup == 0};
  }

  __device__ __forceinline__ int64_t divide(int64_t a, int64_t b) const {
    return small ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
  }

  __device__ __forceinline__ void add(int64_t element, Acc (&values)[1]) const {
    if (!bias) return;
    const int64_t row = divide(element, inner);
    values[0] += to_acc(bias[row - divide(row, channels) * channels]);
  }

  __device__ __forceinline__ void add(int64_t element, Acc (&values)[kGroup]) const {
    if (!bias) return;
    const int64_t row = divide(element, inner);
    int64_t channel = row - divide(row, channels) * channels;
    if (neighbours) {
      Acc loaded[kGroup];
      load_group(bias + channel, {0, kGroup}, true, loaded);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += loaded[k];
    } else if (shared) {
      const Acc loaded = to_acc(bias[channel]);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += loaded;
    } else {
      int64_t left = inner - (element - row * inner);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        values[k] += to_acc(bias[channel]);
        if (--left > 0) continue;
        left = inner;
        if (++channel == channels) channel = 0;
      }
    }
  }
};

template <class T, class Activation>
struct Forward {
  using Acc = acc_t<T>;
  static constexpr int kWidth = kGroup;  // elements that a thread takes at once
  const T* input;
  const T* residual;  // null: none
  T* output;
  ChannelBias<T> bias;
  DropoutMask<Acc> mask;
  Activation activation;
  bool aligned;

  __device__ __forceinline__ void group(int64_t element, GroupRange range) const {
    Acc values[kGroup];
    load_group(input + element, range, aligned, values);
    bias.add(element, values);
    activate(activation, values);
    mask.apply(element, values);
    if (residual) {
      Acc added[kGroup];
      load_group(residual + element, range, aligned, added);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) values[k] += added[k];
    }
    store_group(output + element, range, aligned, values);
  }
};

template <class T, class Activation>
struct Backward {
  using Acc = acc_t<T>;
  // The functions that float64 calls leave no registers for a group of elements.
  static constexpr int kWidth = std::is_same_v<Activation, AnyActivation<double>> ? 1 : kGroup;
  const T* grad_output;
  const T* saved;  // null: the activation is the identity
  T* grad_input;   // null: only the bias's gradient is wanted
  ChannelBias<T> bias;
  DropoutMask<Acc> mask;
  Activation activation;
  bool saved_is_output;
  bool aligned;

  __device__ __forceinline__ void group(int64_t element, GroupRange range) const {
    Acc grad[kWidth];
    gradient(element, range, grad, [&](Acc(&values)[kWidth]) { bias.add(element, values); });
  }

  // Writes the group's gradient and leaves it in `grad`, zeros out of range. add_bias(values) adds the bias.
  template <class AddBias>
  __device__ __forceinline__ void gradient(int64_t element, GroupRange range, Acc (&grad)[kGroup],
                                           const AddBias& add_bias) const {
    load_group(grad_output + element, range, aligned, grad);
    mask.apply(element, grad);
    if (saved) {
      Acc values[kGroup];
      load_group(saved + element, range, aligned, values);
      finish(values, grad, add_bias);
    }
    if (grad_input) store_group(grad_input + element, range, aligned, grad);
  }

  // The same for one element anywhere.
  template <class AddBias>
  __device__ __forceinline__ void gradient(int64_t element, GroupRange, Acc (&grad)[1],
                                           const AddBias& add_bias) const {
    grad[0] = to_acc(grad_output[element]);
    mask.apply(element, grad);
    if (saved) {
      Acc values[1] = {to_acc(saved[element])};
      finish(values, grad, add_bias);
    }
    if (grad_input) grad_input[element] = from_acc<T>(grad[0]);
  }

  template <int kCount, class AddBias>
  __device__ __forceinline__ void finish(Acc (&values)[kCount], Acc (&grad)[kCount],
                                         const AddBias& add_bias) const {
    if (saved_is_output) {
      const Acc unscale = mask.unscale();
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] *= unscale;
    } else {
      add_bias(values);
    }
    differentiate(activation, saved_is_output, values, grad);
  }
};

template <class Work>
__global__ void __launch_bounds__(kThreads) group_kernel(Work work, int64_t n) {
  constexpr int kWidth = Work::kWidth;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kWidth;
  int64_t element = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  for (; element < n; element += step) {
    const int64_t left = n - element;
    work.group(element, {0, left < kWidth ? static_cast<int>(left) : kWidth});
  }
}

template <class Work>
void launch_groups(const Work& work, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  constexpr int64_t kPerBlock = int64_t{kThreads} * Work::kWidth;
  const auto blocks = static_cast<unsigned>(std::min((n + kPerBlock - 1) / kPerBlock, kMaxBlocks));
  launch(group_kernel<Work>, blocks, kThreads, 0, stream, work, n);
}

// Adds up the values of the block's threads with the same threadIdx.x % width, a power of two, as a tree; the
// first `width` threads end with the sums. `scratch` has kThreads * kCount elements.
template <int kCount, class Acc>
__device__ __forceinline__ void reduce_across(Acc (&values)[kCount], int width, Acc* scratch) {
  __syncthreads();  // the last reduction's reads
#pragma unroll
  for (int k = 0; k < kCount; ++k) scratch[k * kThreads + threadIdx.x] = values[k];
  for (int half = kThreads / 2; half >= width; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        scratch[k * kThreads + threadIdx.x] += scratch[k * kThreads + threadIdx.x + half];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = scratch[k * kThreads + threadIdx.x];
}

// How [rows, channels] is dealt out: a block takes `lanes` threads' columns by `height` rows.
struct ColumnTiles {
  int64_t rows;
  int64_t channels;
  int lanes;
  int64_t across;  // tiles side by side
  int64_t height;
  int64_t down;  // tiles one below another: partial sums per column

  static ColumnTiles of(int64_t rows, int64_t channels, int width) {
    ColumnTiles t{rows, channels, 1, 1, 1, 1};
    const int64_t threads = (channels + width - 1) / width;
    while (t.lanes < kColumnLanes && t.lanes < threads) t.lanes *= 2;
    t.across = (threads + t.lanes - 1) / t.lanes;
    const int64_t pass = kThreads / t.lanes, most = std::max<int64_t>(1, kPartials / t.across);
    t.down = std::clamp<int64_t>((rows + 4 * pass - 1) / (4 * pass), 1, most);
    t.height = (rows + t.down - 1) / t.down;
    return t;
  }
};

// Backward where element i has channel i % channels. A thread goes down kWidth neighbouring columns: a whole
// group where rows consist of groups.
template <int kWidth, class T, class Activation>
__global__ void __launch_bounds__(kThreads)
    column_kernel(Backward<T, Activation> work, ColumnTiles t, acc_t<T>* partial) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, kThreads * kWidth);
  for (int64_t tile = blockIdx.x; tile < t.across * t.down; tile += gridDim.x) {
    const int64_t down = tile / t.across;
    const int64_t column = ((tile - down * t.across) * t.lanes + threadIdx.x % t.lanes) * kWidth;
    const int64_t bottom = (down + 1) * t.height < t.rows ? (down + 1) * t.height : t.rows;
    Acc sums[kWidth] = {}, bias[kWidth] = {};
    if (column < t.channels) {
      if (work.bias.bias) {
        for (int k = 0; k < kWidth; ++k) bias[k] = to_acc(work.bias.bias[column + k]);
      }
      const auto add_bias = [&](Acc(&values)[kWidth]) {
        for (int k = 0; k < kWidth; ++k) values[k] += bias[k];
      };
      for (int64_t row = down * t.height + threadIdx.x / t.lanes; row < bottom; row += kThreads / t.lanes) {
        Acc grad[kWidth];
        work.gradient(row * t.channels + column, {0, kWidth}, grad, add_bias);
        for (int k = 0; k < kWidth; ++k) sums[k] += grad[k];
      }
    }
    reduce_across(sums, t.lanes, scratch);
    if (threadIdx.x < t.lanes && column < t.channels) {
      for (int k = 0; k < kWidth; ++k) partial[down * t.channels + column + k] = sums[k];
    }
  }
}

// How the rows of [outer, channels, inner] are dealt out: `lanes` threads share a row, or a slice of one; a
// block takes one of `parts` parts of the rows of a channel.
struct RowTiles {
  int64_t outer;
  int64_t channels;
  int64_t inner;
  int lanes;
  int64_t slice;   // groups of a slice
  int64_t slices;  // of a row
  int64_t per_part;
  int64_t parts;

  static RowTiles of(const ReducedShape& s, int width) {
    RowTiles t{s.outer, s.classes, s.inner, 1, 0, 1, 1, 1};
    const int64_t groups = s.inner / width + 2;  // a row may begin and end inside one
    while (t.lanes < kThreads && t.lanes < groups) t.lanes *= 2;
    t.slice = 8 * t.lanes;
    t.slices = (groups + t.slice - 1) / t.slice;
    const int64_t items = s.outer * t.slices, at_once = kThreads / t.lanes;
    const int64_t most = std::max<int64_t>(1, kPartials / s.classes);
    t.parts = std::clamp<int64_t>((items + at_once - 1) / at_once, 1, most);
    t.per_part = (items + t.parts - 1) / t.parts;
    return t;
  }
};

template <class T, class Activation>
__global__ void __launch_bounds__(kThreads)
    row_kernel(Backward<T, Activation> work, RowTiles t, acc_t<T>* partial) {
  using Acc = acc_t<T>;
  constexpr int kWidth = Backward<T, Activation>::kWidth;
  PYOPS_SHARED_ARRAY(Acc, scratch, kThreads);
  const int64_t items = t.outer * t.slices;
  for (int64_t unit = blockIdx.x; unit < t.channels * t.parts; unit += gridDim.x) {
    const int64_t part = unit / t.channels, channel = unit - part * t.channels;
    const Acc bias = work.bias.bias ? to_acc(work.bias.bias[channel]) : Acc(0);
    const auto add_bias = [&](Acc(&values)[kWidth]) {
      for (int k = 0; k < kWidth; ++k) values[k] += bias;
    };
    const int64_t end = (part + 1) * t.per_part < items ? (part + 1) * t.per_part : items;
    Acc sum[1] = {};
    for (int64_t item = part * t.per_part + threadIdx.x / t.lanes; item < end; item += kThreads / t.lanes) {
      const int64_t n = item / t.slices;
      const int64_t start = (n * t.channels + channel) * t.inner, stop = start + t.inner;
      const int64_t first = start / kWidth + (item - n * t.slices) * t.slice;
      for (int64_t g = first + threadIdx.x % t.lanes; g < first + t.slice && g * kWidth < stop;
           g += t.lanes) {
        const int64_t element = g * kWidth;
        const GroupRange range{start > element ? static_cast<int>(start - element) : 0,
                               stop - element < kWidth ? static_cast<int>(stop - element) : kWidth};
        Acc grad[kWidth];
        work.gradient(element, range, grad, add_bias);
        for (int k = 0; k < kWidth; ++k) sum[0] += range.has(k) ? grad[k] : Acc(0);
      }
    }
    reduce_across(sum, 1, scratch);
    if (threadIdx.x == 0) partial[part * t.channels + channel] = sum[0];
  }
}

// total[c] = sum of partial[0 .. parts, c] in a fixed order; a block takes kColumnLanes columns.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const acc_t<T>* partial, int64_t parts, int64_t channels, T* total) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, kThreads);
  for (int64_t tile = blockIdx.x; tile * kColumnLanes < channels; tile += gridDim.x) {
    const int64_t column = tile * kColumnLanes + threadIdx.x % kColumnLanes;
    Acc sum[1] = {};
    for (int64_t p = threadIdx.x / kColumnLanes; p < parts && column < channels;
         p += kThreads / kColumnLanes) {
      sum[0] += partial[p * channels + column];
    }
    reduce_across(sum, kColumnLanes, scratch);
    if (threadIdx.x < kColumnLanes && column < channels) total[column] = from_acc<T>(sum[0]);
  }
}

template <class T, class Activation>
void backward_with_bias(const Backward<T, Activation>& work, const ReducedShape& s, const Tensor& like,
                        T* grad_bias, cudaStream_t stream) {
  using Acc = acc_t<T>;
  if (s.classes == 0) return;
  const ScalarType acc = accumulate_type(like.scalar_type());
  const auto grid = [](int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxBlocks)); };
  constexpr int kWidth = Backward<T, Activation>::kWidth;
  const bool columns = s.inner == 1, groups = columns && s.classes % kWidth == 0;
  const ColumnTiles c = ColumnTiles::of(s.outer, s.classes, groups ? kWidth : 1);
  const RowTiles r = RowTiles::of(s, kWidth);
  const int64_t parts = columns ? c.down : r.parts;
  Tensor partial = new_tensor(like, {parts, s.classes}, acc);
  Acc* sums = mutable_data<Acc>(partial);
  if (groups) {
    launch(column_kernel<kWidth, T, Activation>, grid(c.across * c.down), kThreads, 0, stream, work, c, sums);
  } else if (columns) {
    launch(column_kernel<1, T, Activation>, grid(c.across * c.down), kThreads, 0, stream, work, c, sums);
  } else {
    launch(row_kernel<T, Activation>, grid(r.channels * r.parts), kThreads, 0, stream, work, r, sums);
  }
  launch(merge_kernel<T>, grid((s.classes + kColumnLanes - 1) / kColumnLanes), kThreads, 0, stream, sums,
         parts, s.classes, grad_bias);
}

bool is_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0; });
}

template <class T>
void plain(const Tensor& input, const T* x, T* y, const Tensor& seed, double p, const char* op) {
  using Activation = OneActivation<math::Identity<acc_t<T>>>;
  const ReducedShape s = bias_shape(input, false, 0, op);
  const DeviceScope device(input);
  const Forward<T, Activation> work{
      x,  nullptr,           y, ChannelBias<T>::of(nullptr, s), DropoutMask<acc_t<T>>::of(seed_data(seed), p),
      {}, is_aligned({x, y})};
  launch_groups(work, s.inner, device.stream);
}

Tensor dropout(Tensor input, Tensor seed, double p) {
  const char* op = "dropout";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    plain<T>(input, data<T>(input), mutable_data<T>(output), seed, p, op);
  });
  return output;
}

void dropout_(Tensor input, Tensor seed, double p) {
  const char* op = "dropout_";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    plain<T>(input, data<T>(input), mutable_data<T>(input), seed, p, op);
  });
}

}  // namespace

Tensor bias_activation_dropout(const Tensor& input, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, const std::optional<Tensor>& seed,
                               double p, const math::ActivationParams& params, int64_t dim) {
  const char* op = "bias_activation_dropout_forward";
  const ReducedShape s = check_fused_forward(input, bias, residual, seed, p, params, dim, op);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    with_activation<Acc>(params, [&](const auto& activation) {
      const T *x = data<T>(input), *r = data_or_null<T>(residual);
      T* y = mutable_data<T>(output);
      const Forward<T, std::decay_t<decltype(activation)>> work{x,
                                                                r,
                                                                y,
                                                                ChannelBias<T>::of(data_or_null<T>(bias), s),
                                                                DropoutMask<Acc>::of(seed_data(seed), p),
                                                                activation,
                                                                is_aligned({x, r, y})};
      launch_groups(work, s.rows() * s.classes, device.stream);
    });
  });
  return output;
}

namespace {

// Of the two gradients, those that are needed.
std::tuple<Tensor, Tensor> fused_backward(const Tensor& grad_output, const std::optional<Tensor>& saved,
                                          const std::optional<Tensor>& bias,
                                          const std::optional<Tensor>& seed, double p,
                                          const math::ActivationParams& params, int64_t dim,
                                          bool saved_is_output, bool needs_input, bool needs_bias) {
  const char* op = "bias_activation_dropout_backward";
  const ReducedShape s =
      check_fused_backward(grad_output, saved, bias, seed, p, params, dim, saved_is_output, needs_bias, op);
  const DeviceScope device(grad_output);
  const ScalarType type = grad_output.scalar_type();
  Tensor grad_input =
      new_tensor(grad_output, needs_input ? shape_of(grad_output) : std::vector<int64_t>{0}, type);
  Tensor grad_bias = new_tensor(grad_output, {needs_bias ? s.classes : 0}, type);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    with_activation<Acc>(params, [&](const auto& activation) {
      const T *g = data<T>(grad_output), *kept = data_or_null<T>(saved);
      T* dx = needs_input ? mutable_data<T>(grad_input) : nullptr;
      const Backward<T, std::decay_t<decltype(activation)>> work{g,
                                                                 kept,
                                                                 dx,
                                                                 ChannelBias<T>::of(data_or_null<T>(bias), s),
                                                                 DropoutMask<Acc>::of(seed_data(seed), p),
                                                                 activation,
                                                                 saved_is_output,
                                                                 is_aligned({g, kept, dx})};
      if (needs_bias) {
        backward_with_bias(work, s, grad_output, mutable_data<T>(grad_bias), device.stream);
      } else {
        launch_groups(work, s.rows() * s.classes, device.stream);
      }
    });
  });
  return {grad_input, grad_bias};
}

}  // namespace

std::tuple<Tensor, Tensor> bias_activation_dropout_gradients(
    const Tensor& grad_output, const std::optional<Tensor>& saved, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& seed, double p, const math::ActivationParams& params, int64_t dim,
    bool saved_is_output, bool needs_bias) {
  return fused_backward(grad_output, saved, bias, seed, p, params, dim, saved_is_output, true, needs_bias);
}

Tensor bias_gradient(const Tensor& grad_output, int64_t dim) {
  return std::get<1>(
      fused_backward(grad_output, std::nullopt, std::nullopt, std::nullopt, 0.0, {}, dim, true, false, true));
}

namespace {

Tensor bias_activation_dropout_forward(Tensor input, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, std::optional<Tensor> seed, double p,
                                       int64_t kind, double alpha, double beta, int64_t dim) {
  return bias_activation_dropout(input, bias, residual, seed, p, {kind, alpha, beta}, dim);
}

std::tuple<Tensor, Tensor> bias_activation_dropout_backward(
    Tensor grad_output, std::optional<Tensor> saved, std::optional<Tensor> bias, std::optional<Tensor> seed,
    double p, int64_t kind, double alpha, double beta, int64_t dim, bool saved_is_output, bool needs_bias) {
  return bias_activation_dropout_gradients(grad_output, saved, bias, seed, p, {kind, alpha, beta}, dim,
                                           saved_is_output, needs_bias);
}

}  // namespace

}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("dropout", TORCH_BOX(&pyops::cuda::dropout));
  m.impl("dropout_", TORCH_BOX(&pyops::cuda::dropout_));
  m.impl("bias_activation_dropout_forward", TORCH_BOX(&pyops::cuda::bias_activation_dropout_forward));
  m.impl("bias_activation_dropout_backward", TORCH_BOX(&pyops::cuda::bias_activation_dropout_backward));
}
