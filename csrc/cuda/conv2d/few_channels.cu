// The convolution on CUDA where a group has so few channels that a tile of a matrix product would be almost
// empty: depthwise convolutions, and those from one channel to a handful.
//
// A thread makes one element, or 16 bytes of neighbouring channels of a depthwise convolution. It reads its
// window in place, in either format; what neighbours share comes from the L1 cache.
#include "cuda/conv2d/algorithms.cuh"
#include "cuda/conv2d/few_channels.cuh"
#include "cuda/conv2d/weight.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kOp = "conv2d";
constexpr int kSumLanes = 32;  // channels of a block that sums a weight's gradient
const int64_t kFewestPixels = std::min<int64_t>(1 << 11, 16 * kWholeGpu);  // of a part

template <class T, int kSize>
__global__ void __launch_bounds__(kFewChannelsThreads, 1)
    conv2d_few_channels_kernel(const __grid_constant__ Correlation c, int phase,
                               const __grid_constant__ ConvSource<T> source, FewChannelsWeights shape,
                               const T* weights, const __grid_constant__ ConvEpilogue<T> epilogue) {
  using Acc = acc_t<T>;
  const ConvPhase &h = c.down[phase / c.phases_across], &w = c.across[phase % c.phases_across];
  const int64_t pixels = c.pixels(h, w), packs = shape.channels / kSize;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= pixels * packs) return;
  const FewChannelsItem item = FewChannelsItem::of(index, pixels, packs, kSize, epilogue.channels_inner);
  const ConvPixel at = ConvPixel::of(item.pixel, h.count, w.count);
  const int channel = static_cast<int>(item.channel);
  Acc sum[kSize] = {};
  conv2d_window_sum(c, h, w, source, shape, weights, at, channel, sum);
  const int64_t y = h.target_first + static_cast<int64_t>(at.row) * c.target_step_down;
  const int64_t x = w.target_first + static_cast<int64_t>(at.column) * c.target_step_across;
  epilogue.store(
      sum, at.image * c.target.image + channel * c.target.channel + y * c.target.row + x * c.target.column,
      c.target.channel, channel, kSize);
}

struct FewChannelsSum {
  ConvPhase down;
  ConvPhase across;
  int source_height;
  int source_width;
  int step_down;
  int step_across;
  int height;  // of the output
  int width;
  int64_t pixels;
  int64_t part;      // pixels
  int64_t channels;  // outputs of all groups
  int outputs;       // per group
  int inputs;
  int lanes;  // threads with neighbouring channels; teams of them have neighbouring pixels
};

// partial[parts, channels, taps, inputs]. A block sums a part for `lanes` channels at one tap and input.
template <class T>
__global__ void __launch_bounds__(kFewChannelsThreads)
    conv2d_few_channels_weight_kernel(const __grid_constant__ FewChannelsSum s,
                                      const __grid_constant__ ConvSource<T> grad,
                                      const __grid_constant__ ConvSource<T> source, acc_t<T>* partial) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, sums, kFewChannelsThreads);
  const int terms = s.down.taps * s.across.taps * s.inputs;
  const int64_t blocks_across = (s.channels + s.lanes - 1) / s.lanes;
  const int64_t unit = blockIdx.x / terms, part = math::quotient<int64_t>(unit, blocks_across);
  const int term = static_cast<int>(blockIdx.x - unit * terms), tap = term / s.inputs,
            input = term - tap * s.inputs;
  const int tap_down = tap / s.across.taps, tap_across = tap - tap_down * s.across.taps;
  const int team = threadIdx.x / s.lanes, teams = kFewChannelsThreads / s.lanes;
  const int64_t channel = (unit - part * blocks_across) * s.lanes + threadIdx.x % s.lanes;
  const int64_t end = math::smaller<int64_t>((part + 1) * s.part, s.pixels);
  Acc sum = 0;
  if (channel < s.channels) {
    const T* const g = grad.data + channel * grad.strides.channel;
    const T* const x = source.data + (channel / s.outputs * s.inputs + input) * source.strides.channel;
    for (int64_t pixel = part * s.part + team; pixel < end; pixel += teams) {
      const ConvPixel at = ConvPixel::of(pixel, s.height, s.width);
      const int row = at.row * s.step_down + s.down.first_offset + tap_down * s.down.offset_step;
      const int column =
          at.column * s.step_across + s.across.first_offset + tap_across * s.across.offset_step;
      if (static_cast<unsigned>(row) >= static_cast<unsigned>(s.source_height) ||
          static_cast<unsigned>(column) >= static_cast<unsigned>(s.source_width))
        continue;
      sum +=
          to_acc(g[at.image * grad.strides.image + at.row * grad.strides.row +
                   at.column * grad.strides.column]) *
          to_acc(
              x[at.image * source.strides.image + row * source.strides.row + column * source.strides.column]);
    }
  }
  sums[threadIdx.x] = sum;
  for (int half = teams / 2; half > 0; half /= 2) {
    __syncthreads();
    if (team < half) sums[threadIdx.x] += sums[threadIdx.x + half * s.lanes];
  }
  if (team == 0 && channel < s.channels)
    partial[(part * s.channels + channel) * terms + term] = sums[threadIdx.x];
}

}  // namespace

