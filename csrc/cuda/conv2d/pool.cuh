// Kernels of the pooled convolution. One sums tiles of the convolution's pixels and pools them from shared
// memory, the other works window by window, without tiles.
#pragma once

#include "binding/conv2d_max_pool2d.h"
#include "cuda/conv2d/correlate.cuh"
#include "cuda/conv2d/few_channels.cuh"
#include "cuda/pooling/pooling.cuh"

namespace pyops::cuda {

// What is done with the convolution's sums, and where it goes. Null: not there, or not wanted.
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

// How the windows are dealt out to tiles: each pools a patch of the convolution's output.
struct PoolPatches {
  int windows_down;  // of a patch
  int windows_across;
  int pixels_down;
  int pixels_across;
  int patches_down;  // of an image
  int patches_across;
  Divisor by_pixels_across;
};

// The pixels of a patch. It may begin before the image and end behind it.
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
__global__ void __launch_bounds__(kFewChannelsThreads, 2)
    conv2d_few_channels_pool_kernel(const __grid_constant__ Correlation c,
                                    const __grid_constant__ ConvSource<T> source, FewChannelsWeights shape,
                                    const T* weights, int64_t windows,
                                    const __grid_constant__ PoolEpilogue<T> epilogue) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= windows * shape.channels) return;
  const FewChannelsItem item =
      FewChannelsItem::of(index, windows, shape.channels, 1, epilogue.channels_inner);
  const ConvPixel at = ConvPixel::of(item.pixel, epilogue.height.out, epilogue.width.out);
  const int channel = static_cast<int>(item.channel);
  pool_window<T, 1>(epilogue, at.image, at.row, at.column, channel, 1, [&](int y, int x, acc_t<T>(&sum)[1]) {
    sum[0] = 0;
    conv2d_window_sum(c, c.down[0], c.across[0], source, shape, weights, ConvPixel{at.image, y, x}, channel,
                      sum);
  });
}

}  // namespace pyops::cuda
