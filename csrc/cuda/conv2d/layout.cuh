// Copies that bring the convolution's operands into the order in which its loaders read: weights in tiles,
// padded with zeros, and images with the channels innermost.
//
// An image is copied where 16 bytes of it do not hold neighbouring channels: where it is not channels_last
// and has many channels, or where its channels are no multiple of 16 bytes. The copy is one pass; the product
// then reads it once per tap. An image of few channels is gathered where it lies.
#pragma once

#include "cuda/conv2d/tile.cuh"
#include "cuda/device/blocks.cuh"

namespace pyops::cuda {

constexpr int kLayoutThreads = 256;
constexpr int kLayoutSide = 32;

template <class T>
__global__ void __launch_bounds__(kLayoutThreads)
    conv2d_pack_kernel(const __grid_constant__ Correlation c, WeightStrides strides, const T* weight,
                       int channels, int padded_channels, PackedWeights<T> shape, T* packed, int64_t total) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = math::quotient<int64_t>(i, shape.padded_depth);
    const int64_t unit = math::quotient<int64_t>(row, shape.padded_outputs);
    const int term = static_cast<int>(i - row * shape.padded_depth), tap = term / padded_channels;
    const int output = static_cast<int>(row - unit * shape.padded_outputs);
    const int channel = term - tap * padded_channels;
    const int phase = static_cast<int>(unit) / c.groups, group = static_cast<int>(unit) % c.groups;
    const ConvPhase &h = c.down[phase / c.phases_across], &w = c.across[phase % c.phases_across];
    T value{};
    if (output < c.outputs && channel < channels && tap < h.taps * w.taps) {
      const int tap_down = tap / w.taps, tap_across = tap - tap_down * w.taps;
      value = weight[group * strides.group + output * strides.output + channel * strides.input +
                     (h.first_kernel + tap_down * h.kernel_step) * strides.row +
                     (w.first_kernel + tap_across * w.kernel_step) * strides.column];
    }
    packed[i] = value;
  }
}

// A launch's weights in tiles of `tile_outputs`, and their memory.
template <class T>
struct PackedOperand {
  PackedWeights<T> weights;
  Tensor memory;
};

// `channels` of the source have weights; those beyond, if any, are zeros.
template <class T>
PackedOperand<T> conv_weights(const Correlation& c, const ConvSource<T>& source, const Tensor& weight,
                              const WeightStrides& strides, int64_t channels, int tile_outputs,
                              cudaStream_t stream) {
  int64_t taps_down = 0, taps_across = 0;
  for (int p = 0; p < c.phases_down; ++p) taps_down = std::max<int64_t>(taps_down, c.down[p].taps);
  for (int p = 0; p < c.phases_across; ++p) taps_across = std::max<int64_t>(taps_across, c.across[p].taps);
  const int64_t depth = taps_down * taps_across * source.channels;
  PYOPS_CHECK(depth < (int64_t{1} << 30), "conv2d: an output must be a sum of less than 2^30 terms, got ",
              depth);
  const int64_t padded_outputs = round_up(c.outputs, tile_outputs), padded_depth = round_up(depth, kDepth<T>);
  const int64_t total = int64_t{c.phases_down} * c.phases_across * c.groups * padded_outputs * padded_depth;
  Tensor packed = new_tensor(weight, {total}, weight.scalar_type());
  const PackedWeights<T> weights{data<T>(packed), static_cast<int>(padded_depth),
                                 static_cast<int>(padded_outputs)};
  if (total > 0) {
    launch(conv2d_pack_kernel<T>, blocks_for(total, kLayoutThreads), kLayoutThreads, 0, stream, c, strides,
           data<T>(weight), static_cast<int>(channels), source.channels, weights, mutable_data<T>(packed),
           total);
  }
  return {weights, packed};
}

struct ConvertShape {
  int64_t images;
  int64_t plane;
  int groups;
  int channels;  // per group
  int padded_channels;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t pixel_stride;
};

