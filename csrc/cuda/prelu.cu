// PReLU on CUDA.
//
// One visit in backward writes the input's gradient and sums that of the slopes. Where many elements of one
// channel are neighbours, a group of threads takes such a run and leaves one sum. Otherwise (one slope,
// channels last, few pixels) the kernel sees the tensor as rows of whole periods of slopes: a thread keeps
// its columns, whose slopes and sums stay in registers. A last kernel adds up the sums in a fixed order.
#include "binding/prelu.h"
#include "cuda/device/blocks.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/device/tensor.cuh"
#include "math/prelu.h"

namespace pyops::cuda {
namespace {

constexpr int64_t kLongRun = 256;  // a run of at least so many elements is worth a group of threads
constexpr int kThreads = 256;
constexpr int kMinBlocks = 4;        // 64 registers per thread
constexpr int64_t kRowsPerSum = 16;  // at least, so that there are few sums beside the elements
constexpr int kFinishThreads = 128;

template <class T>
struct Operands {
  const T* grad;  // null in forward
  const T* input;
  const T* weight;
  T* output;  // or the input's gradient
};

// Output of one element, or its gradient; adds to the slope's gradient.
template <bool kBackward, class Acc>
__device__ __forceinline__ Acc visit(Acc x, Acc grad, Acc slope, Acc& sum) {
  if constexpr (kBackward) {
    sum += math::prelu_slope_gradient(x, grad);
    return math::prelu_input_gradient(x, slope, grad);
  } else {
    return math::prelu(x, slope);
  }
}

// ---- runs of one channel --------------------------------------------------------------------------------

// The sum of run r goes to sums[r]; `splits` neighbouring runs are of one channel.
template <class T, bool kBackward>
__global__ void __launch_bounds__(ContiguousRows<T>::kMaxThreads, ContiguousRows<T>::kMinBlocks)
    prelu_runs_kernel(RowShape shape, int64_t channels, int64_t splits, Operands<T> tensors, acc_t<T>* sums) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(Acc, scratch, ContiguousRows<T>::kScratch);
  ContiguousRows<T> layout(shape, scratch);
  const T* const inputs[2] = {tensors.input, kBackward ? tensors.grad : tensors.input};
  layout.for_each_row([&](const Row& row) {
    const Acc slope = row.active ? to_acc(tensors.weight[row.index / splits % channels]) : Acc(0);
    Acc sum[1] = {Acc(0)};
    layout.template for_each<2>(row, inputs, [&](ClassRange at, auto& v) {
      constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(v)>, 1>;
      for (int k = 0; k < kCount; ++k) v[0][k] = visit<kBackward>(v[0][k], v[1][k], slope, sum[0]);
      layout.store(tensors.output, row, at, v[0]);
    });
    if constexpr (kBackward) {
      layout.template reduce<Sum>(sum);
      if (row.active && layout.lane() == 0) sums[row.index] = sum[0];
    }
  });
}

struct RunPlan {
  int64_t splits;
  int64_t runs;

  // A few long runs are cut into equal parts, for more threads to share.
  static RunPlan of(const PreluShape& s) {
    RunPlan plan{1, s.outer * s.channels};
    while (plan.runs < kManyRows && s.inner % (2 * plan.splits) == 0 && s.inner / plan.splits >= 16384) {
      plan.splits *= 2;
      plan.runs *= 2;
    }
    return plan;
  }
};

template <class T, bool kBackward>
void launch_runs(const PreluShape& s, const RunPlan& plan, const Operands<T>& t, acc_t<T>* sums,
                 cudaStream_t stream) {
  const bool aligned = same_alignment(t.input, t.output, kBackward ? t.grad : t.input);
  const RowLaunch rows = plan_rows<T>(plan.runs, s.inner / plan.splits, 1, aligned);
  launch(prelu_runs_kernel<T, kBackward>, rows.blocks, rows.threads, 0, stream, rows.shape, s.channels,
         plan.splits, t, sums);
}

// ---- rows of slopes -------------------------------------------------------------------------------------

struct ColumnPlan {
  int64_t width;   // of a row, a multiple of the period
  int64_t rows;    // the last one may end early
  int64_t slices;  // rows r, r + slices, ... are summed by one thread
  int64_t blocks;  // that a row takes

  template <class T>
  static ColumnPlan of(const PreluShape& s) {
    constexpr int64_t kSize = Pack<T>::kSize, kBlock = kThreads * kSize;
    const int64_t period = s.period();
    // Rows of whole packs, and if possible at least as wide as a block.
    int64_t repeats = std::max<int64_t>(1, kBlock / period);
    if (period % kSize != 0) repeats = round_up(repeats, kSize);
    ColumnPlan plan{period * repeats, 0, 1, 1};
    plan.rows = ceil_div(s.numel(), plan.width);
    plan.blocks = ceil_div(plan.width, kBlock);
    plan.slices = std::max<int64_t>(1, std::min<int64_t>(plan.rows / kRowsPerSum, kMaxBlocks / plan.blocks));
    return plan;
  }
};

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    prelu_columns_kernel(PreluShape s, ColumnPlan plan, bool aligned, Operands<T> tensors, acc_t<T>* sums) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const int64_t slice = blockIdx.x / plan.blocks;
  const int64_t column = ((blockIdx.x % plan.blocks) * kThreads + threadIdx.x) * kSize;
  if (column >= plan.width) return;
  const int64_t n = s.numel();
  Acc slopes[kSize], totals[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    slopes[k] = to_acc(tensors.weight[(column + k) % s.period() / s.inner]);
    totals[k] = Acc(0);
  }
  for (int64_t row = slice; row < plan.rows; row += plan.slices) {
    const int64_t at = row * plan.width + column;
    if (aligned && at + kSize <= n) {
      Acc x[kSize], grad[kSize];
      widen(load_pack(tensors.input + at), x);
      widen(load_pack((kBackward ? tensors.grad : tensors.input) + at), grad);
#pragma unroll
      for (int k = 0; k < kSize; ++k) x[k] = visit<kBackward>(x[k], grad[k], slopes[k], totals[k]);
      store_pack(tensors.output + at, x);
      continue;
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (at + k >= n) break;
      const Acc grad = kBackward ? to_acc(tensors.grad[at + k]) : Acc(0);
      tensors.output[at + k] =
          from_acc<T>(visit<kBackward>(to_acc(tensors.input[at + k]), grad, slopes[k], totals[k]));
    }
  }
  if constexpr (kBackward) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) sums[slice * plan.width + column + k] = totals[k];
  }
}

