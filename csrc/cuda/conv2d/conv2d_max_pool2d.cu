// Convolution, bias, activation and max pooling in one, on CUDA.
//
// A tile of the convolution's product stands for a patch of pixels: those of some whole pooling windows. Its
// sums go to shared memory and are pooled from there, so the convolution's output is never written. Where
// windows overlap, patches do, too. Groups of few channels, and windows that no patch holds, are convolved
// and pooled element by element.
#include "binding/conv2d_max_pool2d.h"
#include "cuda/conv2d/direct.cuh"
#include "cuda/device/elementwise.cuh"
#include "cuda/dropout.cuh"
#include "cuda/pooling/pooling.cuh"

namespace pyops::cuda {
namespace {

// What becomes of the convolution's sums, and where. Null: not there, or not wanted.
template <class T>
struct PoolEpilogue {
  const T* bias;
  T* output;
  uint8_t* argmax;
  T* saved;  // the activation's input at the maximum
  AnyActivation<acc_t<T>> activation;
  Axis height;
  Axis width;
  ImageStrides target;
  bool channels_inner;
  bool packs;  // 16 bytes of neighbouring channels can be written at once
};

// The maximum of one window so far, for kSize channels.
template <class T, int kSize>
struct WindowMaximum {
  using Acc = acc_t<T>;
  Acc maximum[kSize];
  Acc input[kSize];  // the activation's, there
  int position[kSize];

  // `first` is the position of the window's first element.
  explicit __device__ __forceinline__ WindowMaximum(int first) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      maximum[k] = input[k] = -math::infinity<Acc>();
      position[k] = first;
    }
  }

  __device__ __forceinline__ void take(const PoolEpilogue<T>& epilogue, const Acc (&sum)[kSize], int at) {
    Acc value[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k) value[k] = sum[k];
    if (!epilogue.activation.params.is(math::ActivationKind::kIdentity)) activate(epilogue.activation, value);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (!math::replaces_maximum(value[k], maximum[k])) continue;
      maximum[k] = value[k];
      input[k] = sum[k];
      position[k] = at;
    }
  }

  // Elements `at`, at + stride, ...
  __device__ __forceinline__ void store(const PoolEpilogue<T>& epilogue, int64_t at, int count) {
    const int64_t stride = epilogue.target.channel;
    const bool relu = epilogue.activation.params.is(math::ActivationKind::kRelu);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (relu && maximum[k] <= Acc(0)) position[k] = static_cast<int>(kNoGradient);
    }
    if constexpr (kSize == kChunk<T>) {
      if (epilogue.packs && count == kSize) {
        store_pack(epilogue.output + at, maximum);
        if (epilogue.argmax) store_positions(epilogue.argmax + at, position);
        if (epilogue.saved) store_pack(epilogue.saved + at, input);
        return;
      }
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (k >= count) continue;
      epilogue.output[at + k * stride] = from_acc<T>(maximum[k]);
      if (epilogue.argmax) epilogue.argmax[at + k * stride] = static_cast<uint8_t>(position[k]);
      if (epilogue.saved) epilogue.saved[at + k * stride] = from_acc<T>(input[k]);
    }
  }
};

// Pools window (row, column) of `image`: load(y, x, sum) gives the convolution's sums at a pixel inside.
template <class T, int kSize, class Load>
__device__ __forceinline__ void pool_window(const PoolEpilogue<T>& epilogue, int64_t image, int row,
                                            int column, int channel, int count, const Load& load) {
  using Acc = acc_t<T>;
  const Axis &height = epilogue.height, &width = epilogue.width;
  const AxisRange down = height.taps(row), along = width.taps(column);
  const bool empty = down.first >= down.end || along.first >= along.end;
  WindowMaximum<T, kSize> window(empty ? static_cast<int>(kNoGradient)
                                       : down.first * width.kernel + along.first);
  Acc bias[kSize] = {};
  if (epilogue.bias) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) bias[k] = k < count ? to_acc(epilogue.bias[channel + k]) : Acc(0);
  }
