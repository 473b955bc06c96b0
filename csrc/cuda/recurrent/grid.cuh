// The whole time loop of a recurrent layer in one cooperative launch, for weights too many for one block.
//
// Block (x, y) keeps the recurrent weights of 16 units in shared memory for the whole loop. In every step it
// forms these units' gates for tiles of 16 sequences: y, y + gridDim.y, ... The states of a tile go from step
// to step through the output in global memory, its gate gradients through d. A counter per tile says how many
// blocks have written theirs. So a block waits once per step and tile, only for blocks with the same
// sequences, and while one tile's states are on their way it works on another.
//
// The eight warps of a block share the depth of a product. Their sums are added in shared memory, in a fixed
// order. Cf. Diamos et al. 2016, "Persistent RNNs" (weights that stay on the chip).
#pragma once

#include "cuda/device/grid_sync.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/recurrent/step.cuh"

namespace pyops::cuda {

constexpr int kGridUnits = 16;
constexpr int kGridSequences = 16;
constexpr int kGridThreads = kGridUnits * kGridSequences;
constexpr int kGridWarps = kGridThreads / 32;

// With more tiles per block, the vendor's products, with launches for every step, are assumed to be faster.
constexpr int64_t kMostGridTiles = 4;

// The depth is cut into slabs of 64 bytes. Each lane of a quad loads 16 of them at once: factors for two
// products of the tensor cores. The order of terms within a slab is not that of memory, but it is the same
// for both factors, so it does not matter.
constexpr int64_t kSlabBytes = 64;

// Weights in shared memory, [tiles of 16 rows][depth], with zeros behind the last unit and the depth. Rows
// lie an odd number of slabs apart: eight neighbouring lanes, which read two rows, have no bank conflicts.
template <class T>
struct GridWeights {
  char* memory;
  int64_t slabs;

  static constexpr int64_t kSlab = kSlabBytes / sizeof(T);
  static PYOPS_HD int64_t slabs_of(int64_t depth) { return (depth + kSlab - 1) / kSlab; }
  static PYOPS_HD int64_t stride(int64_t slabs) { return (slabs | 1) * kSlabBytes; }

  __device__ __forceinline__ const uint4& at(int row, int64_t slab, int part) const {
    return *reinterpret_cast<const uint4*>(memory + row * stride(slabs) + slab * kSlabBytes + part * 16);
  }

  // Calls read(row, k) for every row. kTermsFirst: neighbouring threads have neighbouring terms, not rows.
  template <bool kTermsFirst, class Read>
  __device__ __forceinline__ void fill(int rows, const Read& read) const {
    const int64_t terms = slabs * kSlab;
    for (int64_t i = threadIdx.x; i < rows * terms; i += kGridThreads) {
      const int64_t row = kTermsFirst ? i / terms : i % rows, k = kTermsFirst ? i % terms : i / rows;
      reinterpret_cast<T*>(memory + row * stride(slabs))[k] = read(static_cast<int>(row), k);
    }
  }
};

// The vectors of a product, one per sequence: the first `recent_count` come from the step before, the others,
// up to `count`, from the initial state.
template <class T>
struct VectorRows {
  const T* recent;
  int64_t recent_count;
  const T* initial;
  int64_t count;

  __device__ __forceinline__ const T* at(int64_t b, int64_t length) const {
    if (b < recent_count) return recent + b * length;
    return b < count ? initial + b * length : nullptr;
  }
};

// A thread's sums of `tiles` x 16 rows of weights and 16 sequences: rows lane / 4 + {0, 8}, sequences
// 2 (lane % 4) + {0, 1, 8, 9}, as the tensor cores lay them out: sums[t][i][2 j + e] is of row j, sequence
// 8 i + e.
template <class T, int kTiles>
using GridSums = acc_t<T>[kTiles][2][4];

template <class T>
__device__ __forceinline__ Pack<T> load_vector(const T* row, int64_t k, int64_t depth) {
  return row != nullptr && k < depth ? load_shared_pack(row + k) : Pack<T>{{0, 0, 0, 0}};
}

// bfloat16, float16, or float rounded to TF32, on the tensor cores.
template <class T>
struct GridTensorCores {
  static constexpr int kVectors = 2;
  static constexpr int kAhead = 4;  // slabs whose loads are on their way together

