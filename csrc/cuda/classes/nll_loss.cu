// Negative log-likelihood on CUDA: a gather forward, a scatter into zeros backward.
#include "binding/nll_loss.h"
#include "cuda/classes/target.cuh"
#include "cuda/device/blocks.cuh"
#include "cuda/device/loss_sum.cuh"
#include "cuda/device/tensor.cuh"
#include "math/nll_loss.h"

namespace pyops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMinBlocks = 4;  // 64 registers per thread

struct Targets {
  const int64_t* index;
  int64_t rows;
  int64_t classes;
  int64_t inner;
  int64_t ignore_index;

  __device__ __forceinline__ RowTarget operator[](int64_t row) const {
    return read_target(index, row, classes, ignore_index);
  }
  // Where row's class 0 is.
  __device__ __forceinline__ int64_t offset(int64_t row) const {
    return row / inner * classes * inner + row % inner;
  }
};

template <class F>
__device__ __forceinline__ void for_each_row(int64_t rows, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; row < rows; row += step)
    f(row);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    nll_loss_forward_kernel(Targets targets, const T* log_probs, const acc_t<T>* weight, acc_t<T>* row_loss,
                            double* partials) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kLossScratch);
  LossSum sum;
  for_each_row(targets.rows, [&](int64_t row) {
    const RowTarget target = targets[row];
    Acc loss = target.ignored ? Acc(0) : math::quiet_nan<Acc>();
    Acc row_weight = 0;
    if (target.valid) {
      row_weight = weight ? weight[target.index] : Acc(1);
      const T log_prob = log_probs[targets.offset(row) + target.index * targets.inner];
      loss = math::nll_loss(to_acc(log_prob), row_weight);
    }
    if (row_loss) row_loss[row] = loss;
    sum.add(loss, row_weight);
  });
  store_block_sum(sum, partials, scratch);
}

// `grad` is full of zeros.
template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    nll_loss_backward_kernel(Targets targets, const acc_t<T>* grad_loss, const acc_t<T>* weight,
                             const acc_t<T>* total_weight, Reduction reduction, T* grad) {
  using Acc = acc_t<T>;
  for_each_row(targets.rows, [&](int64_t row) {
    const RowTarget target = targets[row];
    if (target.ignored) return;
    T* const out = grad + targets.offset(row);
    if (!target.valid) {
      for (int64_t c = 0; c < targets.classes; ++c)
        out[c * targets.inner] = from_acc<T>(math::quiet_nan<Acc>());
      return;
    }
    Acc row_grad = grad_loss[reduction == Reduction::kNone ? row : 0];
    if (reduction == Reduction::kMean) row_grad /= *total_weight;
    out[target.index * targets.inner] =
        from_acc<T>(math::nll_gradient(row_grad, weight ? weight[target.index] : Acc(1)));
  });
}

Targets targets_of(const Tensor& target, const ClassRows& s, int64_t ignore_index) {
  return {data<int64_t>(target), s.rows(), s.classes, s.inner, ignore_index};
}

std::tuple<Tensor, Tensor> nll_loss_forward(Tensor log_probs, Tensor target, std::optional<Tensor> weight,
                                            int64_t reduction_code, int64_t ignore_index) {
  const char* op = "nll_loss_forward";
  const Reduction reduction = check_reduction(reduction_code, op);
  const ClassRows s = check_nll_loss_forward(log_probs, target, weight, op);
  const DeviceScope device(log_probs);
  const ScalarType acc = accumulate_type(log_probs.scalar_type());
  const bool per_row = reduction == Reduction::kNone;
  const unsigned blocks = blocks_for(s.rows(), kThreads);
  Tensor loss = new_tensor(log_probs, per_row ? s.row_shape : std::vector<int64_t>{}, acc);
  Tensor total_weight = new_tensor(log_probs, {}, acc);
  Tensor partials = new_tensor(log_probs, {blocks, 2}, ScalarType::Double);
  dispatch_floating(log_probs.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    Acc* const out = mutable_data<Acc>(loss);
    double* const sums = mutable_data<double>(partials);
    launch(nll_loss_forward_kernel<T>, blocks, kThreads, 0, device.stream,
           targets_of(target, s, ignore_index), data<T>(log_probs), data_or_null<Acc>(weight),
           per_row ? out : nullptr, sums);
    launch(finish_loss_kernel<Acc>, 1, kFinishThreads, 0, device.stream, sums, blocks,
           reduction == Reduction::kMean, per_row ? nullptr : out, mutable_data<Acc>(total_weight));
  });
  return {loss, total_weight};
}

Tensor nll_loss_backward(Tensor grad_loss, Tensor target, std::optional<Tensor> weight, Tensor total_weight,
                         int64_t num_classes, int64_t reduction_code, int64_t ignore_index, ScalarType type) {
  const char* op = "nll_loss_backward";
  const Reduction reduction = check_reduction(reduction_code, op);
  const ClassRows s =
      check_nll_loss_backward(grad_loss, target, weight, total_weight, num_classes, reduction, type, op);
  const DeviceScope device(target);
  Tensor grad_input = new_tensor(grad_loss, s.full_shape(), type);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (s.rows() * s.classes == 0) return;
    T* const grad = mutable_data<T>(grad_input);
    check(cudaMemsetAsync(grad, 0, s.rows() * s.classes * sizeof(T), device.stream), "clearing the gradient");
    launch(nll_loss_backward_kernel<T>, blocks_for(s.rows(), kThreads), kThreads, 0, device.stream,
           targets_of(target, s, ignore_index), data<Acc>(grad_loss), data_or_null<Acc>(weight),
           data<Acc>(total_weight), reduction, grad);
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("nll_loss_forward", TORCH_BOX(&pyops::cuda::nll_loss_forward));
  m.impl("nll_loss_backward", TORCH_BOX(&pyops::cuda::nll_loss_backward));
}
