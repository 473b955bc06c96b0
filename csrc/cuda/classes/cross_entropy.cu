// Fused softmax cross-entropy on CUDA.
//
// Forward reads the logits once, by an online maximum and sum per thread (math/online_softmax.h) that the
// threads of a row then merge; backward reads them once more and writes the gradient. The formulas are those
// of csrc/math; rows.cuh lays threads over rows. Row losses are summed per block and the blocks by one more
// tiny kernel, in an order that depends on the shape alone.
//
// A class index that is no class cannot raise here without waiting for the GPU: such a row's loss and
// gradient become NaN, and no memory is read for it.
#include "binding/cross_entropy.h"
#include "cuda/classes/rows.cuh"
#include "cuda/device/tensor.cuh"
#include "cuda/loss.cuh"
#include "math/cross_entropy.h"
#include "math/online_softmax.h"

namespace pyops::cuda {
namespace {

// Which classes of a row have a weight q_c of their own, besides an index target.
enum class ClassWeights {
  kSame,         // index target, all other q_c equal
  kSmoothed,     // index target with label smoothing and, in backward, class weights
  kProbability,  // probabilities
};

template <class T>
struct Problem {
  using Acc = acc_t<T>;
  const T* logits;
  const int64_t* index;  // class indices, or null
  const T* target;       // class probabilities, or null
  const Acc* weight;
  const Acc* sample_weight;
  math::CrossEntropyParams<Acc> params;
  int64_t ignore_index;