  static __device__ __forceinline__ int sequence(int i) { return 8 * i + threadIdx.x % 32 / 4; }
  static __device__ __forceinline__ T rounded(T weight) {
    if constexpr (sizeof(T) == 4) return bit_cast<T>(round_to_tf32(bit_cast<uint32_t>(weight)));
    return weight;
  }
  static __device__ __forceinline__ MatrixB factor(uint32_t low, uint32_t high) {
    if constexpr (sizeof(T) == 4) return {{round_to_tf32(low), round_to_tf32(high)}};
    return {{low, high}};
  }

  template <int kTiles>
  static __device__ __forceinline__ void add(const GridWeights<T>& weights, const T* const (&rows)[kVectors],
                                             int64_t depth, GridSums<T, kTiles>& sums) {
    const int quarter = threadIdx.x % 4, row = threadIdx.x % 32 / 4;
    for (int64_t first = threadIdx.x / 32; first < weights.slabs; first += kAhead * kGridWarps) {
      Pack<T> vectors[kAhead][kVectors];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t k = (first + a * kGridWarps) * GridWeights<T>::kSlab + quarter * Pack<T>::kSize;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) vectors[a][i] = load_vector(rows[i], k, depth);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t slab = first + a * kGridWarps;
        if (slab >= weights.slabs) break;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 upper = weights.at(16 * t + row, slab, quarter);
          const uint4 lower = weights.at(16 * t + 8 + row, slab, quarter);
#pragma unroll
          for (int i = 0; i < kVectors; ++i) {
            const uint4 v = vectors[a][i].bits;
            multiply_add<T>(sums[t][i], {{upper.x, lower.x, upper.y, lower.y}}, factor(v.x, v.y));
            multiply_add<T>(sums[t][i], {{upper.z, lower.z, upper.w, lower.w}}, factor(v.z, v.w));
          }
        }
      }
    }
  }
};

// float as it is, without tensor cores.
template <class T>
struct GridFma {
  static constexpr int kVectors = 4;

  static __device__ __forceinline__ int sequence(int i) { return i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2; }
  static __device__ __forceinline__ T rounded(T weight) { return weight; }

  template <int kTiles>
  static __device__ __forceinline__ void add(const GridWeights<T>& weights, const T* const (&rows)[kVectors],
                                             int64_t depth, GridSums<T, kTiles>& sums) {
    constexpr int kSize = Pack<T>::kSize;
    const int row = threadIdx.x % 32 / 4;
    for (int64_t slab = threadIdx.x / 32; slab < weights.slabs; slab += kGridWarps) {
      Pack<T> vectors[4][kVectors];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          vectors[part][i] = load_vector(rows[i], slab * GridWeights<T>::kSlab + part * kSize, depth);
        }
      }
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        acc_t<T> v[kVectors][kSize];
#pragma unroll
        for (int i = 0; i < kVectors; ++i) widen(vectors[part][i], v[i]);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            acc_t<T> w[kSize];
            widen(Pack<T>{weights.at(16 * t + 8 * j + row, slab, part)}, w);
#pragma unroll
            for (int i = 0; i < kVectors; ++i) {
#pragma unroll
              for (int e = 0; e < kSize; ++e) sums[t][i / 2][2 * j + i % 2] += w[e] * v[i][e];
            }
          }
        }
      }
    }
  }
};

// The warps' sums, and what a block keeps of its tiles from step to step.
template <class T>
struct GridShared {
  using Acc = acc_t<T>;
  GridWeights<T> weights;
  Acc* partial;    // [warps][tiles of rows][sequences][kStride]
  Acc* carry;      // [own tiles][2][threads]
  unsigned* done;  // [own tiles]: steps; the first thread's

