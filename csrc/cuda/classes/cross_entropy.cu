// Fused softmax cross-entropy on CUDA.
//
// Forward reads the logits once: every thread keeps an online maximum and sum (math/online_softmax.h), and
// the threads of a row merge theirs. Backward reads the logits once more and writes the gradient. Each block
// sums its rows' losses, and one more small kernel sums the blocks, in an order that depends on the shape
// alone.
//
// An index that names no class cannot raise an error without waiting for the GPU. The loss and the gradient
// of such a row become NaN, and no memory is read for it.
#include "binding/cross_entropy.h"
#include "cuda/classes/cross_entropy_rows.cuh"
#include "cuda/device/tensor.cuh"

namespace pyops::cuda {
namespace {

template <class T>
CrossEntropyProblem<T> problem_of(const CrossEntropyArguments& a) {
  using Acc = acc_t<T>;
  return {data<T>(a.logits),
          a.has_probabilities ? nullptr : data<int64_t>(a.target),
          a.has_probabilities ? data<T>(a.target) : nullptr,
          data_or_null<Acc>(a.weight),
          data_or_null<Acc>(a.sample_weight),
          {Acc(a.label_smoothing), Acc(a.z_loss), Acc(a.shape.classes)},
          a.ignore_index};
}

template <class T>
using ForwardKernel = void (*)(RowShape, CrossEntropyProblem<T>, CrossEntropyOutput<acc_t<T>>);
template <class T>
using BackwardKernel = void (*)(RowShape, CrossEntropyProblem<T>, CrossEntropyUpstream<acc_t<T>>, T*);

template <class T, class Layout>
ForwardKernel<T> forward_kernel(ClassWeights weights) {
  if (weights == ClassWeights::kSame) return cross_entropy_forward_kernel<T, Layout, ClassWeights::kSame>;
  if (weights == ClassWeights::kSmoothed)
    return cross_entropy_forward_kernel<T, Layout, ClassWeights::kSmoothed>;
  return cross_entropy_forward_kernel<T, Layout, ClassWeights::kProbability>;
}

template <class T, class Layout>
BackwardKernel<T> backward_kernel(ClassWeights weights) {
  if (weights == ClassWeights::kSame) return cross_entropy_backward_kernel<T, Layout, ClassWeights::kSame>;
  if (weights == ClassWeights::kSmoothed)
    return cross_entropy_backward_kernel<T, Layout, ClassWeights::kSmoothed>;
  return cross_entropy_backward_kernel<T, Layout, ClassWeights::kProbability>;
}

template <class T>
RowLaunch plan_of(const CrossEntropyArguments& a, const T* grad) {
  const T* const x = data<T>(a.logits);
  const T* const t = a.has_probabilities ? data<T>(a.target) : x;
  return plan_rows<T>(a.shape.batch, a.shape.classes, a.shape.inner, same_alignment(x, t, grad));
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(Tensor logits, Tensor target,
                                                         std::optional<Tensor> weight,
                                                         std::optional<Tensor> sample_weight,
                                                         int64_t reduction, int64_t ignore_index,
                                                         double label_smoothing, double z_loss) {
  const char* op = "cross_entropy_forward";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  const DeviceScope device(logits);
  const ScalarType acc = accumulate_type(logits.scalar_type());
  const bool per_row = a.reduction == Reduction::kNone, mean = a.reduction == Reduction::kMean;
  Tensor loss = new_tensor(logits, per_row ? a.shape.row_shape : std::vector<int64_t>{}, acc);
  Tensor stats = new_tensor(logits, {2, a.shape.rows()}, acc);
  Tensor divisor = new_tensor(logits, {}, acc);
  const ClassWeights weights = a.has_probabilities       ? ClassWeights::kProbability
                               : a.label_smoothing > 0.0 ? ClassWeights::kSmoothed
                                                         : ClassWeights::kSame;
  dispatch_floating(logits.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    const RowLaunch plan = plan_of<T>(a, data<T>(logits));
    std::optional<Tensor> partials;
    if (!per_row) partials = new_tensor(logits, {plan.blocks, 2}, ScalarType::Double);
    double* const sums = partials ? mutable_data<double>(*partials) : nullptr;
    Acc* const total = mutable_data<Acc>(loss);
    Acc* const one_or_weight = mutable_data<Acc>(divisor);
    const CrossEntropyOutput<Acc> out{per_row ? total : nullptr, sums, mean ? nullptr : one_or_weight,
                                      mutable_data<Acc>(stats)};
    const auto kernel = plan.columns ? forward_kernel<T, ColumnRows<T>>(weights)
                                     : forward_kernel<T, ContiguousRows<T>>(weights);
    launch(kernel, plan.blocks, plan.threads, 0, device.stream, plan.shape, problem_of<T>(a), out);
    if (per_row) return;
    launch(finish_loss_kernel<Acc>, 1, kFinishThreads, 0, device.stream, sums, plan.blocks, mean, total,
           mean ? one_or_weight : nullptr);
  });
  return {loss, stats, divisor};
}

void run_backward(const char* op, const CrossEntropyArguments& a, const Tensor& grad_loss,
                  const std::optional<Tensor>& grad_lse, const Tensor& stats, const Tensor& divisor,
                  const Tensor& grad_logits) {
  a.check_backward(op, grad_loss, grad_lse, stats, divisor);
  if (a.shape.rows() * a.shape.classes == 0) return;
  const DeviceScope device(a.logits);
  const bool weighted = a.weight && a.label_smoothing > 0.0 && !a.has_probabilities;
  const ClassWeights weights = a.has_probabilities ? ClassWeights::kProbability
                               : weighted          ? ClassWeights::kSmoothed
                                                   : ClassWeights::kSame;
  std::optional<Tensor> weight_sum;
  if (weighted) weight_sum = new_tensor(a.logits, {}, a.weight->scalar_type());
  dispatch_floating(a.logits.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (weighted) {
      launch(cross_entropy_weight_sum_kernel<Acc>, 1, kWeightSumThreads, 0, device.stream,
             data<Acc>(*a.weight), a.shape.classes, mutable_data<Acc>(*weight_sum));
    }
    const CrossEntropyUpstream<Acc> up{
        data<Acc>(grad_loss), data_or_null<Acc>(grad_lse),   data<Acc>(stats),
        data<Acc>(divisor),   data_or_null<Acc>(weight_sum), a.reduction == Reduction::kNone};
    T* const grad = mutable_data<T>(grad_logits);
    const RowLaunch plan = plan_of<T>(a, grad);
    const auto kernel = plan.columns ? backward_kernel<T, ColumnRows<T>>(weights)
                                     : backward_kernel<T, ContiguousRows<T>>(weights);
    launch(kernel, plan.blocks, plan.threads, 0, device.stream, plan.shape, problem_of<T>(a), up, grad);
  });
}

Tensor cross_entropy_backward(Tensor grad_loss, std::optional<Tensor> grad_lse, Tensor logits, Tensor target,
                              std::optional<Tensor> weight, std::optional<Tensor> sample_weight, Tensor stats,
                              Tensor divisor, int64_t reduction, int64_t ignore_index, double label_smoothing,
                              double z_loss) {
  const char* op = "cross_entropy_backward";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  Tensor grad_logits = new_tensor(logits, shape_of(logits), logits.scalar_type());
  run_backward(op, a, grad_loss, grad_lse, stats, divisor, grad_logits);
  return grad_logits;
}

void cross_entropy_backward_(Tensor grad_loss, std::optional<Tensor> grad_lse, Tensor logits, Tensor target,
                             std::optional<Tensor> weight, std::optional<Tensor> sample_weight, Tensor stats,
                             Tensor divisor, int64_t reduction, int64_t ignore_index, double label_smoothing,
                             double z_loss) {
  const char* op = "cross_entropy_backward_";
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  run_backward(op, a, grad_loss, grad_lse, stats, divisor, logits);
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&pyops::cuda::cross_entropy_forward));
  m.impl("cross_entropy_backward", TORCH_BOX(&pyops::cuda::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&pyops::cuda::cross_entropy_backward_));
}