#pragma unroll 1
  for (int i = down.first; i < down.end; ++i) {
#pragma unroll 1
    for (int j = along.first; j < along.end; ++j) {
      Acc sum[kSize];
      load(height.start(row) + i * height.dilation, width.start(column) + j * width.dilation, sum);
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] += bias[k];
      window.take(epilogue, sum, i * width.kernel + j);
    }
  }
  const ImageStrides& to = epilogue.target;
  window.store(epilogue, image * to.image + row * to.row + column * to.column + channel * to.channel, count);
}

// How windows are dealt out to tiles.
struct PoolPatches {
  int windows_down;  // of a patch
  int windows_across;
  int pixels_down;
  int pixels_across;
  int patches_down;  // of an image
  int patches_across;
  Divisor by_pixels_across;
};

// The pixels of a patch, which may begin before the image and end behind it.
struct PatchPixels {
  const PoolPatches& patches;
  int64_t image;
  int top;
  int left;
  int height;
  int width;

  __device__ __forceinline__ bool find(int row, ConvPixel& at) const {
    const int down = patches.by_pixels_across.divide(row), across = row - down * patches.pixels_across;
    at = {image, top + down, left + across};
    return down < patches.pixels_down && static_cast<unsigned>(at.row) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(at.column) < static_cast<unsigned>(width);
  }
};

template <class T, class TileA, class TileB, class Product, bool kPacks>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv2d_pool_kernel(const __grid_constant__ Correlation c, const __grid_constant__ ConvSource<T> source,
                       const __grid_constant__ Divisor by_channels,
                       const __grid_constant__ PackedWeights<T> weights,
                       const __grid_constant__ PoolPatches patches,
                       const __grid_constant__ PoolEpilogue<T> epilogue) {
  using Acc = acc_t<T>;
  using Band = ConvBand<Acc, TileA, TileB, TileA::kExtent>;
  PYOPS_DYNAMIC_SHARED(shared);
  const int tiles_across = weights.padded_outputs / TileB::kExtent;
  int rest = static_cast<int>(blockIdx.x) / tiles_across;
  const int first_output = (static_cast<int>(blockIdx.x) - rest * tiles_across) * TileB::kExtent;
  const int across = rest % patches.patches_across;
  rest /= patches.patches_across;
  const int down = rest % patches.patches_down;
  rest /= patches.patches_down;
  const int group = rest % c.groups;
  const int64_t image = rest / c.groups;
  const int first_row = down * patches.windows_down, first_column = across * patches.windows_across;
  const ConvPhase &h = c.down[0], &w = c.across[0];
  const int top = epilogue.height.start(first_row), left = epilogue.width.start(first_column);

  SourceLoader<T, TileA, kPacks> a(c, h, w, source, by_channels, group,
                                   PatchPixels{patches, image, top, left, h.count, w.count});
  const int64_t row = static_cast<int64_t>(group) * weights.padded_outputs + first_output;
  PackedLoader<T, TileB> b(weights.data + row * weights.padded_depth, weights.padded_depth);
  Product product;
  sum_products<TileA, TileB>(shared, a.steps(), product, a, b);

  Band band(shared);
  band.take(product, 0);
  __syncthreads();
  constexpr int kGroups = TileB::kExtent / kChunk<T>;
  const int windows = patches.windows_down * patches.windows_across;
  for (int i = threadIdx.x; i < windows * kGroups; i += kConvThreads) {
    const int window = epilogue.channels_inner ? i / kGroups : i % windows;
    const int column = (epilogue.channels_inner ? i % kGroups : i / windows) * kChunk<T>;
    const int window_down = window / patches.windows_across;
    const int y = first_row + window_down, x = first_column + window - window_down * patches.windows_across;
    const int count = math::smaller(kChunk<T>, c.outputs - first_output - column);
    if (y >= epilogue.height.out || x >= epilogue.width.out || count <= 0) continue;
    pool_window<T, kChunk<T>>(epilogue, image, y, x, group * c.outputs + first_output + column, count,
                              [&](int pixel_y, int pixel_x, Acc(&sum)[kChunk<T>]) {
                                const int pixel = (pixel_y - top) * patches.pixels_across + pixel_x - left;
                                band.load(pixel, column, sum);
                              });
  }
}

