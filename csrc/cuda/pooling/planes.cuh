// How threads are laid over the contiguous planes of images [planes, height, width], where 31 bits count
// their elements: places are found by products.
//
// Backward makes a run of neighbours at a time, of 16 bytes: they share the rows of windows above them.
#pragma once

#include "cuda/pooling/pooling.cuh"

namespace pyops::cuda {

inline const int64_t kMaxPlaneElements = unless_in_tests(int64_t{1} << 31, 1 << 12);

// Places of planes: elements, or runs of neighbours in a row.
struct Planes {
  uint32_t items;
  Divisor row;     // items of a row
  Divisor height;  // rows of a plane
};

// Where an item is.
struct PlanePlace {
  int plane, row, item;

  static __device__ __forceinline__ PlanePlace of(const Planes& s, int i) {
    const int row = quotient(i, s.row), plane = quotient(row, s.height);
    return {plane, row - plane * s.height, i - row * s.row};
  }
};

template <class F>
__device__ __forceinline__ void for_each_plane_place(const Planes& s, const F& f) {
  for (uint32_t i = blockIdx.x * kPoolThreads + threadIdx.x; i < s.items; i += gridDim.x * kPoolThreads)
    f(PlanePlace::of(s, static_cast<int>(i)), i);
}

__device__ __forceinline__ bool is_within(int at, int end) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(end);
}

// Elements first, ..., first + kSize - 1 of a row of `width`, those of them that are there.
template <class T, int kSize>
__device__ __forceinline__ void store_run(T* row, int first, int width, bool aligned,
                                          const acc_t<T> (&values)[kSize]) {
  if (aligned) return store_pack(row + first, values);
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (first + k < width) row[first + k] = from_acc<T>(values[k]);
  }
}

inline bool are_planes(const Image& a, const Image& b) {
  return a.inner == 1 && a.elements() < kMaxPlaneElements && b.elements() < kMaxPlaneElements &&
         std::max(a.rows(), b.rows()) < kMaxPlaneElements;
}

// Whether rows are whole runs, each of them a pack.
template <class T>
bool has_whole_runs(const Image& image, const T* p) {
  return image.width % Pack<T>::kSize == 0 && is_aligned(p);
}

// Launches kernel(planes, arguments...) for the elements of `image` in runs of `run`.
template <class Kernel, class... Arguments>
void launch_planes(Kernel kernel, const Image& image, int run, cudaStream_t stream, Arguments... arguments) {
  if (image.elements() == 0) return;
  const int64_t row = ceil_div(image.width, run), items = image.rows() * row;
  const Planes planes{static_cast<uint32_t>(items), Divisor::of(static_cast<int>(row)),
                      Divisor::of(static_cast<int>(image.height))};
  launch(kernel, blocks_for(items, kPoolThreads), kPoolThreads, 0, stream, planes, arguments...);
}

}  // namespace pyops::cuda