// To [images, plane, groups, padded channels]; a block takes 32 pixels and 32 channels.
template <class T>
__global__ void __launch_bounds__(kLayoutThreads)
    conv2d_convert_kernel(ConvertShape s, const T* from, T* to) {
  PYOPS_SHARED_ARRAY(T, tile, kLayoutSide * (kLayoutSide + 1));
  const int64_t across = (static_cast<int64_t>(s.groups) * s.padded_channels + kLayoutSide - 1) / kLayoutSide;
  const int64_t down = (s.plane + kLayoutSide - 1) / kLayoutSide;
  const int lane = threadIdx.x % kLayoutSide, warp = threadIdx.x / kLayoutSide;
  constexpr int kWarps = kLayoutThreads / kLayoutSide;
  for (int64_t t = blockIdx.x; t < s.images * down * across; t += gridDim.x) {
    const int64_t rest = math::quotient<int64_t>(t, across), image = math::quotient<int64_t>(rest, down);
    const int64_t first_pixel = (rest - image * down) * kLayoutSide;
    const int first_channel = static_cast<int>(t - rest * across) * kLayoutSide;
    const T* const source = from + image * s.image_stride;
    for (int i = warp; i < kLayoutSide; i += kWarps) {
      const int in_pixel = s.channel_stride == 1 ? i : lane, in_channel = s.channel_stride == 1 ? lane : i;
      const int64_t pixel = first_pixel + in_pixel;
      const int group = (first_channel + in_channel) / s.padded_channels;
      const int channel = first_channel + in_channel - group * s.padded_channels;
      T value{};
      if (pixel < s.plane && group < s.groups && channel < s.channels)
        value = source[pixel * s.pixel_stride + (group * s.channels + channel) * s.channel_stride];
      tile[in_channel * (kLayoutSide + 1) + in_pixel] = value;
    }
    __syncthreads();
    const int total = s.groups * s.padded_channels;
    for (int i = warp; i < kLayoutSide; i += kWarps) {
      const int64_t pixel = first_pixel + i;
      if (pixel < s.plane && first_channel + lane < total)
        to[(image * s.plane + pixel) * total + first_channel + lane] = tile[lane * (kLayoutSide + 1) + i];
    }
    __syncthreads();
  }
}

// An image to be read, and the memory of its copy if there is one.
template <class T>
struct ConvOperand {
  ConvSource<T> source;
  Tensor copy;
};

// `image` is [images, groups x channels, height, width] in one of the two formats. `gathers`: no copy is
// needed.
template <class T>
ConvOperand<T> conv_operand(const Tensor& image, bool channels_last, int64_t groups, bool gathers,
                            cudaStream_t stream) {
  const int64_t channels = image.size(1) / groups, height = image.size(2), width = image.size(3);
  // An image of one pixel is in both formats.
  const bool inner = channels_last || height * width == 1;
  const ImageStrides strides = ImageStrides::of(groups * channels, height, width, inner);
  const ConvSource<T> source = ConvSource<T>::of(data<T>(image), strides, channels);
  if (source.packs || gathers) return {source, image};
  const int64_t padded = round_up(channels, kChunk<T>);
  const ConvertShape shape{image.size(0),
                           height * width,
                           static_cast<int>(groups),
                           static_cast<int>(channels),
                           static_cast<int>(padded),
                           strides.image,
                           strides.channel,
                           strides.column};
  Tensor copy = new_tensor(image, {image.size(0), height, width, groups * padded}, image.scalar_type());
  const int64_t tiles =
      shape.images * ceil_div(shape.plane, kLayoutSide) * ceil_div(groups * padded, kLayoutSide);
  if (tiles > 0) {
    launch(conv2d_convert_kernel<T>, blocks_for(tiles, 1), kLayoutThreads, 0, stream, shape, source.data,
           mutable_data<T>(copy));
  }
  const ImageStrides dense = ImageStrides::of(groups * padded, height, width, true);
  return {ConvSource<T>::of(data<T>(copy), dense, padded), copy};
}

}  // namespace pyops::cuda