template <class T>
__global__ void __launch_bounds__(kDirectThreads, 2)
    conv2d_direct_pool_kernel(const __grid_constant__ Correlation c,
                              const __grid_constant__ ConvSource<T> source, DirectWeights shape,
                              const T* weights, int64_t windows,
                              const __grid_constant__ PoolEpilogue<T> epilogue) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= windows * shape.channels) return;
  const DirectItem item = DirectItem::of(index, windows, shape.channels, 1, epilogue.channels_inner);
  const ConvPixel at = ConvPixel::of(item.pixel, epilogue.height.out, epilogue.width.out);
  const int channel = static_cast<int>(item.channel);
  pool_window<T, 1>(epilogue, at.image, at.row, at.column, channel, 1, [&](int y, int x, acc_t<T>(&sum)[1]) {
    sum[0] = 0;
    conv2d_window_sum(c, c.down[0], c.across[0], source, shape, weights, ConvPixel{at.image, y, x}, channel,
                      sum);
  });
}

template <class T>
class PooledConvolution {
 public:
  PooledConvolution(const Conv2dShape& s, const Windows& windows, const Tensor& input, const Tensor& weight,
                    const PoolEpilogue<T>& epilogue, cudaStream_t stream)
      : s_(s), windows_(windows), input_(input), weight_(weight), epilogue_(epilogue), stream_(stream) {
    const math::CorrelationAxis h = math::forward_axis(s.height), w = math::forward_axis(s.width);
    c_ = conv_correlation(s, h, w, s.out_channels / s.groups, epilogue.target);
    c_.phases_down = c_.phases_across = 1;
    c_.down[0] = ConvPhase::of(h);
    c_.across[0] = ConvPhase::of(w);
  }

  void run() {
    const bool tiled = !conv2d_is_direct(s_) && choose_patches(sizeof(T) == 8 ? 64 : 128);
    const ConvOperand<T> operand = conv_operand<T>(input_, is_channels_last(input_), s_.groups,
                                                   !tiled || conv2d_gathers<T>(s_), stream_);
    if (!tiled) {
      run_direct(operand.source);
    } else if constexpr (sizeof(T) == 8) {
      launch_tiles<Fma, 64, true>(operand.source);
    } else if constexpr (sizeof(T) == 4) {
      conv2d_allows_tf32() ? launch_product<TensorCores>(operand.source)
                           : launch_product<Fma>(operand.source);
    } else {
      launch_product<TensorCores>(operand.source);
    }
  }

 private:
  // The patch of at most `pixels` pixels with the most windows; false if there is none.
  bool choose_patches(int64_t pixels) {
    const math::SlidingAxis &h = windows_.height(), &w = windows_.width();
    const int64_t extent_down = (h.kernel - 1) * h.dilation + 1,
                  extent_across = (w.kernel - 1) * w.dilation + 1;
    int64_t best = 0;
    for (int64_t down = 1; down <= h.out; ++down) {
      const int64_t height = down == 1 ? extent_down : (down - 1) * h.stride + extent_down;
      const int64_t room = pixels / height - extent_across;
      if (room < 0) break;
      const int64_t across = std::min(w.out, w.out == 1 ? 1 : room / w.stride + 1);
      if (down * across <= best) continue;
      best = down * across;
      const int64_t width = across == 1 ? extent_across : (across - 1) * w.stride + extent_across;
      patches_ = {static_cast<int>(down),
                  static_cast<int>(across),
                  static_cast<int>(height),
                  static_cast<int>(width),
                  static_cast<int>(ceil_div(h.out, down)),
                  static_cast<int>(ceil_div(w.out, across)),
                  Divisor::of(static_cast<int>(width))};
    }
    return best > 0;
  }

