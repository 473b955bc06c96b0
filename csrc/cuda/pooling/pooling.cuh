// How threads are laid over a pooled tensor [outer, height, width, inner].
//
// A thread makes one element or, where the channels are innermost and aligned, one 16-byte pack of them.
// Neighbouring threads make neighbours. Work is dealt out by rows, so that a thread works out the place of a
// row once and not for each of its elements.
#pragma once

#include <algorithm>

#include "binding/pooling.h"
#include "cuda/device/blocks.cuh"
#include "cuda/device/divide.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/tensor.cuh"

namespace pyops::cuda {

constexpr int kPoolThreads = 256;
constexpr int kPoolBlocks = 2;  // per multiprocessor, at least: 128 registers per thread, and no spills

using Axis = math::SlidingAxisOf<int, Divisor>;
using AxisRange = math::RangeOf<int>;

// The axis in 32 bits.
inline Axis narrow(const math::SlidingAxis& axis, const char* op) {
  // Where a single window begins does not depend on the stride.
  const int64_t stride = axis.out == 1 ? 1 : axis.stride;
  const int64_t extent = axis.in + 2 * axis.padding + (axis.kernel - 1) * axis.dilation + stride;
  PYOPS_CHECK(extent <= std::numeric_limits<int>::max(), op,
              ": height and width must be less than 2^31 with padding and a window, got ", axis.in);
  const auto divisor = [](int64_t value) { return Divisor::of(static_cast<int>(value)); };
  return {static_cast<int>(axis.in), static_cast<int>(axis.out),     static_cast<int>(axis.kernel),
          divisor(stride),           static_cast<int>(axis.padding), divisor(axis.dilation)};
}

struct WindowAxes {
  Axis height, width;
  int inner;

  static WindowAxes of(const Windows& windows, const Image& image, const char* op) {
    return {narrow(windows.height(), op), narrow(windows.width(), op), static_cast<int>(image.inner)};
  }
};

// The rows of the tensor that a kernel makes.
struct PoolRows {
  int64_t rows;
  Divisor height;  // of an image
  Divisor packs;   // per pixel
  int places;      // packs per row
  int lane_bits;   // 2^lane_bits threads share a row
};

// Where an element or pack is.
struct PoolPlace {
  int64_t image;  // 0, ..., outer - 1
  int row;        // in its image
  int column;
  int channel;  // the first of a pack
};

template <int kSize, class F>
__device__ __forceinline__ void for_each_place(const PoolRows& shape, const F& f) {
  const int lanes = 1 << shape.lane_bits, lane = threadIdx.x & (lanes - 1);
  const int rows_per_block = kPoolThreads >> shape.lane_bits;
  const int64_t step = static_cast<int64_t>(gridDim.x) * rows_per_block;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + (threadIdx.x >> shape.lane_bits);
       row < shape.rows; row += step) {
    const int64_t image = shape.rows <= std::numeric_limits<int>::max()
                              ? quotient(static_cast<int>(row), shape.height)
                              : row / static_cast<int>(shape.height);
    for (int place = lane; place < shape.places; place += lanes) {
      const int column = quotient(place, shape.packs);
      f(PoolPlace{image, static_cast<int>(row - image * shape.height), column,
                  (place - column * shape.packs) * kSize});
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

// The positions of a pack, which is aligned, as one access; kSize bytes are 2, 4 or 8.
template <int kSize>
using PositionWord =
    std::conditional_t<kSize == 8, uint64_t, std::conditional_t<kSize == 4, uint32_t, uint16_t>>;

template <class A, int kSize>
__device__ __forceinline__ void store_positions(A* p, const int (&positions)[kSize]) {
  if constexpr (kSize > 1 && sizeof(A) == 1) {
    using Word = PositionWord<kSize>;
    Word word = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) word |= static_cast<Word>(static_cast<Word>(positions[k]) << (8 * k));
    *reinterpret_cast<Word*>(p) = word;
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) p[k] = static_cast<A>(positions[k]);
  }
}

template <class A, int kSize>
__device__ __forceinline__ void load_positions(const A* p, int (&positions)[kSize]) {
  if constexpr (kSize > 1 && sizeof(A) == 1) {
    const auto word = *reinterpret_cast<const PositionWord<kSize>*>(p);
#pragma unroll
    for (int k = 0; k < kSize; ++k) positions[k] = static_cast<int>(word >> (8 * k) & 0xff);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) positions[k] = static_cast<int>(p[k]);
  }
}

inline int lane_bits_for(int64_t places) {
  int bits = 0;
  while (1 << bits < kPoolThreads && 1 << bits < places) ++bits;
  return bits;
}

// Launches kernel_of(integral_constant<elements per thread>)(rows, arguments...) to make `image`; `aligned`
// says whether all tensors begin at 16-byte boundaries.
template <class T, class KernelOf, class... Arguments>
void launch_pool(const Image& image, bool aligned, cudaStream_t stream, const KernelOf& kernel_of,
                 Arguments... arguments) {
  if (image.elements() == 0) return;
  constexpr int kSize = Pack<T>::kSize;
  const auto run = [&](auto size) {
    const int64_t packs = image.inner / size(), places = image.width * packs;
    PYOPS_CHECK(image.row_elements() < std::numeric_limits<int>::max() - kPoolThreads,
                "pooling: a row must have less than 2^31 elements, got ", image.row_elements());
    PYOPS_CHECK(image.height <= std::numeric_limits<int>::max(),
                "pooling: an image must have less than 2^31 rows");
    const auto divisor = [](int64_t value) { return Divisor::of(static_cast<int>(value)); };
    const PoolRows rows{image.rows(), divisor(image.height), divisor(packs), static_cast<int>(places),
                        lane_bits_for(places)};
    const int64_t per_block = kPoolThreads >> rows.lane_bits;
    launch(kernel_of(size), blocks_for(rows.rows, per_block), kPoolThreads, 0, stream, rows, arguments...);
  };
  aligned&& image.inner % kSize == 0 ? run(std::integral_constant<int, kSize>{})
                                     : run(std::integral_constant<int, 1>{});
}

// The gradient of images `in`, by the kernel of max_pool2d.cu.
void max_pool_gradient(const Windows& windows, const Image& in, const Tensor& grad_output,
                       const Tensor& argmax, const Tensor& grad_input, cudaStream_t stream, const char* op);

}  // namespace pyops::cuda
