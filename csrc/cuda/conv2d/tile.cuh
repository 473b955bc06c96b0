// Tiles of the convolution's matrix products in shared memory, and the product of two of them in registers.
//
// A stage holds kDepth terms of the sum, 64 bytes per row or column of the product. Memory is laid out in
// chunks of 16 bytes. They are permuted within a tile, so that neither the threads that fill it nor those
// that read fragments have bank conflicts.
#pragma once

#include "cuda/conv2d/geometry.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/mma.cuh"

namespace pyops::cuda {

constexpr int kConvThreads = 256;
constexpr int kStageBytes = 64;  // per row of a tile
constexpr int kStages = 4;

template <class T>
constexpr int kDepth = kStageBytes / sizeof(T);

// [extent][depth]: a row's terms are neighbours. For the output and the data gradient.
template <class T, int kExtentOf>
struct DepthInner {
  static constexpr int kExtent = kExtentOf;
  static constexpr int kChunksPerRow = kStageBytes / kPackBytes;
  static constexpr int kBytes = kExtent * kStageBytes;

  static __device__ __forceinline__ int offset(int row, int chunk) {
    return (row * kChunksPerRow + (chunk ^ (row / 2 % kChunksPerRow))) * kPackBytes;
  }
};

// [depth][extent]: for the weight gradient, whose terms are pixels.
template <class T, int kExtentOf>
struct ExtentInner {
  static constexpr int kExtent = kExtentOf;
  static constexpr int kChunksPerRow = kExtent * static_cast<int>(sizeof(T)) / kPackBytes;
  static constexpr int kBytes = kExtent * kStageBytes;

  // `row` is a term, `chunk` one of the extent.
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return (row * kChunksPerRow + (chunk ^ (sizeof(T) == 2 ? row & 7 : (row & 3) << 1))) * kPackBytes;
  }
  static __device__ __forceinline__ uint32_t word(const char* tile, int row, int element) {
    static_assert(sizeof(T) == 4);
    return *reinterpret_cast<const uint32_t*>(tile + offset(row, element / kChunk<T>) +
                                              element % kChunk<T> * sizeof(T));
  }
};

// Weights [phases, groups, outputs, terms], padded with zeros to whole tiles. A term is a tap and a channel.
template <class T>
struct PackedWeights {
  const T* data;
  int padded_depth;
  int padded_outputs;
};

// The product on tensor cores: bfloat16, float16, or float rounded to TF32. Warps are laid over the tile;
// each has the results of kRows x kColumns instructions.
template <class T, class TileA, class TileB>
struct TensorCores {
  using Acc = float;
  static constexpr bool kInner = std::is_same_v<TileA, DepthInner<T, TileA::kExtent>>;
  static constexpr int kWarpsAcross = TileB::kExtent >= 128 ? 4 : 2;
  static constexpr int kWarpsDown = kConvThreads / 32 / kWarpsAcross;
  static constexpr int kRows = TileA::kExtent / kWarpsDown / 16;
  static constexpr int kColumns = TileB::kExtent / kWarpsAcross / 8;
  static constexpr int kSteps = kStageBytes / 32;  // an instruction takes 32 bytes of a row
  static_assert(kRows >= 1 && kColumns % 2 == 0);

  float sums[kRows][kColumns][4] = {};

  __device__ __forceinline__ void multiply(const char* a, const char* b) {
    const int warp = threadIdx.x / 32;
    const int top = warp / kWarpsAcross * (kRows * 16), left = warp % kWarpsAcross * (kColumns * 8);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      MatrixB columns[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) load_columns(b, left + j * 8, step, columns[j], columns[j + 1]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const MatrixA row = load_rows(a, top + i * 16, step);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) multiply_add<T>(sums[i][j], row, columns[j]);
      }
    }
  }

  // f(row, column, sum) for every element that this thread holds.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int top = warp / kWarpsAcross * (kRows * 16) + lane / 4;
    const int left = warp % kWarpsAcross * (kColumns * 8) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) f(top + i * 16 + k / 2 * 8, left + j * 8 + k % 2, sums[i][j][k]);
      }
    }
  }

 private:
  static __device__ __forceinline__ MatrixA load_rows(const char* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    MatrixA m;
    if constexpr (kInner) {
      copy_words(load_matrices(tile + TileA::offset(row + lane % 16, step * 2 + lane / 16)), m.words);
    } else if constexpr (sizeof(T) == 2) {
      const int term = step * 16 + lane % 8 + lane / 16 * 8, chunk = row / 8 + lane / 8 % 2;
      copy_words(load_matrices_transposed(tile + TileA::offset(term, chunk)), m.words);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        m.words[k] = TileA::word(tile, step * 8 + lane % 4 + k / 2 * 4, row + lane / 4 + k % 2 * 8);
    }
    round(m.words);
    return m;
  }

  static __device__ __forceinline__ void load_columns(const char* tile, int column, int step, MatrixB& first,
                                                      MatrixB& second) {
    const int lane = threadIdx.x % 32;
    uint32_t words[4];
    if constexpr (kInner) {
      const int row = column + lane % 8 + lane / 16 * 8;
      copy_words(load_matrices(tile + TileB::offset(row, step * 2 + lane / 8 % 2)), words);
    } else if constexpr (sizeof(T) == 2) {
      const int term = step * 16 + lane % 16, chunk = column / 8 + lane / 16;
      copy_words(load_matrices_transposed(tile + TileB::offset(term, chunk)), words);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        words[k] = TileB::word(tile, step * 8 + lane % 4 + k % 2 * 4, column + lane / 4 + k / 2 * 8);
    }
    round(words);
    first = {{words[0], words[1]}};
    second = {{words[2], words[3]}};
  }

  static __device__ __forceinline__ void copy_words(const FourMatrices& from, uint32_t (&to)[4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = from.words[k];
  }
  static __device__ __forceinline__ void round(uint32_t (&words)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int k = 0; k < 4; ++k) words[k] = round_to_tf32(words[k]);
    }
  }
};