  template <template <class, class, class> class Product>
  void launch_product(const ConvSource<T>& source) {
    source.packs ? launch_tiles<Product, 128, true>(source) : launch_tiles<Product, 128, false>(source);
  }

  template <template <class, class, class> class Product, int kTileRows, bool kPacks>
  void launch_tiles(const ConvSource<T>& source) {
    using TileA = DepthInner<T, kTileRows>;
    using TileB = DepthInner<T, 64>;
    constexpr int kBytes =
        std::max(kPipelineBytes<TileA, TileB>, int(ConvBand<acc_t<T>, TileA, TileB, kTileRows>::kBytes));
    const PackedOperand<T> packed =
        conv_weights<T>(c_, source, weight_, strides(), s_.in_channels / s_.groups, TileB::kExtent, stream_);
    const int64_t blocks = s_.images * s_.groups * patches_.patches_down * patches_.patches_across *
                           (packed.weights.padded_outputs / TileB::kExtent);
    STD_TORCH_CHECK(blocks < (int64_t{1} << 31),
                    "conv2d_max_pool2d_forward: the output is too large: ", blocks, " tiles");
    epilogue_.packs = epilogue_.packs && c_.outputs % kChunk<T> == 0;
    launch_large(conv2d_pool_kernel<T, TileA, TileB, Product<T, TileA, TileB>, kPacks>,
                 static_cast<unsigned>(blocks), kConvThreads, kBytes, stream_, c_, source,
                 Divisor::of(source.channels), packed.weights, patches_, epilogue_);
  }

  void run_direct(const ConvSource<T>& source) {
    const DirectOperand<T> packed =
        direct_weights<T>(c_, weight_, strides(), s_.in_channels / s_.groups, stream_);
    const int64_t windows = s_.images * windows_.height().out * windows_.width().out;
    const int64_t blocks = ceil_div(windows * s_.out_channels, kDirectThreads);
    STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "conv2d_max_pool2d_forward: the output is too large");
    launch(conv2d_direct_pool_kernel<T>, static_cast<unsigned>(blocks), kDirectThreads, 0, stream_, c_,
           source, packed.shape, data<T>(packed.memory), windows, epilogue_);
  }

  WeightStrides strides() const { return weight_strides(s_, is_channels_last(weight_), false); }

  const Conv2dShape& s_;
  const Windows& windows_;
  const Tensor& input_;
  const Tensor& weight_;
  PoolEpilogue<T> epilogue_;
  cudaStream_t stream_;
  Correlation c_;
  PoolPatches patches_{};
};

std::tuple<Tensor, Tensor, Tensor> conv2d_max_pool2d_forward(
    Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
    int64_t groups, int64_t kind, double alpha, double beta, Sizes pool_kernel, Sizes pool_stride,
    Sizes pool_padding, Sizes pool_dilation, bool ceil_mode, bool save_argmax,
    bool save_input_of_activation) {
  const char* op = "conv2d_max_pool2d_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  check_bias(bias, op, input, shape);
  check_narrow(shape.height, op);
  check_narrow(shape.width, op);
  const Windows windows = check_pool({shape.height.output(), shape.width.output()}, pool_kernel, pool_stride,
                                     pool_padding, pool_dilation, ceil_mode, op);
  const int64_t height = windows.height().out, width = windows.width().out;
  const DeviceScope device(input);
  const auto image = [&](bool wanted, ScalarType type) {
    return wanted ? new_image(input, {shape.images, shape.out_channels, height, width}, shape.channels_last,
                              type)
                  : new_tensor(input, {0}, type);
  };
  Tensor output = image(true, input.scalar_type());
  Tensor argmax = image(save_argmax, ScalarType::Byte);
  Tensor saved = image(save_input_of_activation, input.scalar_type());
  if (output.numel() == 0) return {output, argmax, saved};
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    PoolEpilogue<T> epilogue{};
    epilogue.bias = data_or_null<T>(bias);
    epilogue.output = mutable_data<T>(output);
    epilogue.argmax = save_argmax ? mutable_data<uint8_t>(argmax) : nullptr;
    epilogue.saved = save_input_of_activation ? mutable_data<T>(saved) : nullptr;
    epilogue.activation = {params};
    epilogue.height = narrow(windows.height(), op);
    epilogue.width = narrow(windows.width(), op);
    epilogue.target = ImageStrides::of(shape.out_channels, height, width, shape.channels_last);
    epilogue.channels_inner = epilogue.target.channel == 1;
    epilogue.packs = epilogue.channels_inner && is_aligned(epilogue.output, kPackBytes) &&
                     is_aligned(epilogue.argmax, 8) && is_aligned(epilogue.saved, kPackBytes);
    PooledConvolution<T>(shape, windows, input, weight, epilogue, device.stream).run();
  });
  return {output, argmax, saved};
}

