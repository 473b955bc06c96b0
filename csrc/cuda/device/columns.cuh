// How threads are laid over the columns of a few rows of a matrix, of any width: gathered rows, for instance.
#pragma once

#include "cuda/device/blocks.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"

namespace pyops::cuda {

constexpr int kColumnTileThreads = 256;

// kWidth neighbouring columns of one row: packs, or with kWidth 1 a single element of any alignment.
template <class T, int kWidth>
struct Columns {
  static constexpr int kPacks = kWidth / Pack<T>::kSize;
  Pack<T> packs[kPacks];

  __device__ __forceinline__ void load(const T* p) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs[i] = load_pack(p + i * Pack<T>::kSize);
  }
  // Calls f(column, value) for each.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      acc_t<T> values[Pack<T>::kSize];
      widen(packs[i], values);
#pragma unroll
      for (int k = 0; k < Pack<T>::kSize; ++k) f(i * Pack<T>::kSize + k, values[k]);
    }
  }
  static __device__ __forceinline__ void store(T* p, const acc_t<T> (&values)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      acc_t<T> part[Pack<T>::kSize];
#pragma unroll
      for (int k = 0; k < Pack<T>::kSize; ++k) part[k] = values[i * Pack<T>::kSize + k];
      store_pack(p + i * Pack<T>::kSize, part);
    }
  }
};

template <class T>
struct Columns<T, 1> {
  T value;
  __device__ __forceinline__ void load(const T* p) { value = *p; }
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    f(0, to_acc(value));
  }
  static __device__ __forceinline__ void store(T* p, const acc_t<T> (&values)[1]) {
    *p = from_acc<T>(values[0]);
  }
};

// How `dim` columns are cut for groups of `lanes` threads, each taking `width` columns.
struct ColumnTiling {
  int lanes;
  int64_t tiles;

  static ColumnTiling of(int64_t dim, int width) {
    int lanes = 1;
    while (lanes < kWarpSize && lanes * width < dim) lanes *= 2;
    return {lanes, ceil_div(dim, lanes * width)};
  }
  unsigned blocks(int64_t items) const {
    const int64_t groups_per_block = kColumnTileThreads / lanes;
    return blocks_for(items * tiles, groups_per_block);
  }
};

// Calls f(item, first column of this thread) for the items this group of threads takes.
template <int kWidth, class F>
__device__ __forceinline__ void for_each_tile(const ColumnTiling& tiling, int64_t items, const F& f) {
  const int64_t groups = static_cast<int64_t>(gridDim.x) * kColumnTileThreads / tiling.lanes;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kColumnTileThreads + threadIdx.x) / tiling.lanes;
  const int lane = threadIdx.x % tiling.lanes;
  for (int64_t g = first; g < items * tiling.tiles; g += groups) {
    f(g / tiling.tiles, (g % tiling.tiles * tiling.lanes + lane) * kWidth);
  }
}

}  // namespace pyops::cuda
