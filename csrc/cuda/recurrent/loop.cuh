// The whole time loop of a recurrent layer in one launch whose blocks never wait for each other: each has
// all recurrent weights in its shared memory, and some of the sequences.
#pragma once

#include "cuda/recurrent/step.cuh"

namespace pyops::cuda {

// Every GPU since 8.0 grants a block this much shared memory; more than 48 KiB has to be asked for.
constexpr int64_t kLoopSharedBytes = 96 << 10;

// A thread has one unit of so many sequences, and keeps their sums in registers.
constexpr int kLoopSequences = 4;

// Threads of a block, beyond which more blocks are better.
constexpr int kLoopThreads = 128;

// The most units that one block has.
constexpr int kMostLoopThreads = 256;

// The shared memory of a block: the weights, transposed so that neighbouring threads, which have neighbouring
// units, read neighbouring numbers; and the vectors that they multiply, twice. The next step's vectors are
// written while this step's are read, so one barrier per step is enough. Their pointers are swapped: an array
// of them, indexed by the step, would lie in local memory. Zeros follow weights and vectors, up to whole
// packs.
template <class T>
struct LoopShared {
  using Acc = acc_t<T>;
  static constexpr int kSize = Pack<Acc>::kSize;

  T* weights;  // [depth, columns]
  Acc* now;    // [sequences, depth]
  Acc* next;
  int64_t columns;
  int64_t depth;

  static PYOPS_HD int64_t whole_packs(int64_t length) { return (length + kSize - 1) / kSize * kSize; }
  static PYOPS_HD int64_t weight_bytes(int64_t columns, int64_t length) {
    return (columns * whole_packs(length) * sizeof(T) + kPackBytes - 1) / kPackBytes * kPackBytes;
  }
  static int64_t bytes(int64_t columns, int64_t length, int64_t sequences) {
    return weight_bytes(columns, length) + 2 * sequences * whole_packs(length) * sizeof(Acc);
  }

  // Calls weight(k, column) once for each.
  template <class Weight>
  __device__ LoopShared(char* memory, int64_t columns_, int64_t length, const Weight& weight)
      : columns(columns_), depth(whole_packs(length)) {
    weights = reinterpret_cast<T*>(memory);
    now = reinterpret_cast<Acc*>(memory + weight_bytes(columns, length));
    const int64_t vectors = blockDim.y * kLoopSequences * depth;
    next = now + vectors;
    const int64_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (int64_t i = thread; i < columns * depth; i += threads) {
      const int64_t k = i / columns;
      weights[i] = k < length ? weight(k, i - k * columns) : T{};
    }
    for (int64_t i = thread; i < 2 * vectors; i += threads) now[i] = Acc(0);
    __syncthreads();
  }

  __device__ void swap() {
    Acc* const other = now;
    now = next;
    next = other;
  }

  // The products of this thread's vectors and the columns u, u + H, ...
  template <int kColumns>
  __device__ __forceinline__ void multiply(int64_t u, int64_t H,
                                           Acc (&sums)[kLoopSequences][kColumns]) const {
    const Acc* const vectors = now + threadIdx.y * kLoopSequences * depth;
    for (int64_t first = 0; first < depth; first += kSize) {
      Acc v[kLoopSequences][kSize];
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) widen(load_pack(vectors + b * depth + first), v[b]);
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
#pragma unroll
        for (int g = 0; g < kColumns; ++g) {
          const Acc w = to_acc(weights[(first + e) * columns + g * H + u]);
#pragma unroll
          for (int b = 0; b < kLoopSequences; ++b) sums[b][g] += v[b][e] * w;
        }
      }
    }
  }
};

