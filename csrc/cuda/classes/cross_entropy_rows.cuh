// What the kernels of cross_entropy do with rows: the sums forward, the gradients backward. The formulas are
// those of csrc/math; cuda/device/rows.cuh lays threads over rows.
#pragma once

#include "binding/cross_entropy.h"
#include "cuda/classes/target.cuh"
#include "cuda/device/loss_sum.cuh"
#include "cuda/device/rows.cuh"
#include "math/cross_entropy.h"
#include "math/online_softmax.h"

namespace pyops::cuda {

// Which classes of a row have a weight q_c of their own, besides an index target.
enum class ClassWeights {
  kSame,         // index target, all other q_c equal
  kSmoothed,     // index target with label smoothing and, in backward, class weights
  kProbability,  // probabilities
};

template <class T>
struct CrossEntropyProblem {
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
constexpr int count_of = static_cast<int>(std::extent_v<std::remove_reference_t<T>, 1>);

// ---- forward --------------------------------------------------------------------------------------------

template <class Acc>
struct CrossEntropyOutput {
  Acc* loss;         // per row, or null
  double* partials;  // per block, or null
  Acc* one;          // set to 1, or null
  Acc* stats;        // [2, rows]
};

template <class Acc>
struct CrossEntropySums {
  math::SoftmaxStats<Acc> stats;
  Acc class_nll;  // sum_c q_c (-log p_c), q_c = w_c for smoothing and w_c t'_c for probabilities
};

template <class T, class Layout>
__device__ __forceinline__ CrossEntropySums<acc_t<T>> plain_sums(Layout& layout, const Row& row,
                                                                 const CrossEntropyProblem<T>& p) {
  using Acc = acc_t<T>;
  math::OnlineSoftmax<Acc, T> softmax;
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
__device__ __forceinline__ CrossEntropySums<acc_t<T>> weighted_sums(Layout& layout, const Row& row,
                                                                    const CrossEntropyProblem<T>& p) {
  using Acc = acc_t<T>;
  math::WeightedOnlineSoftmax<Acc, T> w;
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
    cross_entropy_forward_kernel(RowShape shape, CrossEntropyProblem<T> p, CrossEntropyOutput<acc_t<T>> out) {
  using Acc = acc_t<T>;
  constexpr bool kProbabilities = kWeights == ClassWeights::kProbability;
  PYOPS_SHARED_ARRAY(Acc, scratch, Layout::kScratch);
  PYOPS_SHARED_ARRAY(double, loss_scratch, kLossScratch);
  Layout layout(shape, scratch);
  LossSum sum;
  layout.for_each_row([&](const Row& row) {
    // Load the target's logit before the row, to hide its latency.
    RowTarget target{0, false, false};
    Acc target_logit = 0;
    if (!kProbabilities && row.active) {
      target = read_target(p.index, row.index, shape.classes, p.ignore_index);
      if (target.valid) target_logit = to_acc(p.logits[row.offset + target.index * shape.inner]);
    }
    CrossEntropySums<Acc> sums;
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
      // Without classes a loss is a sum over nothing and their mean is NaN, as in torch.
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
struct CrossEntropyUpstream {
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
    cross_entropy_weight_sum_kernel(const Acc* weight, int64_t classes, Acc* total) {
  PYOPS_SHARED_ARRAY(double, scratch, kWarpSize);
  double sum[1] = {0};
  for (int64_t c = threadIdx.x; c < classes; c += kWeightSumThreads) sum[0] += weight[c];
  reduce_group<Sum>(sum, kWeightSumThreads, scratch);
  if (threadIdx.x == 0) *total = static_cast<Acc>(sum[0]);
}

template <class T, class Layout>
__device__ __forceinline__ acc_t<T> probability_sum_q(Layout& layout, const Row& row,
                                                      const CrossEntropyProblem<T>& p) {
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
// it writes it, and no other thread reads that element.
template <ClassWeights kWeights, class T, class Layout>
__device__ __forceinline__ void write_gradient(const Layout& layout, const Row& row,
                                               const CrossEntropyProblem<T>& p,
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
      out[k] = math::logit_gradient(gradient, math::probability<T>(v[0][k], stats), q);
    }
    // One thread of the row has the target.
    const int64_t past = target - at.first;
    if (!kProbabilities && past >= 0 && past < kCount * at.step) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (past != k * at.step) continue;
        const Acc q = math::index_q(p.params, p.class_weight(target), true);
        out[k] = math::logit_gradient(gradient, math::probability<T>(v[0][k], stats), q);
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
    cross_entropy_backward_kernel(RowShape shape, CrossEntropyProblem<T> p, CrossEntropyUpstream<acc_t<T>> up,
                                  T* grad) {
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
        // Only smoothing needs the sum; without it the sum may be missing.
        const Acc weight_sum = up.weight_sum ? *up.weight_sum : p.params.num_classes;
        sum_q = math::index_sum_q(p.params, p.class_weight(target.index), weight_sum);
      }
      gradient =
          math::row_gradient(p.params, up.loss(row.index), sum_q, stats, p.row_weight(row.index), grad_lse);
    }
    write_gradient<kWeights>(layout, row, p, stats, gradient, target.index, grad);
  });
}

}  // namespace pyops::cuda