template <class T, bool kBackward>
void launch_columns(const PreluShape& s, const ColumnPlan& plan, const Operands<T>& t, acc_t<T>* sums,
                    cudaStream_t stream) {
  const bool aligned = is_aligned(t.input) && same_alignment(t.input, t.output, kBackward ? t.grad : t.input);
  launch(prelu_columns_kernel<T, kBackward>, static_cast<unsigned>(plan.slices * plan.blocks), kThreads, 0,
         stream, s, plan, aligned, t, sums);
}

// ---- the slopes' gradient -------------------------------------------------------------------------------

// Sums [outer, channels, inner] over all but the channels. One block takes a channel at a time.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    prelu_finish_kernel(PreluShape s, const acc_t<T>* sums, T* grad_weight) {
  PYOPS_SHARED_ARRAY(double, scratch, kWarpSize);
  for (int64_t c = blockIdx.x; c < s.channels; c += gridDim.x) {
    double total[1] = {0};
    for (int64_t i = threadIdx.x; i < s.outer * s.inner; i += kFinishThreads) {
      total[0] += sums[(i / s.inner * s.channels + c) * s.inner + i % s.inner];
    }
    reduce_group<Sum>(total, kFinishThreads, scratch);
    if (threadIdx.x == 0) grad_weight[c] = from_acc<T>(static_cast<acc_t<T>>(total[0]));
    __syncthreads();
  }
}

template <class T>
void backward(const PreluShape& s, const Operands<T>& tensors, T* grad_weight, const Tensor& like,
              cudaStream_t stream) {
  using Acc = acc_t<T>;
  const ScalarType acc = accumulate_type(like.scalar_type());
  PreluShape sums_shape{0, s.channels, 1};
  Tensor sums = new_tensor(like, {0}, acc);
  if (s.numel() > 0 && s.inner >= kLongRun) {
    const RunPlan plan = RunPlan::of(s);
    sums = new_tensor(like, {plan.runs}, acc);
    sums_shape = {s.outer, s.channels, plan.splits};
    launch_runs<T, true>(s, plan, tensors, mutable_data<Acc>(sums), stream);
  } else if (s.numel() > 0) {
    const ColumnPlan plan = ColumnPlan::of<T>(s);
    sums = new_tensor(like, {plan.slices, plan.width}, acc);
    sums_shape = {plan.slices * (plan.width / s.period()), s.channels, s.inner};
    launch_columns<T, true>(s, plan, tensors, mutable_data<Acc>(sums), stream);
  }
  if (s.channels == 0) return;
  launch(prelu_finish_kernel<T>, blocks_for(s.channels, 1), kFinishThreads, 0, stream, sums_shape,
         data<Acc>(sums), grad_weight);
}

Tensor prelu_forward(Tensor input, Tensor weight, int64_t dim) {
  const char* op = "prelu_forward";
  const PreluShape s = PreluShape::of(input, weight, dim, op);
  const DeviceScope device(input);
  Tensor output = new_tensor(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.numel() == 0) return;
    const Operands<T> tensors{nullptr, data<T>(input), data<T>(weight), mutable_data<T>(output)};
    acc_t<T>* const no_sums = nullptr;
    s.inner >= kLongRun ? launch_runs<T, false>(s, RunPlan::of(s), tensors, no_sums, device.stream)
                        : launch_columns<T, false>(s, ColumnPlan::of<T>(s), tensors, no_sums, device.stream);
  });
  return output;
}

std::tuple<Tensor, Tensor> prelu_backward(Tensor grad_output, Tensor input, Tensor weight, int64_t dim) {
  const char* op = "prelu_backward";
  const PreluShape s = check_prelu_backward(grad_output, input, weight, dim, op);
  const DeviceScope device(input);
  Tensor grad_input = new_tensor(input, shape_of(input), input.scalar_type());
  Tensor grad_weight = new_tensor(weight, shape_of(weight), weight.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const Operands<T> tensors{data<T>(grad_output), data<T>(input), data<T>(weight),
                              mutable_data<T>(grad_input)};
    backward(s, tensors, mutable_data<T>(grad_weight), input, device.stream);
  });
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("prelu_forward", TORCH_BOX(&pyops::cuda::prelu_forward));
  m.impl("prelu_backward", TORCH_BOX(&pyops::cuda::prelu_backward));
}