// threadIdx.x is the unit, threadIdx.y the group of kLoopSequences sequences.
template <class T, class Cell>
__global__ void __launch_bounds__(kMostLoopThreads, 1)
    loop_forward(ForwardData<T> at, DeviceSteps steps, int64_t H, const T* weight_hh) {
  using Acc = acc_t<T>;
  constexpr int G = Cell::kGates;
  const int64_t u = threadIdx.x;
  const int64_t in_block = threadIdx.y * kLoopSequences, sequences = blockDim.y * kLoopSequences;
  const int64_t first = blockIdx.x * sequences + in_block;
  PYOPS_DYNAMIC_SHARED(memory);
  LoopShared<T> shared(memory, G * H, H, [&](int64_t k, int64_t row) { return weight_hh[row * H + k]; });
  Acc c[kLoopSequences] = {};
#pragma unroll
  for (int b = 0; b < kLoopSequences; ++b) {
    if (u >= H || first + b >= steps.batch) break;
    read_initial<T, Cell>(at, first + b, u, H, shared.now[(in_block + b) * shared.depth + u], c[b]);
  }
  __syncthreads();
  for (int64_t i = 0; i < steps.steps; ++i) {
    const StepPlace place = steps.forward(i);
    if (place.count <= blockIdx.x * sequences) continue;  // none of the block's sequences has this step
    const Acc* const h = shared.now + in_block * shared.depth + u;
    Acc* const next = shared.next + in_block * shared.depth + u;
    if (u < H) {
      GateInputs<T, Cell> inputs[kLoopSequences];
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        if (first + b < place.count) inputs[b] = GateInputs<T, Cell>(at, place.first + first + b, u, H);
      }
      Acc sums[kLoopSequences][G] = {};
      shared.multiply(u, H, sums);
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        // A sequence without this step has not begun yet, or is over.
        if (first + b >= place.count) {
          next[b * shared.depth] = h[b * shared.depth];
          continue;
        }
        const auto now = advance<T, Cell>(inputs[b], sums[b], h[b * shared.depth], c[b]);
        at.output[(place.first + first + b) * H + u] = from_acc<T>(now.h);
        keep<T, Cell>(at, place, first + b, u, H, now);
        next[b * shared.depth] = now.h;
        if (Cell::kHasCell) c[b] = now.extra;
      }
    }
    shared.swap();
    __syncthreads();
  }
}

template <class T, class Cell>
__global__ void __launch_bounds__(kMostLoopThreads, 1)
    loop_backward(BackwardData<T> at, DeviceSteps steps, int64_t H, const T* weight_hh) {
  using Acc = acc_t<T>;
  constexpr int G = Cell::kGates;
  const int64_t u = threadIdx.x, length = G * H;
  const int64_t in_block = threadIdx.y * kLoopSequences, sequences = blockDim.y * kLoopSequences;
  const int64_t first = blockIdx.x * sequences + in_block;
  PYOPS_DYNAMIC_SHARED(memory);
  LoopShared<T> shared(memory, H, length, [&](int64_t k, int64_t unit) { return weight_hh[k * H + unit]; });
  Acc carry[kLoopSequences] = {};
  for (int64_t i = 0; i <= steps.steps; ++i) {
    const StepPlace place = steps.backward(i);
    if (place.count <= blockIdx.x * sequences && place.after_count <= blockIdx.x * sequences) continue;
    Acc* const next = shared.next + in_block * shared.depth + u;
    if (u < H) {
      SavedUnit<T, Cell> saved[kLoopSequences];
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        if (first + b < place.count) saved[b] = SavedUnit<T, Cell>(at, place, first + b, u, H);
      }
      Acc sums[kLoopSequences][1] = {};
      shared.multiply(u, H, sums);
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        const int64_t sequence = first + b;
        if (sequence < place.count) {
          const auto now = retreat<T, Cell>(saved[b], sequence >= place.after_count, sums[b][0], carry[b]);
          store_gradients<T, Cell>(at, place.first + sequence, u, H, now);
          keep_gradients<T, Cell>(at, place.first + sequence, u, H, now);
#pragma unroll
          for (int g = 0; g < G; ++g) next[b * shared.depth + g * H] = now.d[g];
        } else if (sequence < place.after_count && at.grad_h_0 != nullptr) {
          // The step of the round before was this sequence's first.
          store_initial<T, Cell>(at.grad_h_0, at.grad_c_0, sequence * H + u, sums[b][0], carry[b]);
        }
      }
    }
    shared.swap();
    __syncthreads();
  }
}

}  // namespace pyops::cuda
