// Convolution, bias, activation and max pooling in one, on CUDA.
//
// A tile of the convolution's product stands for a patch of pixels: those of some whole pooling windows. Its
// sums go to shared memory and are pooled from there, so the convolution's output is never written. Where
// windows overlap, so do patches. Groups of few channels, and windows too large for a patch, are convolved
// and pooled window by window.
#include "binding/conv2d_max_pool2d.h"
#include "cuda/conv2d/algorithms.cuh"
#include "cuda/conv2d/images.cuh"
#include "cuda/conv2d/pool.cuh"
#include "cuda/device/elementwise.cuh"
#include "cuda/dropout.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kForward = "conv2d_max_pool2d_forward";

// The patch of at most `pixels` pixels with the most windows; none where no window fits.
std::optional<PoolPatches> choose_patches(const Windows& windows, int64_t pixels) {
  const math::SlidingAxis &h = windows.height(), &w = windows.width();
  const int64_t extent_down = (h.kernel - 1) * h.dilation + 1,
                extent_across = (w.kernel - 1) * w.dilation + 1;
  std::optional<PoolPatches> best;
  int64_t most = 0;
  for (int64_t down = 1; down <= h.out; ++down) {
    const int64_t height = down == 1 ? extent_down : (down - 1) * h.stride + extent_down;
    const int64_t room = pixels / height - extent_across;
    if (room < 0) break;
    const int64_t across = std::min(w.out, w.out == 1 ? 1 : room / w.stride + 1);
    if (down * across <= most) continue;
    most = down * across;
    const int64_t width = across == 1 ? extent_across : (across - 1) * w.stride + extent_across;
    best = {static_cast<int>(down),
            static_cast<int>(across),
            static_cast<int>(height),
            static_cast<int>(width),
            static_cast<int>(ceil_div(h.out, down)),
            static_cast<int>(ceil_div(w.out, across)),
            Divisor::of(static_cast<int>(width))};
  }
  return best;
}

template <class T>
constexpr int kPatchPixels = sizeof(T) == 8 ? 64 : 128;  // the rows of a tile

template <class T>
struct PooledProblem {
  const Conv2dShape& shape;
  const Windows& windows;
  const Tensor& input;
  const Tensor& weight;
  PoolEpilogue<T> epilogue;
  cudaStream_t stream;
  std::optional<PoolPatches> patches = choose_patches(windows, kPatchPixels<T>);

  Correlation correlation() const {
    const math::CorrelationAxis h = math::forward_axis(shape.height), w = math::forward_axis(shape.width);
    Correlation c = conv_correlation(shape, h, w, shape.out_channels / shape.groups, epilogue.target);
    c.phases_down = c.phases_across = 1;
    c.down[0] = ConvPhase::of(h);
    c.across[0] = ConvPhase::of(w);
    return c;
  }
  int64_t inputs() const { return shape.in_channels / shape.groups; }
  WeightStrides strides() const { return weight_strides(shape, is_channels_last(weight), false); }
};

template <template <class, class, class> class Product, bool kPacks, class T>
void launch_tiles(const PooledProblem<T>& p, const ConvSource<T>& source) {
  using TileA = DepthInner<T, kPatchPixels<T>>;
  using TileB = DepthInner<T, 64>;
  constexpr int kBytes =
      std::max(kPipelineBytes<TileA, TileB>, int(ConvBand<acc_t<T>, TileA, TileB, TileA::kExtent>::kBytes));
  const Correlation c = p.correlation();
  const PackedOperand<T> packed =
      conv_weights<T>(c, source, p.weight, p.strides(), p.inputs(), TileB::kExtent, p.stream);
  const int64_t blocks = p.shape.images * p.shape.groups * p.patches->patches_down *
                         p.patches->patches_across * (packed.weights.padded_outputs / TileB::kExtent);
  PYOPS_CHECK(blocks < (int64_t{1} << 31), kForward, ": the output is too large: ", blocks, " tiles");
  PoolEpilogue<T> epilogue = p.epilogue;
  epilogue.packs = epilogue.packs && c.outputs % kChunk<T> == 0;
  launch_large(conv2d_pool_kernel<T, TileA, TileB, Product<T, TileA, TileB>, kPacks>,
               static_cast<unsigned>(blocks), kConvThreads, kBytes, p.stream, c, source,
               Divisor::of(source.channels), packed.weights, *p.patches, epilogue);
}

