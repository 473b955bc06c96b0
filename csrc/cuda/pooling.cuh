// How threads are laid over a pooled tensor [outer, height, width, inner].
//
// A thread makes one element or, where the channels are innermost and aligned, one 16-byte pack of them, and
// neighbouring threads make neighbours. Work is dealt out by rows, so that a row's place is worked out once
// for a thread and not for each of its elements.
#pragma once

#include <algorithm>

#include "../binding/pooling.h"
#include "memory.cuh"
#include "tensor.cuh"

namespace pyops::cuda {

constexpr int kPoolThreads = 256;

// The rows of the tensor that a kernel makes.
struct PoolRows {
  int64_t rows;
  int64_t width;
  int64_t packs;  // per pixel
  int lanes;      // threads that share a row
};

// Where an element or pack is.
struct PoolPlace {
  int64_t image;  // 0, ..., outer - 1
  int64_t row;    // in its image
  int64_t column;
  int64_t channel;  // the first of a pack
};

template <int kSize, class F>
__device__ __forceinline__ void for_each_place(const PoolRows& shape, int64_t height, const F& f) {
  const int lane = threadIdx.x % shape.lanes, rows_per_block = kPoolThreads / shape.lanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * rows_per_block;
  const int64_t places = shape.width * shape.packs;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / shape.lanes;
       row < shape.rows; row += step) {
    const int64_t image = math::quotient(row, height);
    for (int64_t place = lane; place < places; place += shape.lanes) {
      const int64_t column = shape.packs == 1 ? place : math::quotient(place, shape.packs);
      f(PoolPlace{image, row - image * height, column, (place - column * shape.packs) * kSize});
    }
  }
}

// kSize elements from p, which is aligned if there are several.
template <class T, int kSize>
__device__ __forceinline__ void load_elements(const T* p, acc_t<T> (&values)[kSize]) {
  if constexpr (kSize == 1) {
    values[0] = to_acc(*p);
  } else {
    widen(load_pack(p), values);
  }
}

template <class T, int kSize>
__device__ __forceinline__ void store_elements(T* p, const acc_t<T> (&values)[kSize]) {
  if constexpr (kSize == 1) {
    *p = from_acc<T>(values[0]);
  } else {
    store_pack(p, values);
  }
}

inline int next_lane_count(int64_t places) {
  int lanes = 1;
  while (lanes < kPoolThreads && lanes < places) lanes *= 2;
  return lanes;
}

// Launches kernel_of(integral_constant<elements per thread>)(rows, arguments...) to make `image`; `aligned`
// says whether all tensors begin at 16-byte boundaries.
template <class T, class KernelOf, class... Arguments>
void launch_pool(const Image& image, bool aligned, cudaStream_t stream, const KernelOf& kernel_of,
                 Arguments... arguments) {
  if (image.elements() == 0) return;
  constexpr int kSize = Pack<T>::kSize;
  const auto run = [&](auto size) {
    const int64_t packs = image.inner / size();
    const PoolRows rows{image.rows(), image.width, packs, next_lane_count(image.width * packs)};
    const int64_t per_block = kPoolThreads / rows.lanes;
    const auto blocks = static_cast<unsigned>(std::min((rows.rows + per_block - 1) / per_block, kMaxBlocks));
    launch(kernel_of(size), blocks, kPoolThreads, 0, stream, rows, arguments...);
  };
  aligned&& image.inner % kSize == 0 ? run(std::integral_constant<int, kSize>{})
                                     : run(std::integral_constant<int, 1>{});
}

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace pyops::cuda
