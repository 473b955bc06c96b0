// An element of a correlation, or 16 bytes of neighbouring channels of a depthwise one, as a sum over its
// window.
#pragma once

#include "cuda/conv2d/layout.cuh"

namespace pyops::cuda {

constexpr int kFewChannelsThreads = 256;

struct FewChannelsWeights {
  int kernel_width;
  int inputs;        // per group
  int64_t channels;  // outputs of all groups
};

// To [taps, inputs, outputs of all groups], so that neighbouring channels are neighbours.
template <class T>
__global__ void __launch_bounds__(kFewChannelsThreads)
    conv2d_few_channels_pack_kernel(FewChannelsWeights shape, WeightStrides strides, int outputs,
                                    const T* weight, T* packed, int64_t total) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t term = math::quotient<int64_t>(i, shape.channels), channel = i - term * shape.channels;
    const int64_t group = math::quotient<int64_t>(channel, outputs),
                  tap = math::quotient<int64_t>(term, shape.inputs);
    const int64_t row = math::quotient<int64_t>(tap, shape.kernel_width);
    packed[i] = weight[group * strides.group + (channel - group * outputs) * strides.output +
                       (term - tap * shape.inputs) * strides.input + row * strides.row +
                       (tap - row * shape.kernel_width) * strides.column];
  }
}

// Those weights, and their memory.
template <class T>
struct FewChannelsOperand {
  FewChannelsWeights shape;
  Tensor memory;
};

template <class T>
FewChannelsOperand<T> few_channels_weights(const Correlation& c, const Tensor& weight,
                                           const WeightStrides& strides, int64_t inputs,
                                           cudaStream_t stream) {
  const FewChannelsWeights shape{static_cast<int>(weight.size(3)), static_cast<int>(inputs),
                                 int64_t{c.groups} * c.outputs};
  const int64_t total = weight.numel();
  Tensor packed = new_tensor(weight, {total}, weight.scalar_type());
  launch(conv2d_few_channels_pack_kernel<T>, blocks_for(total, kFewChannelsThreads), kFewChannelsThreads, 0,
         stream, shape, strides, c.outputs, data<T>(weight), mutable_data<T>(packed), total);
  return {shape, packed};
}

// Item `index` of pixels x packs of channels. Neighbouring items are neighbours in memory.
struct FewChannelsItem {
  int64_t pixel;
  int64_t channel;

  static __device__ __forceinline__ FewChannelsItem of(int64_t index, int64_t pixels, int64_t packs, int size,
                                                       bool channels_inner) {
    const int64_t rest = math::quotient<int64_t>(index, channels_inner ? packs : pixels);
    const int64_t lane = index - rest * (channels_inner ? packs : pixels);
    return channels_inner ? FewChannelsItem{rest, lane * size} : FewChannelsItem{lane, rest * size};
  }
};

// Adds the products of pixel `at` to `sum`, for channels `channel`, ...; for several only if depthwise.
template <class T, int kSize>
__device__ __forceinline__ void conv2d_window_sum(const Correlation& c, const ConvPhase& h,
                                                  const ConvPhase& w, const ConvSource<T>& source,
                                                  const FewChannelsWeights& shape, const T* weights,
                                                  const ConvPixel& at, int channel, acc_t<T> (&sum)[kSize]) {
  using Acc = acc_t<T>;
  const int first_input = kSize > 1 ? channel : channel / c.outputs * shape.inputs;
  const T* const image = source.data + at.image * source.strides.image + first_input * source.strides.channel;
  const int top = at.row * c.source_step_down + h.first_offset;
  const int left = at.column * c.source_step_across + w.first_offset;
  for (int i = 0; i < h.taps; ++i) {
    const int y = top + i * h.offset_step;
    if (static_cast<unsigned>(y) >= static_cast<unsigned>(c.source_height)) continue;
    for (int j = 0; j < w.taps; ++j) {
      const int x = left + j * w.offset_step;
      if (static_cast<unsigned>(x) >= static_cast<unsigned>(c.source_width)) continue;
      const int64_t tap = static_cast<int64_t>(h.first_kernel + i * h.kernel_step) * shape.kernel_width +
                          w.first_kernel + j * w.kernel_step;
      const T* from = image + y * source.strides.row + x * source.strides.column;
      const T* factor = weights + tap * shape.inputs * shape.channels + channel;
      if constexpr (kSize > 1) {
        Acc values[kSize], factors[kSize];
        widen(load_pack(from), values);
        widen(load_pack(factor), factors);
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum[k] += values[k] * factors[k];
      } else {
#pragma unroll 1
        for (int k = 0; k < shape.inputs; ++k)
          sum[0] += to_acc(from[k * source.strides.channel]) * to_acc(factor[k * shape.channels]);
      }
    }
  }
}

}  // namespace pyops::cuda
