// Kernels of the recurrent layers' time loop on CUDA.
//
// A layer whose recurrent weights fit the shared memory of one block runs its whole loop in one launch
// (loop_forward, loop_backward): a block has some of the sequences and never waits for another. Otherwise
// each step is a product by the vendor's library and one pass over its result (step_forward, step_backward).
#pragma once

#include "../binding/recurrent.h"
#include "launch.h"
#include "memory.cuh"

namespace pyops::cuda {

// What the blocks of a launch share beyond 48 KiB has to be asked for; all GPUs since 8.0 grant this much.
constexpr int64_t kLoopSharedBytes = 96 << 10;

// A thread has one unit of this many sequences, whose sums it keeps in registers.
constexpr int kLoopSequences = 4;

// Sequences of a block beyond which more blocks are better.
constexpr int kLoopThreads = 128;

// The most units that one block has.
constexpr int kMostLoopThreads = 256;

// Where a step's rows are: sequence b of the step has row first + b, and its predecessor in time row
// before + b for b < before_count, otherwise the initial state. `ending`: sequences from this one on end
// here.
struct StepPlace {
  int64_t first;
  int64_t count;
  int64_t before;
  int64_t before_count;
  int64_t ending;
};

template <class T>
struct ForwardData {
  const T* x;  // [rows, G H]: the input's share of the gates
  const T* bias_ih;
  const T* bias_hh;
  const T* h_0;
  const T* c_0;
  T* gates;  // null: not saved
  T* extra;
  T* output;
  T* h_n;
  T* c_n;
};

template <class T>
struct BackwardData {
  const T* grad_output;
  const T* grad_h_n;
  const T* grad_c_n;
  const T* gates;
  const T* extra;
  const T* output;
  const T* h_0;
  const T* c_0;
  T* d;        // [rows, G H]: gradients of the state's shares of the gates
  T* d_input;  // [rows, G H]: of the input's shares, where they differ
  T* grad_h_0;
  T* grad_c_0;
};

template <class T>
__device__ __forceinline__ acc_t<T> read_or_zero(const T* from, int64_t index) {
  return from == nullptr ? acc_t<T>(0) : to_acc(from[index]);
}

// One unit of one sequence: the sums of the state's share become its new state, which is returned.
template <class T, class Cell>
__device__ __forceinline__ acc_t<T> advance(const ForwardData<T>& at, const StepPlace& place, int64_t b,
                                            int64_t u, int64_t H, const acc_t<T> (&sums)[Cell::kGates],
                                            acc_t<T> h, acc_t<T>& c) {
  using Acc = acc_t<T>;
  const int64_t row = place.first + b;
  Acc x[Cell::kGates], s[Cell::kGates];
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    const int64_t column = g * H + u;
    x[g] = to_acc(at.x[row * Cell::kGates * H + column]) + read_or_zero(at.bias_ih, column);
    s[g] = sums[g] + read_or_zero(at.bias_hh, column);
  }
  const auto now = Cell::forward(x, s, h, c);
  at.output[row * H + u] = from_acc<T>(now.h);
  if (b >= place.ending) at.h_n[b * H + u] = from_acc<T>(now.h);
  if (Cell::kHasCell) {
    c = now.extra;
    if (b >= place.ending) at.c_n[b * H + u] = from_acc<T>(c);
  }
  if (Cell::kSavesGates && at.gates != nullptr) {
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      at.gates[(row * Cell::kGates + g) * H + u] = from_acc<T>(now.gates_[g]);
    }
    at.extra[row * H + u] = from_acc<T>(now.extra);
  }
  return now.h;
}

// One unit of one sequence backward: `sum` comes from the next step's gate gradients, `carry` is c's or, in a
// GRU, h's. Returns the gradients of the state's shares of the gates.
template <class T, class Cell>
__device__ __forceinline__ void retreat(const BackwardData<T>& at, const StepPlace& place, int64_t b,
                                        int64_t u, int64_t H, acc_t<T> sum, acc_t<T>& carry,
                                        acc_t<T> (&d)[Cell::kGates]) {
  using Acc = acc_t<T>;
  constexpr bool kCarriesState = Cell::kSplitsBias;
  const int64_t row = place.first + b, state = b * H + u;
  const bool ends = b >= place.ending, begins = b >= place.before_count;
  Acc dh = read_or_zero(at.grad_output, row * H + u), dc = 0;
  if (ends) {
    dh += read_or_zero(at.grad_h_n, state);
    if (Cell::kHasCell) dc = read_or_zero(at.grad_c_n, state);
  } else {
    dh += sum;
    if (kCarriesState) dh += carry;
    if (Cell::kHasCell) dc = carry;
  }
  Acc gates[Cell::kGates] = {}, extra = 0, c_before = 0;
  if (Cell::kSavesGates) {
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      gates[g] = to_acc(at.gates[(row * Cell::kGates + g) * H + u]);
    }
    extra = to_acc(at.extra[row * H + u]);
  }
  const int64_t before = (place.before + b) * H + u;
  const Acc h_before = to_acc(begins ? at.h_0[state] : at.output[before]);
  if (Cell::kHasCell) c_before = to_acc(begins ? at.c_0[state] : at.extra[before]);
  const auto now = Cell::backward(dh, dc, gates, extra, h_before, c_before, to_acc(at.output[row * H + u]));
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) {
    const int64_t to = (row * Cell::kGates + g) * H + u;
    d[g] = now.d[g];
    at.d[to] = from_acc<T>(now.d[g]);
    if (Cell::kSplitsBias) {
      at.d_input[to] = from_acc<T>(now.d[g == Cell::kGates - 1 ? Cell::kGradients - 1 : g]);
    }
  }
  carry = Cell::kHasCell ? now.dc : now.dh;
}

