// Output and data gradient of the convolution on CUDA: the launches of correlate.cuh.
#include "cuda/conv2d/conv2d.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kOp = "conv2d";

template <class T>
class Correlate {
 public:
  Correlate(const Conv2dShape& s, const std::vector<math::CorrelationAxis>& h,
            const std::vector<math::CorrelationAxis>& w, int64_t outputs, const ConvSource<T>& source,
            const ImageStrides& target, const ConvEpilogue<T>& epilogue, cudaStream_t stream)
      : h_(h), w_(w), source_(source), epilogue_(epilogue), stream_(stream), direct_(conv2d_is_direct(s)) {
    c_ = conv_correlation(s, h[0], w[0], outputs, target);
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0; };
    epilogue_.channels_inner = target.channel == 1;
    const int64_t neighbours = direct_ ? s.groups * outputs : outputs;
    epilogue_.packs = target.channel == 1 && neighbours % kChunk<T> == 0 && aligned(epilogue.output) &&
                      aligned(epilogue.residual) && aligned(epilogue.saved);
  }

  // `channels` of the source have weights; those beyond, if any, are zeros.
  void run(const Tensor& weight, const WeightStrides& strides, int64_t channels) {
    for (size_t i = 0; i < h_.size(); i += kMaxPhases) {
      for (size_t j = 0; j < w_.size(); j += kMaxPhases) {
        c_.phases_down = take(h_, i, c_.down);
        c_.phases_across = take(w_, j, c_.across);
        if (direct_) {
          conv2d_direct<T>(c_, source_, weight, strides, channels, epilogue_, stream_);
        } else {
          run_phases(weight, strides, channels);
        }
      }
    }
  }

 private:
  static int take(const std::vector<math::CorrelationAxis>& axes, size_t first, ConvPhase* phases) {
    const size_t count = std::min<size_t>(kMaxPhases, axes.size() - first);
    for (size_t p = 0; p < count; ++p) phases[p] = ConvPhase::of(axes[first + p]);
    return static_cast<int>(count);
  }

  static int64_t most(int count, const ConvPhase* phases) {
    int64_t result = 0;
    for (int p = 0; p < count; ++p) result = std::max<int64_t>(result, phases[p].count);
    return result;
  }

  void run_phases(const Tensor& weight, const WeightStrides& strides, int64_t channels) {
    const int64_t pixels = c_.images * most(c_.phases_down, c_.down) * most(c_.phases_across, c_.across);
    if (pixels == 0) return;
    const int64_t units = int64_t{c_.phases_down} * c_.phases_across * c_.groups;
    const bool tensor_cores = sizeof(T) == 2 || (sizeof(T) == 4 && conv2d_allows_tf32());
    // Wide tiles read the source less often; on the ordinary units that is not what takes the time.
    const bool wide = tensor_cores && c_.outputs > 64 && source_.packs &&
                      ceil_div(pixels, 128) * ceil_div(c_.outputs, 128) * units >= kWholeGpu;
    const PackedOperand<T> packed =
        conv_weights<T>(c_, source_, weight, strides, channels, wide ? 128 : 64, stream_);
    const PackedWeights<T>& weights = packed.weights;
    if constexpr (sizeof(T) == 8) {
      launch_tiles<Fma, 64, 64, true>(weights, pixels, units);
    } else {
      if (wide) return launch_tiles<TensorCores, 128, 128, true>(weights, pixels, units);
      if (tensor_cores) return launch_narrow<TensorCores>(weights, pixels, units);
      if constexpr (sizeof(T) == 4) launch_narrow<Fma>(weights, pixels, units);
    }
  }

  template <template <class, class, class> class Product>
  void launch_narrow(const PackedWeights<T>& weights, int64_t pixels, int64_t units) {
    source_.packs ? launch_tiles<Product, 128, 64, true>(weights, pixels, units)
                  : launch_tiles<Product, 128, 64, false>(weights, pixels, units);
  }

  template <template <class, class, class> class Product, int kTileRows, int kTileColumns, bool kPacks>
  void launch_tiles(const PackedWeights<T>& weights, int64_t pixels, int64_t units) {
    using TileA = DepthInner<T, kTileRows>;
    using TileB = DepthInner<T, kTileColumns>;
    constexpr int kBytes =
        std::max(kPipelineBytes<TileA, TileB>, int(ConvBand<acc_t<T>, TileA, TileB>::kBytes));
    const int64_t tiles_down = ceil_div(pixels, kTileRows);
    const int64_t blocks = tiles_down * units * (weights.padded_outputs / kTileColumns);
    STD_TORCH_CHECK(blocks < (int64_t{1} << 31), kOp, ": the output is too large: ", blocks, " tiles");
    launch_large(conv2d_correlate_kernel<T, TileA, TileB, Product<T, TileA, TileB>, kPacks>,
                 static_cast<unsigned>(blocks), kConvThreads, kBytes, stream_, c_, source_,
                 Divisor::of(source_.channels), weights, tiles_down, epilogue_);
  }

  const std::vector<math::CorrelationAxis>& h_;
  const std::vector<math::CorrelationAxis>& w_;
  const ConvSource<T>& source_;
  ConvEpilogue<T> epilogue_;
  cudaStream_t stream_;
  bool direct_;
  Correlation c_;
};

}  // namespace

