// The epilogue's gradient and the bias's in one pass. The pass sums by columns where the bias lies along the
// last dimension, and by rows where the elements of a row share one. Blocks leave partial sums that a second
// kernel adds up in order.
#pragma once

#include <algorithm>

#include "cuda/device/tensor.cuh"
#include "cuda/epilogue/tensor_pass.cuh"

namespace pyops::cuda {

constexpr int kColumnLanes = 32;
const int64_t kPartials = std::min<int64_t>(512, kMaxBlocks);  // blocks that sum a bias's gradient

// Adds up the values of the block's threads with the same threadIdx.x % width, as a tree; `width` is a power
// of two. The first `width` threads get the sums. `scratch` has kEpilogueThreads * kCount elements.
template <int kCount, class Acc>
__device__ __forceinline__ void reduce_across(Acc (&values)[kCount], int width, Acc* scratch) {
  __syncthreads();  // the reads of the reduction before
#pragma unroll
  for (int k = 0; k < kCount; ++k) scratch[k * kEpilogueThreads + threadIdx.x] = values[k];
  for (int half = kEpilogueThreads / 2; half >= width; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        scratch[k * kEpilogueThreads + threadIdx.x] += scratch[k * kEpilogueThreads + threadIdx.x + half];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = scratch[k * kEpilogueThreads + threadIdx.x];
}

// How [rows, channels] is dealt out: a block takes the columns of `lanes` threads, and `height` rows.
struct ColumnTiles {
  int64_t rows;
  int64_t channels;
  int lanes;
  int64_t across;  // tiles side by side
  int64_t height;
  int64_t down;  // tiles one below another: partial sums per column

  static ColumnTiles of(int64_t rows, int64_t channels, int width) {
    ColumnTiles t{rows, channels, 1, 1, 1, 1};
    const int64_t threads = ceil_div(channels, width);
    while (t.lanes < kColumnLanes && t.lanes < threads) t.lanes *= 2;
    t.across = ceil_div(threads, t.lanes);
    const int64_t pass = kEpilogueThreads / t.lanes, most = std::max<int64_t>(1, kPartials / t.across);
    t.down = std::clamp<int64_t>(ceil_div(rows, 4 * pass), 1, most);
    t.height = ceil_div(rows, t.down);
    return t;
  }
};

// Where element i has channel i % channels. A thread goes down kWidth neighbouring columns: a whole group
// where rows consist of groups.
template <int kWidth, class T, class Activation>
__global__ void __launch_bounds__(kEpilogueThreads)
    bias_gradient_columns_kernel(EpilogueBackward<T, Activation> work, ColumnTiles t, acc_t<T>* partial) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, kEpilogueThreads * kWidth);
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
      for (int64_t row = down * t.height + threadIdx.x / t.lanes; row < bottom;
           row += kEpilogueThreads / t.lanes) {
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
    while (t.lanes < kEpilogueThreads && t.lanes < groups) t.lanes *= 2;
    t.slice = 8 * t.lanes;
    t.slices = ceil_div(groups, t.slice);
    const int64_t items = s.outer * t.slices, at_once = kEpilogueThreads / t.lanes;
    const int64_t most = std::max<int64_t>(1, kPartials / s.classes);
    t.parts = std::clamp<int64_t>(ceil_div(items, at_once), 1, most);
    t.per_part = ceil_div(items, t.parts);
    return t;
  }
};

template <class T, class Activation>
__global__ void __launch_bounds__(kEpilogueThreads)
    bias_gradient_rows_kernel(EpilogueBackward<T, Activation> work, RowTiles t, acc_t<T>* partial) {
  using Acc = acc_t<T>;
  constexpr int kWidth = EpilogueBackward<T, Activation>::kWidth;
  PYOPS_SHARED_ARRAY(Acc, scratch, kEpilogueThreads);
  const int64_t items = t.outer * t.slices;
  for (int64_t unit = blockIdx.x; unit < t.channels * t.parts; unit += gridDim.x) {
    const int64_t part = unit / t.channels, channel = unit - part * t.channels;
    const Acc bias = work.bias.bias ? to_acc(work.bias.bias[channel]) : Acc(0);
    const auto add_bias = [&](Acc(&values)[kWidth]) {
      for (int k = 0; k < kWidth; ++k) values[k] += bias;
    };
    const int64_t end = (part + 1) * t.per_part < items ? (part + 1) * t.per_part : items;
    Acc sum[1] = {};
    for (int64_t item = part * t.per_part + threadIdx.x / t.lanes; item < end;
         item += kEpilogueThreads / t.lanes) {
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
__global__ void __launch_bounds__(kEpilogueThreads)
    bias_gradient_merge_kernel(const acc_t<T>* partial, int64_t parts, int64_t channels, T* total) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, kEpilogueThreads);
  for (int64_t tile = blockIdx.x; tile * kColumnLanes < channels; tile += gridDim.x) {
    const int64_t column = tile * kColumnLanes + threadIdx.x % kColumnLanes;
    Acc sum[1] = {};
    for (int64_t p = threadIdx.x / kColumnLanes; p < parts && column < channels;
         p += kEpilogueThreads / kColumnLanes) {
      sum[0] += partial[p * channels + column];
    }
    reduce_across(sum, kColumnLanes, scratch);
    if (threadIdx.x < kColumnLanes && column < channels) total[column] = from_acc<T>(sum[0]);
  }
}

template <class T, class Activation>
void launch_with_bias_gradient(const EpilogueBackward<T, Activation>& work, const ReducedShape& s,
                               const Tensor& like, T* grad_bias, cudaStream_t stream) {
  using Acc = acc_t<T>;
  if (s.classes == 0) return;
  const ScalarType acc = accumulate_type(like.scalar_type());
  constexpr int kWidth = EpilogueBackward<T, Activation>::kWidth;
  const bool columns = s.inner == 1, groups = columns && s.classes % kWidth == 0;
  const ColumnTiles c = ColumnTiles::of(s.outer, s.classes, groups ? kWidth : 1);
  const RowTiles r = RowTiles::of(s, kWidth);
  const int64_t parts = columns ? c.down : r.parts;
  Tensor partial = new_tensor(like, {parts, s.classes}, acc);
  Acc* sums = mutable_data<Acc>(partial);
  if (groups) {
    launch(bias_gradient_columns_kernel<kWidth, T, Activation>, blocks_for(c.across * c.down, 1),
           kEpilogueThreads, 0, stream, work, c, sums);
  } else if (columns) {
    launch(bias_gradient_columns_kernel<1, T, Activation>, blocks_for(c.across * c.down, 1), kEpilogueThreads,
           0, stream, work, c, sums);
  } else {
    launch(bias_gradient_rows_kernel<T, Activation>, blocks_for(r.channels * r.parts, 1), kEpilogueThreads, 0,
           stream, work, r, sums);
  }
  launch(bias_gradient_merge_kernel<T>, blocks_for(s.classes, kColumnLanes), kEpilogueThreads, 0, stream,
         sums, parts, s.classes, grad_bias);
}

}  // namespace pyops::cuda