template <template <class, class, class> class Product, class T>
void launch_product(const PooledProblem<T>& p, const ConvSource<T>& source) {
  source.packs ? launch_tiles<Product, true>(p, source) : launch_tiles<Product, false>(p, source);
}

template <class T>
void implicit_gemm_pool(const PooledProblem<T>& p) {
  const ConvOperand<T> operand = input_operand<T>(p.shape, p.input, p.stream);
  if constexpr (sizeof(T) == 8) {
    launch_tiles<Fma, true>(p, operand.source);
  } else if constexpr (sizeof(T) == 4) {
    conv2d_allows_tf32() ? launch_product<TensorCores>(p, operand.source)
                         : launch_product<Fma>(p, operand.source);
  } else {
    launch_product<TensorCores>(p, operand.source);
  }
}

template <class T>
void few_channels_pool(const PooledProblem<T>& p) {
  const ConvOperand<T> operand =
      conv_operand<T>(p.input, is_channels_last(p.input), p.shape.groups, true, p.stream);
  const Correlation c = p.correlation();
  const FewChannelsOperand<T> packed =
      few_channels_weights<T>(c, p.weight, p.strides(), p.inputs(), p.stream);
  const int64_t windows = p.shape.images * p.windows.height().out * p.windows.width().out;
  const int64_t blocks = ceil_div(windows * p.shape.out_channels, kFewChannelsThreads);
  PYOPS_CHECK(blocks < (int64_t{1} << 31), kForward, ": the output is too large");
  launch(conv2d_few_channels_pool_kernel<T>, static_cast<unsigned>(blocks), kFewChannelsThreads, 0, p.stream,
         c, operand.source, packed.shape, data<T>(packed.memory), windows, p.epilogue);
}

// few_channels also serves windows that are too large for any patch.
template <class T>
constexpr Algorithm<PooledProblem<T>> kPooledCorrelations[] = {
    {"few_channels", [](const PooledProblem<T>& p) { return has_few_channels(p.shape) || !p.patches; },
     few_channels_pool},
    {"implicit_gemm", always_suits, implicit_gemm_pool},
};

std::tuple<Tensor, Tensor, Tensor> conv2d_max_pool2d_forward(
    Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
    int64_t groups, int64_t kind, double alpha, double beta, Sizes pool_kernel, Sizes pool_stride,
    Sizes pool_padding, Sizes pool_dilation, bool ceil_mode, bool save_argmax,
    bool save_input_of_activation) {
  const char* op = kForward;
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
  check_bias(bias, op, input, shape);
  check_narrow(shape, op);
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
    const PooledProblem<T> problem{shape, windows, input, weight, epilogue, device.stream};
    algorithm_for(kPooledCorrelations<T>, problem).run(problem);
  });
  return {output, argmax, saved};
}

// The gradient that a pooled element passes on: none where argmax says so, otherwise its own times the
// activation's derivative. kDerivative: the derivative has to be formed.
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
  // max_pool_gradient leaves out by itself what is not passed on; the bias's sums cannot.
  Tensor gradient = grad_output;
  if (derivative || needs_bias) {
    gradient = new_image(grad_output, shape_of(grad_output), last, type);
    dispatch_floating(type, op, [&](auto tag) {
      using T = decltype(tag);
      const int64_t n = gradient.numel();
      if (n == 0) return;
      launch(derivative ? passing_gradient_kernel<T, true> : passing_gradient_kernel<T, false>,
             blocks_for(n, kElementwiseThreads), kElementwiseThreads, 0, device.stream, n,
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