template <class T>
void conv2d_output(const Conv2dShape& s, const Tensor& input, const Tensor& weight, ConvEpilogue<T> epilogue,
                   cudaStream_t stream) {
  check_narrow(s.height, kOp);
  check_narrow(s.width, kOp);
  const std::vector<math::CorrelationAxis> h{math::forward_axis(s.height)}, w{math::forward_axis(s.width)};
  const ConvOperand<T> operand =
      conv_operand<T>(input, is_channels_last(input), s.groups, conv2d_gathers<T>(s), stream);
  const ImageStrides target =
      ImageStrides::of(s.out_channels, s.height.output(), s.width.output(), s.channels_last);
  Correlate<T>(s, h, w, s.out_channels / s.groups, operand.source, target, epilogue, stream)
      .run(weight, weight_strides(s, is_channels_last(weight), false), s.in_channels / s.groups);
}

template <class T>
void conv2d_input_gradient(const Conv2dShape& s, const ConvOperand<T>& grad, const Tensor& weight,
                           const Tensor& grad_input, cudaStream_t stream) {
  check_narrow(s.height, kOp);
  check_narrow(s.width, kOp);
  const std::vector<math::CorrelationAxis> h = math::gradient_axes(s.height),
                                           w = math::gradient_axes(s.width);
  if (h.empty() || w.empty()) return;
  const ImageStrides target =
      ImageStrides::of(s.in_channels, s.height.input, s.width.input, is_channels_last(grad_input));
  ConvEpilogue<T> epilogue{};
  epilogue.output = mutable_data<T>(grad_input);
  Correlate<T>(s, h, w, s.in_channels / s.groups, grad.source, target, epilogue, stream)
      .run(weight, weight_strides(s, is_channels_last(weight), true), s.out_channels / s.groups);
}

#define PYOPS_INSTANTIATE(T)                                                                        \
  template void conv2d_output<T>(const Conv2dShape&, const Tensor&, const Tensor&, ConvEpilogue<T>, \
                                 cudaStream_t);                                                     \
  template void conv2d_input_gradient<T>(const Conv2dShape&, const ConvOperand<T>&, const Tensor&,  \
                                         const Tensor&, cudaStream_t);
PYOPS_INSTANTIATE(float)
PYOPS_INSTANTIATE(double)
PYOPS_INSTANTIATE(bfloat16)
PYOPS_INSTANTIATE(float16)

}  // namespace pyops::cuda