// ---- one step -------------------------------------------------------------------------------------------

constexpr int kStepThreads = 256;

// sums [count, G H] = h @ weight_hh.t(); h and c [N, H] are the state, which c keeps in the accumulation
// type.
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    step_forward(ForwardData<T> at, StepPlace place, int64_t H, const T* sums, T* h, acc_t<T>* c) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < place.count * H;
       i += threads) {
    const int64_t b = i / H, u = i - b * H;
    acc_t<T> s[Cell::kGates], cell = Cell::kHasCell ? c[i] : acc_t<T>(0);
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) s[g] = to_acc(sums[(b * Cell::kGates + g) * H + u]);
    h[i] = from_acc<T>(advance<T, Cell>(at, place, b, u, H, s, to_acc(h[i]), cell));
    if (Cell::kHasCell) c[i] = cell;
  }
}

// sums [count, H] = the next step's gradients @ weight_hh; carry [N, H].
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    step_backward(BackwardData<T> at, StepPlace place, int64_t H, const T* sums, acc_t<T>* carry) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < place.count * H;
       i += threads) {
    const int64_t b = i / H, u = i - b * H;
    acc_t<T> d[Cell::kGates];
    retreat<T, Cell>(at, place, b, u, H, b < place.ending ? to_acc(sums[i]) : acc_t<T>(0), carry[i], d);
  }
}

// The gradients of the initial states, from the sums behind the first step and what was carried to it.
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    initial_gradients(int64_t n, const T* sums, const acc_t<T>* carry, T* grad_h_0, T* grad_c_0) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads) {
    grad_h_0[i] = from_acc<T>(to_acc(sums[i]) + (Cell::kSplitsBias ? carry[i] : acc_t<T>(0)));
    if (Cell::kHasCell) grad_c_0[i] = from_acc<T>(carry[i]);
  }
}

// ---- the whole loop -------------------------------------------------------------------------------------

// The shared memory of a loop's block: the weights, and the vectors that they multiply, twice, so that one
// barrier a step is enough: the next step's are written while this step's are read. The two swap by pointer:
// an array of them, indexed by the step, would lie in local memory.
template <class T>
struct LoopShared {
  T* weights;
  acc_t<T>* now;
  acc_t<T>* next;

  static int64_t bytes(int64_t columns, int64_t units, int64_t sequences, int64_t length) {
    return (columns * units * sizeof(T) + 15) / 16 * 16 + 2 * sequences * length * sizeof(acc_t<T>);
  }
  __device__ void swap() {
    acc_t<T>* const other = now;
    now = next;
    next = other;
  }
  __device__ LoopShared(void* memory, int64_t weight_count, int64_t sequences, int64_t length) {
    weights = static_cast<T*>(memory);
    char* const behind = static_cast<char*>(memory) + (weight_count * sizeof(T) + 15) / 16 * 16;
    now = reinterpret_cast<acc_t<T>*>(behind);
    next = now + sequences * length;
  }
};

// All sequences have the same steps, forward or reverse in time. threadIdx.x is the unit, threadIdx.y the
// group of kLoopSequences sequences.
struct LoopPlan {
  int64_t steps;
  int64_t batch;
  int64_t H;
  bool reverse;

  __device__ StepPlace at(int64_t t) const {
    const int64_t before = reverse ? t + 1 : t - 1;
    const bool begins = before < 0 || before >= steps, ends = t == (reverse ? 0 : steps - 1);
    return {t * batch, batch, before * batch, begins ? 0 : batch, ends ? 0 : batch};
  }
};

