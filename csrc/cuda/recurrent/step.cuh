// One unit of one sequence at one step of a recurrent layer, and the launches of a single step.
#pragma once

#include "binding/recurrent.h"
#include "cuda/device/memory.cuh"
#include "cuda/launch.h"

namespace pyops::cuda {

// Where a step's rows are. Its sequence b has row first + b. The state before is row before + b for b <
// before_count, otherwise the initial state. The next step in the layer's direction has after_count
// sequences, with rows after + b: sequences from after_count on end here, and those from count on begin
// there. Before the first step and behind the last one `count` is 0.
struct StepPlace {
  int64_t first;
  int64_t count;
  int64_t before;
  int64_t before_count;
  int64_t after;
  int64_t after_count;
};

// For `steps`, on the host or the device, that have count(t) rows from offset(t) on.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Steps>
PYOPS_HD StepPlace place_of(const Steps& steps, bool reverse, int64_t t) {
  const int64_t before = reverse ? t + 1 : t - 1, after = reverse ? t - 1 : t + 1;
  const int64_t count = steps.count(t), before_count = steps.count(before);
  StepPlace place{0, count, 0, before_count < count ? before_count : count, 0, steps.count(after)};
  if (place.count > 0) place.first = steps.offset(t);
  if (place.before_count > 0) place.before = steps.offset(before);
  if (place.after_count > 0) place.after = steps.offset(after);
  return place;
}

// The steps of a layer as a kernel sees them. `offsets` [steps + 1] is of a packed batch, otherwise null.
struct DeviceSteps {
  int64_t steps;
  int64_t batch;
  const int64_t* offsets;
  bool reverse;

  __device__ int64_t offset(int64_t t) const { return offsets == nullptr ? t * batch : offsets[t]; }
  __device__ int64_t count(int64_t t) const {
    if (t < 0 || t >= steps) return 0;
    return offsets == nullptr ? batch : offsets[t + 1] - offsets[t];
  }
  // The i-th step forward, and the i-th backward; i = steps is past the end.
  __device__ StepPlace forward(int64_t i) const {
    return place_of(*this, reverse, reverse ? steps - 1 - i : i);
  }
  __device__ StepPlace backward(int64_t i) const {
    return place_of(*this, reverse, reverse ? i : steps - 1 - i);
  }
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

// ---- forward --------------------------------------------------------------------------------------------

// The part of a unit's gates that does not depend on the state: it can be read before the product.
template <class T, class Cell>
struct GateInputs {
  acc_t<T> x[Cell::kGates] = {};
  acc_t<T> bias[Cell::kGates] = {};  // of the state's share

  GateInputs() = default;
  __device__ __forceinline__ GateInputs(const ForwardData<T>& at, int64_t row, int64_t u, int64_t H) {
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t column = g * H + u;
      x[g] = to_acc(at.x[row * Cell::kGates * H + column]) + read_or_zero(at.bias_ih, column);
      bias[g] = read_or_zero(at.bias_hh, column);
    }
  }
};

template <class T, class Cell>
using ForwardResult = math::StepForward<acc_t<T>, Cell::kGates>;

template <class T, class Cell>
__device__ __forceinline__ ForwardResult<T, Cell> advance(const GateInputs<T, Cell>& inputs,
                                                          const acc_t<T> (&sums)[Cell::kGates], acc_t<T> h,
                                                          acc_t<T> c) {
  acc_t<T> s[Cell::kGates];
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) s[g] = sums[g] + inputs.bias[g];
  return Cell::forward(inputs.x, s, h, c);
}

// Stores all of a result but the output. That is stored before, because other blocks may be waiting for it.
template <class T, class Cell>
__device__ __forceinline__ void keep(const ForwardData<T>& at, const StepPlace& place, int64_t b, int64_t u,
                                     int64_t H, const ForwardResult<T, Cell>& now) {
  const int64_t row = place.first + b;
  if (b >= place.after_count) {
    at.h_n[b * H + u] = from_acc<T>(now.h);
    if (Cell::kHasCell) at.c_n[b * H + u] = from_acc<T>(now.extra);
  }
  if (Cell::kSavesGates && at.gates != nullptr) {
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      at.gates[(row * Cell::kGates + g) * H + u] = from_acc<T>(now.gates_[g]);
    }
    at.extra[row * H + u] = from_acc<T>(now.extra);
  }
}

// The initial state of a sequence.
template <class T, class Cell>
__device__ __forceinline__ void read_initial(const ForwardData<T>& at, int64_t b, int64_t u, int64_t H,
                                             acc_t<T>& h, acc_t<T>& c) {
  h = to_acc(at.h_0[b * H + u]);
  if (Cell::kHasCell) c = to_acc(at.c_0[b * H + u]);
}

// ---- backward -------------------------------------------------------------------------------------------

// What backward reads of a unit besides the product with the gradients of the step after it.
template <class T, class Cell>
struct SavedUnit {
  using Acc = acc_t<T>;
  Acc dh = 0, dc = 0;  // from outside
  Acc gates[Cell::kGates] = {}, extra = 0, h_before = 0, c_before = 0, h = 0;