// The product without tensor cores: float32 as it is, and float64. 16 x 16 threads have kRows x kColumns sums
// each. Neighbouring threads read neighbouring rows, or neighbouring chunks where the extent is inner.
template <class T, class TileA, class TileB>
struct Fma {
  using Acc = T;
  static constexpr bool kInner = std::is_same_v<TileA, DepthInner<T, TileA::kExtent>>;
  static constexpr int kSide = 16;
  static constexpr int kRows = TileA::kExtent / kSide;
  static constexpr int kColumns = TileB::kExtent / kSide;
  static_assert(kSide * kSide == kConvThreads && kRows % kChunk<T> == 0 && kColumns % kChunk<T> == 0);

  T sums[kRows][kColumns] = {};

  __device__ __forceinline__ void multiply(const char* a, const char* b) {
    kInner ? multiply_chunks(a, b) : multiply_terms(a, b);
  }

  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        f(element(threadIdx.x / kSide, i), element(threadIdx.x % kSide, j), sums[i][j]);
    }
  }

 private:
  static __device__ __forceinline__ int element(int thread, int i) {
    return kInner ? thread + i * kSide : (thread + i / kChunk<T> * kSide) * kChunk<T> + i % kChunk<T>;
  }

  __device__ __forceinline__ void multiply_chunks(const char* a, const char* b) {
    const int down = threadIdx.x / kSide, across = threadIdx.x % kSide;
    for (int chunk = 0; chunk < TileA::kChunksPerRow; ++chunk) {
      T columns[kColumns][kChunk<T>];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) load(b + TileB::offset(across + j * kSide, chunk), columns[j]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        T row[kChunk<T>];
        load(a + TileA::offset(down + i * kSide, chunk), row);
#pragma unroll
        for (int k = 0; k < kChunk<T>; ++k) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) sums[i][j] += row[k] * columns[j][k];
        }
      }
    }
  }

  __device__ __forceinline__ void multiply_terms(const char* a, const char* b) {
    const int down = threadIdx.x / kSide, across = threadIdx.x % kSide;
#pragma unroll 4
    for (int term = 0; term < kDepth<T>; ++term) {
      T rows[kRows / kChunk<T>][kChunk<T>], columns[kColumns / kChunk<T>][kChunk<T>];
#pragma unroll
      for (int i = 0; i < kRows / kChunk<T>; ++i) load(a + TileA::offset(term, down + i * kSide), rows[i]);
#pragma unroll
      for (int j = 0; j < kColumns / kChunk<T>; ++j)
        load(b + TileB::offset(term, across + j * kSide), columns[j]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          sums[i][j] += rows[i / kChunk<T>][i % kChunk<T>] * columns[j / kChunk<T>][j % kChunk<T>];
      }
    }
  }

  static __device__ __forceinline__ void load(const char* p, T (&values)[kChunk<T>]) {
    widen(load_pack(reinterpret_cast<const T*>(p)), values);
  }
};

// Sums the products of `steps` pairs of tiles. A loader's fetch(tile, step) starts the loads of a step, by
// asynchronous copies or into registers, and finish(tile) stores what is in registers; steps come in order.
// While one stage is multiplied, kStages - 1 are on their way.
template <class TileA, class TileB, class Product, class LoaderA, class LoaderB>
__device__ __forceinline__ void sum_products(char* shared, int steps, Product& product, LoaderA& a,
                                             LoaderB& b) {
  constexpr int kBytes = TileA::kBytes + TileB::kBytes;
  for (int step = 0; step < kStages - 1; ++step) {
    char* const tile = shared + step * kBytes;
    if (step < steps) {
      a.fetch(tile, step);
      b.fetch(tile + TileA::kBytes, step);
      a.finish(tile);
      b.finish(tile + TileA::kBytes);
    }
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the stage is complete, and no thread reads the one that is filled next
    const int ahead = step + kStages - 1;
    char* const next = shared + ahead % kStages * kBytes;
    if (ahead < steps) {
      a.fetch(next, ahead);
      b.fetch(next + TileA::kBytes, ahead);
    }
    commit_copies();
    const char* const tile = shared + step % kStages * kBytes;
    product.multiply(tile, tile + TileA::kBytes);
    if (ahead < steps) {
      a.finish(next);
      b.finish(next + TileA::kBytes);
    }
  }
  wait_for_copies<0>();
  __syncthreads();
}

template <class TileA, class TileB>
constexpr int kPipelineBytes = kStages * (TileA::kBytes + TileB::kBytes);

}  // namespace pyops::cuda