template <class T, class Cell>
__global__ void __launch_bounds__(kMostLoopThreads, 1)
    loop_forward(ForwardData<T> at, LoopPlan plan, const T* weight_hh) {
  using Acc = acc_t<T>;
  constexpr int G = Cell::kGates;
  const int64_t H = plan.H, u = threadIdx.x;
  const int64_t in_block = threadIdx.y * kLoopSequences, sequences = blockDim.y * kLoopSequences;
  const int64_t first = blockIdx.x * sequences + in_block;
  PYOPS_DYNAMIC_SHARED(memory);
  LoopShared<T> shared(memory, G * H * H, sequences, H);
  // Transposed: neighbouring threads, which have neighbouring units, read neighbouring weights.
  const int64_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  for (int64_t i = thread; i < G * H * H; i += threads) {
    const int64_t row = i / H, k = i - row * H;
    shared.weights[k * G * H + row] = weight_hh[i];
  }
  Acc c[kLoopSequences] = {};
#pragma unroll
  for (int b = 0; b < kLoopSequences; ++b) {
    const bool exists = u < H && first + b < plan.batch;
    if (u < H) shared.now[(in_block + b) * H + u] = exists ? to_acc(at.h_0[(first + b) * H + u]) : Acc(0);
    if (Cell::kHasCell && exists) c[b] = to_acc(at.c_0[(first + b) * H + u]);
  }
  __syncthreads();
  for (int64_t i = 0; i < plan.steps; ++i) {
    const Acc* const h = shared.now + in_block * H;
    Acc* const next = shared.next + in_block * H;
    if (u < H) {
      Acc sums[kLoopSequences][G] = {};
      for (int64_t k = 0; k < H; ++k) {
        Acc w[G];
#pragma unroll
        for (int g = 0; g < G; ++g) w[g] = to_acc(shared.weights[(k * G + g) * H + u]);
#pragma unroll
        for (int b = 0; b < kLoopSequences; ++b) {
#pragma unroll
          for (int g = 0; g < G; ++g) sums[b][g] += h[b * H + k] * w[g];
        }
      }
      const StepPlace place = plan.at(plan.reverse ? plan.steps - 1 - i : i);
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        if (first + b >= plan.batch) break;
        next[b * H + u] = advance<T, Cell>(at, place, first + b, u, H, sums[b], h[b * H + u], c[b]);
      }
    }
    shared.swap();
    __syncthreads();
  }
}

template <class T, class Cell>
__global__ void __launch_bounds__(kMostLoopThreads, 1)
    loop_backward(BackwardData<T> at, LoopPlan plan, const T* weight_hh) {
  using Acc = acc_t<T>;
  constexpr int G = Cell::kGates;
  const int64_t H = plan.H, u = threadIdx.x, length = G * H;
  const int64_t in_block = threadIdx.y * kLoopSequences, sequences = blockDim.y * kLoopSequences;
  const int64_t first = blockIdx.x * sequences + in_block;
  PYOPS_DYNAMIC_SHARED(memory);
  LoopShared<T> shared(memory, length * H, sequences, length);
  const int64_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  for (int64_t i = thread; i < length * H; i += threads) shared.weights[i] = weight_hh[i];
  // No step comes before the last.
  for (int64_t i = thread; i < 2 * sequences * length; i += threads) shared.now[i] = Acc(0);
  Acc carry[kLoopSequences] = {};
  __syncthreads();
  for (int64_t i = 0; i <= plan.steps; ++i) {
    const Acc* const d = shared.now + in_block * length;
    Acc* const next = shared.next + in_block * length;
    if (u < H) {
      Acc sums[kLoopSequences] = {};
      for (int64_t k = 0; k < length; ++k) {
        const Acc w = to_acc(shared.weights[k * H + u]);
#pragma unroll
        for (int b = 0; b < kLoopSequences; ++b) sums[b] += d[b * length + k] * w;
      }
#pragma unroll
      for (int b = 0; b < kLoopSequences; ++b) {
        if (first + b >= plan.batch) break;
        if (i < plan.steps) {
          Acc found[G];
          const StepPlace place = plan.at(plan.reverse ? i : plan.steps - 1 - i);
          retreat<T, Cell>(at, place, first + b, u, H, sums[b], carry[b], found);
#pragma unroll
          for (int g = 0; g < G; ++g) next[b * length + g * H + u] = found[g];
        } else if (at.grad_h_0 != nullptr) {
          const int64_t to = (first + b) * H + u;
          at.grad_h_0[to] = from_acc<T>(sums[b] + (Cell::kSplitsBias ? carry[b] : Acc(0)));
          if (Cell::kHasCell) at.grad_c_0[to] = from_acc<T>(carry[b]);
        }
      }
    }
    shared.swap();
    __syncthreads();
  }
}

}  // namespace pyops::cuda