  static constexpr int kStride = kGridUnits + 4;  // the threads of a warp write to different banks

  static int64_t partial_size(int tiles) { return int64_t{kGridWarps} * tiles * kGridSequences * kStride; }
  static int64_t bytes(int64_t slabs, int tiles) {
    return tiles * 16 * GridWeights<T>::stride(slabs) +
           (partial_size(tiles) + kMostGridTiles * 2 * kGridThreads) * sizeof(Acc) +
           kMostGridTiles * sizeof(unsigned);
  }

  __device__ GridShared(char* memory, int64_t slabs, int tiles) : weights{memory, slabs} {
    partial = reinterpret_cast<Acc*>(memory + tiles * 16 * GridWeights<T>::stride(slabs));
    carry = partial + kGridWarps * tiles * kGridSequences * kStride;
    done = reinterpret_cast<unsigned*>(carry + kMostGridTiles * 2 * kGridThreads);
    if (threadIdx.x == 0) {
      for (int own = 0; own < kMostGridTiles; ++own) done[own] = 0;
    }
  }

  // What this thread's unit and sequence of that tile carry to the next step.
  __device__ __forceinline__ Acc& carried(int own, int which) const {
    return carry[(2 * own + which) * kGridThreads + threadIdx.x];
  }

  // The product of all rows of weights and a tile's vectors, summed over the warps. A thread gets the sums of
  // its unit and sequence, one for every tile of rows.
  template <class Product, int kTiles>
  __device__ __forceinline__ void multiply(const VectorRows<T>& vectors, int64_t first, int64_t length,
                                           Acc (&found)[kTiles]) const {
    const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    const T* rows[Product::kVectors];
#pragma unroll
    for (int i = 0; i < Product::kVectors; ++i) rows[i] = vectors.at(first + Product::sequence(i), length);
    GridSums<T, kTiles> sums = {};
    Product::template add<kTiles>(weights, rows, length, sums);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int sequence = 8 * i + column + j % 2;
          partial[((warp * kTiles + t) * kGridSequences + sequence) * kStride + row + j / 2 * 8] =
              sums[t][i][j];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      found[t] = 0;
#pragma unroll
      for (int w = 0; w < kGridWarps; ++w) {
        const int sequence = (w * kTiles + t) * kGridSequences + threadIdx.x / kGridUnits;
        found[t] += partial[sequence * kStride + threadIdx.x % kGridUnits];
      }
    }
  }
};

// What a thread works on: a unit, and a sequence of every tile of the block.
struct GridPlace {
  int64_t first_unit = static_cast<int64_t>(blockIdx.x) * kGridUnits;
  int64_t unit = first_unit + threadIdx.x % kGridUnits;
  int64_t in_tile = threadIdx.x / kGridUnits;
};