  __device__ __forceinline__ Acc class_weight(int64_t c) const { return weight ? weight[c] : Acc(1); }
  __device__ __forceinline__ Acc row_weight(int64_t row) const {
    return sample_weight ? sample_weight[row] : Acc(1);
  }
};

template <class T>
Problem<T> problem_of(const CrossEntropyArguments& a) {
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
constexpr int count_of = static_cast<int>(std::extent_v<std::remove_reference_t<T>, 1>);

// ---- forward --------------------------------------------------------------------------------------------

template <class Acc>
struct ForwardOutput {
  Acc* loss;         // per row, or null
  double* partials;  // per block, or null
  Acc* one;          // set to 1, or null
  Acc* stats;        // [2, rows]
};

template <class Acc>
struct RowSums {
  math::SoftmaxStats<Acc> stats;
  Acc class_nll;  // sum_c q_c (-log p_c), q_c = w_c for smoothing and w_c t'_c for probabilities
};

template <class T, class Layout>
__device__ __forceinline__ RowSums<acc_t<T>> plain_sums(Layout& layout, const Row& row, const Problem<T>& p) {
  using Acc = acc_t<T>;
  math::OnlineSoftmax<Acc> softmax;
  const T* const inputs[1] = {p.logits};
  layout.template for_each<4>(row, inputs, [&](ClassRange, auto& x) { softmax.add(x[0]); });
  Acc max[1] = {softmax.max};
  layout.template reduce<Max>(max);
  softmax.raise(max[0]);
  Acc sum[1] = {softmax.sum};
  layout.template reduce<Sum>(sum);
  return {math::finish_stats(max[0], sum[0]), Acc(0)};
}

template <bool kProbabilities, class T, class Layout>
__device__ __forceinline__ RowSums<acc_t<T>> weighted_sums(Layout& layout, const Row& row,
                                                           const Problem<T>& p) {
  using Acc = acc_t<T>;
  math::WeightedOnlineSoftmax<Acc> w;
  const auto join = [&](ClassRange at, auto& v) {
    constexpr int kCount = count_of<decltype(v)>;
    Acc q[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      q[k] = p.class_weight(at[k]);
      if constexpr (kProbabilities) q[k] *= p.params.smoothed(v[1][k]);
    }
    w.add(v[0], q);
  };
  if constexpr (kProbabilities) {
    const T* const inputs[2] = {p.logits, p.target};
    layout.template for_each<1>(row, inputs, join);
  } else {
    const T* const inputs[1] = {p.logits};
    layout.template for_each<2>(row, inputs, join);
  }
  Acc max[1] = {w.softmax.max};
  layout.template reduce<Max>(max);
  w.raise(max[0]);
  Acc sums[3] = {w.softmax.sum, w.weighted, w.weight};
  layout.template reduce<Sum>(sums);
  const math::SoftmaxStats<Acc> stats = math::finish_stats(max[0], sums[0]);
  return {stats, math::weighted_nll(sums[1], sums[2], stats)};
}

template <class T, class Layout, ClassWeights kWeights>
__global__ void __launch_bounds__(Layout::kMaxThreads, Layout::kMinBlocks)
    cross_entropy_forward_kernel(RowShape shape, Problem<T> p, ForwardOutput<acc_t<T>> out) {
  using Acc = acc_t<T>;
  constexpr bool kProbabilities = kWeights == ClassWeights::kProbability;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  PYOPS_SHARED_ARRAY(double, loss_scratch, kLossScratch);
  Layout layout(shape, scratch);
  LossSum sum;
  layout.for_each_row([&](const Row& row) {
    // The target's logit is fetched before the row, so that its latency passes meanwhile.
    RowTarget target{0, false, false};
    Acc target_logit = 0;
    if (!kProbabilities && row.active) {
      target = read_target(p.index, row.index, shape.classes, p.ignore_index);
      if (target.valid) target_logit = to_acc(p.logits[row.offset + target.index * shape.inner]);
    }
    RowSums<Acc> sums;
    if constexpr (kWeights == ClassWeights::kSame) {
      sums = plain_sums(layout, row, p);
    } else {
      sums = weighted_sums<kProbabilities>(layout, row, p);
    }
    if (!row.active || layout.lane() > 0) return;
    out.stats[row.index] = sums.stats.max;
    out.stats[shape.rows + row.index] = sums.stats.log_sum;
    Acc loss = target.ignored ? Acc(0) : math::quiet_nan<Acc>();
    Acc counted = 0;
    if (kProbabilities) {
      // Without classes, as in torch: each loss is a sum over nothing, and the mean is one over nothing, NaN.
      const Acc class_nll = shape.classes > 0 ? sums.class_nll : Acc(0);
      loss = math::probability_loss(p.params, class_nll, sums.stats, p.row_weight(row.index));
      counted = shape.classes > 0 ? 1 : 0;
    } else if (target.valid) {
      counted = p.class_weight(target.index);
      const Acc nll = -math::log_probability(target_logit, sums.stats);
      loss = math::index_loss(p.params, nll, counted, sums.class_nll, sums.stats, p.row_weight(row.index));
    }
    if (out.loss) out.loss[row.index] = loss;
    sum.add(loss, counted);
  });
  if (out.partials) store_block_sum(sum, out.partials, loss_scratch);
  if (out.one && blockIdx.x == 0 && threadIdx.x == 0) *out.one = Acc(1);
}

// ---- backward -------------------------------------------------------------------------------------------

template <class Acc>
struct Upstream {
  const Acc* grad_loss;
  const Acc* grad_lse;
  const Acc* stats;
  const Acc* divisor;
  const Acc* weight_sum;  // over all classes, for smoothing with class weights
  bool per_row;

  __device__ __forceinline__ Acc loss(int64_t row) const {
    return per_row ? grad_loss[row] : grad_loss[0] / *divisor;
  }
  __device__ __forceinline__ Acc lse(int64_t row) const { return grad_lse ? grad_lse[row] : Acc(0); }
};

constexpr int kWeightSumThreads = 512;

template <class Acc>
__global__ void __launch_bounds__(kWeightSumThreads)
    weight_sum_kernel(const Acc* weight, int64_t classes, Acc* total) {
  PYOPS_SHARED_ARRAY(double, scratch, kWarpSize);
  double sum[1] = {0};
  for (int64_t c = threadIdx.x; c < classes; c += kWeightSumThreads) sum[0] += weight[c];
  reduce_group<Sum>(sum, kWeightSumThreads, scratch);
  if (threadIdx.x == 0) *total = static_cast<Acc>(sum[0]);
}

template <class T, class Layout>
__device__ __forceinline__ acc_t<T> probability_sum_q(Layout& layout, const Row& row, const Problem<T>& p) {
  using Acc = acc_t<T>;
  Acc sum[1] = {0};
  const T* const inputs[1] = {p.target};
  layout.template for_each<4>(row, inputs, [&](ClassRange at, auto& t) {
#pragma unroll
    for (int k = 0; k < count_of<decltype(t)>; ++k) {
      sum[0] += p.class_weight(at[k]) * p.params.smoothed(t[0][k]);
    }
  });
  layout.template reduce<Sum>(sum);
  return sum[0];
}

// Writes the gradient of an active row. `grad` may be the logits themselves: a thread reads an element before
// it writes it, and no element is read by another.
template <ClassWeights kWeights, class T, class Layout>
__device__ __forceinline__ void write_gradient(const Layout& layout, const Row& row, const Problem<T>& p,
                                               const math::SoftmaxStats<acc_t<T>>& stats,
                                               const math::RowGradient<acc_t<T>>& gradient, int64_t target,
                                               T* grad) {
  using Acc = acc_t<T>;
  constexpr bool kProbabilities = kWeights == ClassWeights::kProbability;
  const auto write = [&](ClassRange at, auto& v) {
    constexpr int kCount = count_of<decltype(v)>;
    Acc out[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      Acc q = kWeights == ClassWeights::kSame ? Acc(1) : p.class_weight(at[k]);
      q = kProbabilities ? q * p.params.smoothed(v[kProbabilities][k]) : math::index_q(p.params, q, false);
      out[k] = math::logit_gradient(gradient, math::probability(v[0][k], stats), q);
    }
    // One thread of the row comes by the target.
    const int64_t past = target - at.first;
    if (!kProbabilities && past >= 0 && past < kCount * at.step) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (past != k * at.step) continue;
        const Acc q = math::index_q(p.params, p.class_weight(target), true);
        out[k] = math::logit_gradient(gradient, math::probability(v[0][k], stats), q);
      }
    }
    layout.store(grad, row, at, out);
  };
  if constexpr (kProbabilities) {
    const T* const inputs[2] = {p.logits, p.target};
    layout.template for_each<1>(row, inputs, write);
  } else {
    const T* const inputs[1] = {p.logits};
    layout.template for_each<2>(row, inputs, write);
  }
}

template <class T, class Layout, ClassWeights kWeights>
__global__ void __launch_bounds__(Layout::kMaxThreads, Layout::kMinBlocks)
    cross_entropy_backward_kernel(RowShape shape, Problem<T> p, Upstream<acc_t<T>> up, T* grad) {
  using Acc = acc_t<T>;
  constexpr bool kProbabilities = kWeights == ClassWeights::kProbability;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  Layout layout(shape, scratch);
  layout.for_each_row([&](const Row& row) {
    Acc sum_q = 0;
    if constexpr (kProbabilities) sum_q = probability_sum_q(layout, row, p);
    if (!row.active) return;
    const Acc grad_lse = up.lse(row.index);
    RowTarget target{-1, false, true};
    if constexpr (!kProbabilities) {
      target = read_target(p.index, row.index, shape.classes, p.ignore_index);
      if (target.ignored && grad_lse == Acc(0)) return layout.fill(grad, row, Acc(0));
      if (target.ignored) target.index = -1;
      if (!target.ignored && !target.valid) return layout.fill(grad, row, math::quiet_nan<Acc>());
    }
    const math::SoftmaxStats<Acc> stats{up.stats[row.index], up.stats[shape.rows + row.index]};
    math::RowGradient<Acc> gradient{grad_lse, Acc(0)};
    if (!target.ignored) {
      if constexpr (!kProbabilities) {
        // Without smoothing the sum does not matter and may not be there.
        const Acc weight_sum = up.weight_sum ? *up.weight_sum : p.params.num_classes;
        sum_q = math::index_sum_q(p.params, p.class_weight(target.index), weight_sum);
      }
      gradient =
          math::row_gradient(p.params, up.loss(row.index), sum_q, stats, p.row_weight(row.index), grad_lse);
    }
    write_gradient<kWeights>(layout, row, p, stats, gradient, target.index, grad);
  });
}

// ---- entries --------------------------------------------------------------------------------------------

template <class T>
using ForwardKernel = void (*)(RowShape, Problem<T>, ForwardOutput<acc_t<T>>);
template <class T>
using BackwardKernel = void (*)(RowShape, Problem<T>, Upstream<acc_t<T>>, T*);

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
    const ForwardOutput<Acc> out{per_row ? total : nullptr, sums, mean ? nullptr : one_or_weight,
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
      launch(weight_sum_kernel<Acc>, 1, kWeightSumThreads, 0, device.stream, data<Acc>(*a.weight),
             a.shape.classes, mutable_data<Acc>(*weight_sum));
    }
    const Upstream<Acc> up{
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