template <class T>
void few_channels_correlate(const CorrelationProblem<T>& p) {
  const Correlation& c = p.correlation;
  const ConvSource<T>& source = p.source;
  const FewChannelsOperand<T> packed = few_channels_weights<T>(c, p.weight, p.strides, p.inputs, p.stream);
  // The channels of a depthwise convolution's groups fill packs together.
  const ConvEpilogue<T> epilogue = p.epilogue.over(packed.shape.channels);
  const bool packs = p.inputs == 1 && c.outputs == 1 && epilogue.packs && source.strides.channel == 1 &&
                     is_aligned(source.data);
  for (int phase = 0; phase < c.phases_down * c.phases_across; ++phase) {
    const int64_t pixels = c.pixels(c.down[phase / c.phases_across], c.across[phase % c.phases_across]);
    const auto run = [&](auto size) {
      const int64_t items = pixels * (packed.shape.channels / size());
      if (items == 0) return;
      const int64_t blocks = ceil_div(items, kFewChannelsThreads);
      PYOPS_CHECK(blocks < (int64_t{1} << 31), kOp, ": the output is too large: ", items, " elements");
      launch(conv2d_few_channels_kernel<T, size()>, static_cast<unsigned>(blocks), kFewChannelsThreads, 0,
             p.stream, c, phase, source, packed.shape, data<T>(packed.memory), epilogue);
    };
    packs ? run(std::integral_constant<int, kChunk<T>>{}) : run(std::integral_constant<int, 1>{});
  }
}

namespace {

// Without the size of a part.
template <class T>
FewChannelsSum few_channels_sum(const WeightGradientProblem<T>& p) {
  const Conv2dShape& s = p.shape;
  FewChannelsSum sum{};
  sum.down = ConvPhase::of(math::forward_axis(s.height));
  sum.across = ConvPhase::of(math::forward_axis(s.width));
  sum.source_height = static_cast<int>(s.height.input);
  sum.source_width = static_cast<int>(s.width.input);
  sum.step_down = static_cast<int>(s.height.stride);
  sum.step_across = static_cast<int>(s.width.stride);
  sum.height = static_cast<int>(s.height.output());
  sum.width = static_cast<int>(s.width.output());
  sum.pixels = s.images * s.height.output() * s.width.output();
  sum.channels = s.out_channels;
  sum.outputs = static_cast<int>(s.out_channels / s.groups);
  sum.inputs = static_cast<int>(s.in_channels / s.groups);
  sum.lanes = p.grad.strides.channel == 1 ? kSumLanes : 1;
  return sum;
}

}  // namespace

template <class T>
void few_channels_weight_gradient(const WeightGradientProblem<T>& p) {
  FewChannelsSum sum = few_channels_sum(p);
  const int64_t terms = int64_t{sum.down.taps} * sum.across.taps * sum.inputs;
  const int64_t units = ceil_div(sum.channels, sum.lanes) * terms;
  const int64_t wanted = std::min(ceil_div(4 * kWholeGpu, units), ceil_div(sum.pixels, kFewestPixels));
  sum.part = wanted > 0 ? ceil_div(sum.pixels, wanted) : 1;
  const int64_t parts = ceil_div(sum.pixels, sum.part);
  PYOPS_CHECK(parts * units < (int64_t{1} << 31), kOp, ": the weight is too large");
  Tensor partial =
      new_tensor(p.grad_weight, {parts, sum.channels, terms}, accumulate_type(p.grad_weight.scalar_type()));
  if (parts > 0) {
    launch(conv2d_few_channels_weight_kernel<T>, static_cast<unsigned>(parts * units), kFewChannelsThreads, 0,
           p.stream, sum, p.grad, p.source, mutable_data<acc_t<T>>(partial));
  }
  merge_parts(p, partial);
}

#define PYOPS_INSTANTIATE(T)                                             \
  template void few_channels_correlate<T>(const CorrelationProblem<T>&); \
  template void few_channels_weight_gradient<T>(const WeightGradientProblem<T>&);
PYOPS_INSTANTIATE(float)
PYOPS_INSTANTIATE(double)
PYOPS_INSTANTIATE(bfloat16)
PYOPS_INSTANTIATE(float16)

}  // namespace pyops::cuda