// What a pooled element passes on: nothing where argmax says so, else its gradient times the activation's
// derivative. kDerivative: there is one to form.
template <class T, bool kDerivative>
__global__ void __launch_bounds__(kElementwiseThreads)
    passing_gradient_kernel(int64_t n, AnyActivation<acc_t<T>> activation, bool saved_is_output,
                            const T* grad, const uint8_t* argmax, const T* saved, T* to) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    acc_t<T> value[1] = {to_acc(grad[i])};
    if constexpr (kDerivative) {
      const acc_t<T> kept[1] = {to_acc(saved[i])};
      differentiate(activation, saved_is_output, kept, value);
    }
    to[i] = argmax[i] == kNoGradient ? T{} : from_acc<T>(value[0]);
  }
}

std::tuple<Tensor, Tensor> conv2d_max_pool2d_backward(Tensor grad_output, Tensor argmax,
                                                      std::optional<Tensor> saved, Sizes conv_size,
                                                      int64_t kind, double alpha, double beta,
                                                      bool saved_is_output, Sizes pool_kernel,
                                                      Sizes pool_stride, Sizes pool_padding,
                                                      Sizes pool_dilation, bool ceil_mode, bool needs_bias) {
  const char* op = "conv2d_max_pool2d_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const Windows windows =
      check_pool(conv_size, pool_kernel, pool_stride, pool_padding, pool_dilation, ceil_mode, op);
  const PooledGradient pooled = check_pooled_gradient(grad_output, argmax, saved, params, windows, op);
  const DeviceScope device(grad_output);
  const bool last = pooled.channels_last, derivative = !keeps_nothing(params);
  const ScalarType type = grad_output.scalar_type();
  // Positions select what they pass by themselves; the bias's sums need it selected.
  Tensor gradient = grad_output;
  if (derivative || needs_bias) {
    gradient = new_image(grad_output, shape_of(grad_output), last, type);
    dispatch_floating(type, op, [&](auto tag) {
      using T = decltype(tag);
      const int64_t n = gradient.numel();
      if (n == 0) return;
      launch(derivative ? passing_gradient_kernel<T, true> : passing_gradient_kernel<T, false>,
             conv_grid(ceil_div(n, kElementwiseThreads)), kElementwiseThreads, 0, device.stream, n,
             AnyActivation<acc_t<T>>{params}, saved_is_output, data<T>(grad_output), data<uint8_t>(argmax),
             data_or_null<T>(saved), mutable_data<T>(gradient));
    });
  }
  Tensor grad_conv = new_image(grad_output, pooled.conv_shape(), last, type);
  max_pool_gradient(windows, windows.input_of(pooled.image()), gradient, argmax, grad_conv, device.stream,
                    op);
  Tensor grad_bias = needs_bias ? bias_gradient(contiguous_view(gradient, last), channel_dim(last))
                                : new_tensor(grad_output, {0}, type);
  return {grad_conv, grad_bias};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("conv2d_max_pool2d_forward", TORCH_BOX(&pyops::cuda::conv2d_max_pool2d_forward));
  m.impl("conv2d_max_pool2d_backward", TORCH_BOX(&pyops::cuda::conv2d_max_pool2d_backward));
}