  SavedUnit() = default;
  __device__ __forceinline__ SavedUnit(const BackwardData<T>& at, const StepPlace& place, int64_t b,
                                       int64_t u, int64_t H) {
    const int64_t row = place.first + b, state = b * H + u, before = (place.before + b) * H + u;
    const bool begins = b >= place.before_count;
    dh = read_or_zero(at.grad_output, row * H + u);
    if (b >= place.after_count) {
      dh += read_or_zero(at.grad_h_n, state);
      if (Cell::kHasCell) dc = read_or_zero(at.grad_c_n, state);
    }
    if (Cell::kSavesGates) {
#pragma unroll
      for (int g = 0; g < Cell::kGates; ++g) {
        gates[g] = to_acc(at.gates[(row * Cell::kGates + g) * H + u]);
      }
      extra = to_acc(at.extra[row * H + u]);
    }
    h_before = to_acc(begins ? at.h_0[state] : at.output[before]);
    if (Cell::kHasCell) c_before = to_acc(begins ? at.c_0[state] : at.extra[before]);
    h = to_acc(at.output[row * H + u]);
  }
};

template <class T, class Cell>
using BackwardResult = math::StepBackward<acc_t<T>, Cell::kGradients>;

// `sum` comes from the gate gradients of the step after this one. `carry` is c's gradient or, in a GRU, h's,
// and becomes that of the step before.
template <class T, class Cell>
__device__ __forceinline__ BackwardResult<T, Cell> retreat(const SavedUnit<T, Cell>& saved, bool ends,
                                                           acc_t<T> sum, acc_t<T>& carry) {
  acc_t<T> dh = saved.dh, dc = saved.dc;
  if (!ends) {
    dh += sum;
    if (Cell::kSplitsBias) dh += carry;
    if (Cell::kHasCell) dc = carry;
  }
  const auto now = Cell::backward(dh, dc, saved.gates, saved.extra, saved.h_before, saved.c_before, saved.h);
  carry = Cell::kHasCell ? now.dc : now.dh;
  return now;
}

// The gradients of the state's shares of the gates, which the product of the step before needs.
template <class T, class Cell>
__device__ __forceinline__ void store_gradients(const BackwardData<T>& at, int64_t row, int64_t u, int64_t H,
                                                const BackwardResult<T, Cell>& now) {
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) at.d[(row * Cell::kGates + g) * H + u] = from_acc<T>(now.d[g]);
}

// The gradients of the input's shares, where they differ.
template <class T, class Cell>
__device__ __forceinline__ void keep_gradients(const BackwardData<T>& at, int64_t row, int64_t u, int64_t H,
                                               const BackwardResult<T, Cell>& now) {
  if constexpr (Cell::kSplitsBias) {
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      const int from = g == Cell::kGates - 1 ? Cell::kGradients - 1 : g;
      at.d_input[(row * Cell::kGates + g) * H + u] = from_acc<T>(now.d[from]);
    }
  }
}

// `sum` comes from the gradients of the first step.
template <class T, class Cell>
__device__ __forceinline__ void store_initial(T* grad_h_0, T* grad_c_0, int64_t state, acc_t<T> sum,
                                              acc_t<T> carry) {
  grad_h_0[state] = from_acc<T>(sum + (Cell::kSplitsBias ? carry : acc_t<T>(0)));
  if (Cell::kHasCell) grad_c_0[state] = from_acc<T>(carry);
}

// ---- launches of one step -------------------------------------------------------------------------------

constexpr int kStepThreads = 256;

// sums [count, G H] = h @ weight_hh.t(); h and c [N, H] are the state, which c keeps in the accumulation
// type.
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    step_forward(ForwardData<T> at, StepPlace place, int64_t H, const T* sums, T* h, acc_t<T>* c) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < place.count * H;
       i += threads) {
    const int64_t b = i / H, u = i - b * H, row = place.first + b;
    acc_t<T> s[Cell::kGates];
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) s[g] = to_acc(sums[(b * Cell::kGates + g) * H + u]);
    const auto now = advance<T, Cell>(GateInputs<T, Cell>(at, row, u, H), s, to_acc(h[i]),
                                      Cell::kHasCell ? c[i] : acc_t<T>(0));
    at.output[row * H + u] = from_acc<T>(now.h);
    keep<T, Cell>(at, place, b, u, H, now);
    h[i] = from_acc<T>(now.h);
    if (Cell::kHasCell) c[i] = now.extra;
  }
}

// sums [count, H] = the next step's gradients @ weight_hh; carry [N, H].
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    step_backward(BackwardData<T> at, StepPlace place, int64_t H, const T* sums, acc_t<T>* carry) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < place.count * H;
       i += threads) {
    const int64_t b = i / H, u = i - b * H, row = place.first + b;
    const bool ends = b >= place.after_count;
    const auto now = retreat<T, Cell>(SavedUnit<T, Cell>(at, place, b, u, H), ends,
                                      ends ? acc_t<T>(0) : to_acc(sums[i]), carry[i]);
    store_gradients<T, Cell>(at, row, u, H, now);
    keep_gradients<T, Cell>(at, row, u, H, now);
  }
}

// The gradients of the initial states [begin, end), from the sums behind the first step and its carry.
template <class T, class Cell>
__global__ void __launch_bounds__(kStepThreads)
    initial_gradients(int64_t begin, int64_t end, const T* sums, const acc_t<T>* carry, T* grad_h_0,
                      T* grad_c_0) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = begin + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < end;
       i += threads) {
    store_initial<T, Cell>(grad_h_0, grad_c_0, i, to_acc(sums[i]), carry[i]);
  }
}

}  // namespace pyops::cuda