// counters [tiles of sequences]: zeros.
template <class T, class Cell, class Product>
__global__ void __launch_bounds__(kGridThreads, 1)
    grid_forward(ForwardData<T> at, DeviceSteps steps, int64_t H, const T* weight_hh, unsigned* counters) {
  using Acc = acc_t<T>;
  constexpr int G = Cell::kGates;
  const GridPlace me;
  PYOPS_DYNAMIC_SHARED(memory);
  const GridShared<T> shared(memory, GridWeights<T>::slabs_of(H), G);
  shared.weights.template fill<true>(G * kGridUnits, [&](int row, int64_t k) {
    const int64_t u = me.first_unit + row % kGridUnits;
    return u < H && k < H ? Product::rounded(weight_hh[(row / kGridUnits * H + u) * H + k]) : T{};
  });
  for (int64_t i = 0; i < steps.steps; ++i) {
    const StepPlace place = steps.forward(i);
    const VectorRows<T> states{at.output + place.before * H, place.before_count, at.h_0, place.count};
    int own = 0;
    for (int64_t tile = blockIdx.y; tile * kGridSequences < place.count; tile += gridDim.y, ++own) {
      const int64_t first = tile * kGridSequences, b = first + me.in_tile, row = place.first + b;
      const bool exists = me.unit < H && b < place.count;
      GateInputs<T, Cell> inputs;
      Acc h = 0, c = 0;
      if (exists) {
        inputs = GateInputs<T, Cell>(at, row, me.unit, H);
        if (b < place.before_count) {
          h = shared.carried(own, 0);
          if (Cell::kHasCell) c = shared.carried(own, 1);
        } else {
          read_initial<T, Cell>(at, b, me.unit, H, h, c);
        }
      }
      wait_for(counters + tile, threadIdx.x == 0 ? shared.done[own] * gridDim.x : 0);
      Acc sums[G];
      shared.template multiply<Product, G>(states, first, H, sums);
      const auto now = advance<T, Cell>(inputs, sums, h, c);
      if (exists) at.output[row * H + me.unit] = from_acc<T>(now.h);
      announce(counters + tile);
      if (threadIdx.x == 0) ++shared.done[own];
      if (exists) {
        keep<T, Cell>(at, place, b, me.unit, H, now);
        shared.carried(own, 0) = now.h;
        if (Cell::kHasCell) shared.carried(own, 1) = now.extra;
      }
    }
  }
}

template <class T, class Cell, class Product>
__global__ void __launch_bounds__(kGridThreads, 1)
    grid_backward(BackwardData<T> at, DeviceSteps steps, int64_t H, const T* weight_hh, unsigned* counters) {
  using Acc = acc_t<T>;
  const int64_t length = Cell::kGates * H;
  const GridPlace me;
  PYOPS_DYNAMIC_SHARED(memory);
  const GridShared<T> shared(memory, GridWeights<T>::slabs_of(length), 1);
  shared.weights.template fill<false>(kGridUnits, [&](int row, int64_t k) {
    const int64_t u = me.first_unit + row;
    return u < H && k < length ? Product::rounded(weight_hh[k * H + u]) : T{};
  });
  for (int64_t i = 0; i <= steps.steps; ++i) {
    const StepPlace place = steps.backward(i);
    const int64_t concerned = place.count > place.after_count ? place.count : place.after_count;
    const VectorRows<T> gradients{at.d + place.after * length, place.after_count, nullptr, 0};
    int own = 0;
    for (int64_t tile = blockIdx.y; tile * kGridSequences < concerned; tile += gridDim.y, ++own) {
      const int64_t first = tile * kGridSequences, b = first + me.in_tile, row = place.first + b;
      const bool exists = me.unit < H && b < place.count, ends = b >= place.after_count;
      SavedUnit<T, Cell> saved;
      Acc carry = 0;
      if (exists) saved = SavedUnit<T, Cell>(at, place, b, me.unit, H);
      if (me.unit < H && !ends) carry = shared.carried(own, 0);
      wait_for(counters + tile, threadIdx.x == 0 ? shared.done[own] * gridDim.x : 0);
      Acc sums[1];
      shared.template multiply<Product, 1>(gradients, first, length, sums);
      if (!exists && me.unit < H && !ends && at.grad_h_0 != nullptr) {
        // The step of the round before was this sequence's first.
        store_initial<T, Cell>(at.grad_h_0, at.grad_c_0, b * H + me.unit, sums[0], carry);
      }
      const auto now = retreat<T, Cell>(saved, ends, sums[0], carry);
      if (exists) store_gradients<T, Cell>(at, row, me.unit, H, now);
      announce(counters + tile);
      if (threadIdx.x == 0) ++shared.done[own];
      if (exists) {
        keep_gradients<T, Cell>(at, row, me.unit, H, now);
        shared.carried(own, 0) = carry;
      }
    }
  }
}

}  // namespace pyops::cuda
