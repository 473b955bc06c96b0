// Elementwise losses on CUDA: forward sums terms over 16-byte packs, backward writes their slopes.
#include "binding/loss.h"
#include "cuda/device/blocks.cuh"
#include "cuda/device/loss_sum.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/tensor.cuh"
#include "math/loss.h"

namespace pyops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMinBlocks = 4;       // 64 registers per thread
constexpr int kPacksPerThread = 4;  // enough to make a block's reduction cheap beside its loads

template <class T>
struct LossInputs {
  int64_t count;
  bool aligned;  // all tensors of one entry per element reach 16-byte boundaries together
  const T* input;
  const T* target;
  Repeated<T> weight;
  Repeated<T> pos_weight;
};

template <int kSize>
using Size = std::integral_constant<int, kSize>;

// Calls f(first element, Size) for each pack, then for the single elements around the packs.
template <class T, class F>
__device__ __forceinline__ void for_each_piece(const LossInputs<T>& in, const F& f) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(in.input) / sizeof(T) % kSize);
  const int64_t head = (kSize - past) % kSize;
  const int64_t packs = in.aligned && head < in.count ? (in.count - head) / kSize : 0;
  for (int64_t p = thread; p < packs; p += threads) f(head + p * kSize, Size<kSize>{});
  for (int64_t i = thread; i < in.count - packs * kSize; i += threads) {
    f(packs == 0 || i < head ? i : i + packs * kSize, Size<1>{});
  }
}

template <class T, int kSize>
__device__ __forceinline__ void read(const T* p, int64_t at, acc_t<T> (&values)[kSize]) {
  if constexpr (kSize == 1) {
    values[0] = to_acc(p[at]);
  } else {
    widen(load_pack(p + at), values);
  }
}

template <class T, int kSize>
__device__ __forceinline__ void write(T* p, int64_t at, const acc_t<T> (&values)[kSize]) {
  if constexpr (kSize == 1) {
    p[at] = from_acc<T>(values[0]);
  } else {
    store_pack(p + at, values);
  }
}

// The factors of elements at, at + 1, ...: one division finds the first entry, the others follow.
template <class T, int kSize>
__device__ __forceinline__ void read(const Repeated<T>& factor, int64_t elements, int64_t at,
                                     acc_t<T> (&values)[kSize]) {
  if (factor.inner == 1 && factor.count >= elements) return read(factor.data, at, values);
  int64_t entry, place;
  if (((at | factor.inner | factor.count) >> 32) == 0) {
    const uint32_t run = static_cast<uint32_t>(at) / static_cast<uint32_t>(factor.inner);
    place = at - static_cast<int64_t>(run) * factor.inner;
    entry = run % static_cast<uint32_t>(factor.count);
  } else {
    place = at % factor.inner;
    entry = at / factor.inner % factor.count;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    values[k] = to_acc(factor.data[entry]);
    if (++place < factor.inner) continue;
    place = 0;
    if (++entry == factor.count) entry = 0;
  }
}

// The terms of neighbouring elements, times their weights. Returns the sum of the weights.
template <class T, class Loss, int kSize>
__device__ __forceinline__ acc_t<T> piece_terms(const LossInputs<T>& in, const Loss& loss, int64_t at,
                                                math::LossTerm<acc_t<T>> (&terms)[kSize]) {
  using Acc = acc_t<T>;
  Acc x[kSize], y[kSize], p[kSize], w[kSize];
  read(in.input, at, x);
  read(in.target, at, y);
  if constexpr (Loss::kHasPosWeight) read(in.pos_weight, in.count, at, p);
  if (in.weight.data) read(in.weight, in.count, at, w);
  Acc weight_sum = 0;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const Acc weight = in.weight.data ? w[k] : Acc(1);
    terms[k] = loss(x[k], y[k], Loss::kHasPosWeight ? p[k] : Acc(1));
    terms[k].value *= weight;
    terms[k].slope *= weight;
    weight_sum += weight;
  }
  return weight_sum;
}

// Writes every element's loss, or each block's sum of the losses and of what their mean divides by.
template <class T, class Loss>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    loss_forward_kernel(LossInputs<T> in, Loss loss, bool divides_by_weight, T* per_element,
                        double* partials) {
  using Acc = acc_t<T>;
  PYOPS_SHARED_ARRAY(double, scratch, kLossScratch);
  LossSum sum;
  for_each_piece(in, [&](int64_t at, auto size) {
    math::LossTerm<Acc> terms[size.value];
    Acc values[size.value];
    const Acc weights = piece_terms(in, loss, at, terms);
    Acc total = 0;
#pragma unroll
    for (int k = 0; k < size.value; ++k) {
      values[k] = terms[k].value;
      total += values[k];
    }
    if (per_element) {
      write(per_element, at, values);
    } else {
      sum.add(total, divides_by_weight ? weights : Acc(size.value));
    }
  });
  if (partials) store_block_sum(sum, partials, scratch);
}

template <class T, class Loss>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    loss_backward_kernel(LossInputs<T> in, Loss loss, const acc_t<T>* grad_loss, const acc_t<T>* divisor,
                         const T* grad_per_element, T* grad, T* negated) {
  using Acc = acc_t<T>;
  const Acc scale = grad_per_element ? Acc(1) : divisor ? *grad_loss / *divisor : *grad_loss;
  for_each_piece(in, [&](int64_t at, auto size) {
    math::LossTerm<Acc> terms[size.value];
    Acc upstream[size.value], values[size.value];
    if (grad_per_element) read(grad_per_element, at, upstream);
    piece_terms(in, loss, at, terms);
#pragma unroll
    for (int k = 0; k < size.value; ++k) {
      values[k] = terms[k].slope * (grad_per_element ? upstream[k] : scale);
    }
    write(grad, at, values);
    if (!negated) return;
#pragma unroll
    for (int k = 0; k < size.value; ++k) values[k] = -values[k];
    write(negated, at, values);
  });
}

// Packs need all tensors with an entry per element to be aligned alike. A null one is.
template <class T, class... Others>
LossInputs<T> inputs_of(const LossArguments& a, const Others*... others) {
  LossInputs<T> in{a.input.numel(),
                   false,
                   data<T>(a.input),
                   data<T>(a.target),
                   {a.weight, a.weight_inner},
                   {a.pos_weight, a.pos_weight_inner}};
  const auto alike = [&](const T* p) { return !p || same_alignment(in.input, p); };
  const auto factor = [&](const Repeated<T>& f) {
    return f.inner > 1 || f.count < in.count || alike(f.data);
  };
  in.aligned = alike(in.target) && factor(in.weight) && factor(in.pos_weight) && (alike(others) && ...);
  return in;
}

template <class T>
unsigned loss_blocks(int64_t count, int packs_per_thread) {
  const int64_t per_block = int64_t{kThreads} * Pack<T>::kSize * packs_per_thread;
  return blocks_for(count, per_block);
}

std::tuple<Tensor, Tensor> elementwise_loss_forward(Tensor input, Tensor target, std::optional<Tensor> weight,
                                                    int64_t weight_inner, std::optional<Tensor> pos_weight,
                                                    int64_t pos_weight_inner, int64_t kind, double parameter,
                                                    int64_t reduction) {
  const char* op = "elementwise_loss_forward";
  const LossArguments a(op, input, target, weight, weight_inner, pos_weight, pos_weight_inner, kind,
                        parameter, reduction);
  const DeviceScope device(input);
  const ScalarType acc = accumulate_type(a.type());
  Tensor loss = new_tensor(input, a.loss_shape(), a.loss_type());
  Tensor divisor = new_tensor(input, {}, acc);
  dispatch_floating(a.type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    T* const per_element = a.per_element() ? mutable_data<T>(loss) : nullptr;
    const LossInputs<T> in = inputs_of<T>(a, per_element);
    const unsigned blocks = loss_blocks<T>(in.count, per_element ? 1 : kPacksPerThread);
    std::optional<Tensor> partials;
    if (!per_element) partials = new_tensor(input, {blocks, 2}, ScalarType::Double);
    double* const sums = partials ? mutable_data<double>(*partials) : nullptr;
    if (in.count > 0 || !a.per_element()) {
      math::dispatch_loss<Acc>(a.kind, parameter, pos_weight.has_value(), [&](const auto& term_of) {
        launch(loss_forward_kernel<T, std::decay_t<decltype(term_of)>>, blocks, kThreads, 0, device.stream,
               in, term_of, a.divides_by_weight(), per_element, sums);
      });
    }
    if (a.per_element()) {
      check(cudaMemsetAsync(mutable_data<Acc>(divisor), 0, sizeof(Acc), device.stream), "clearing a number");
    } else {
      launch(finish_loss_kernel<Acc>, 1, kFinishThreads, 0, device.stream, sums, blocks,
             a.reduction == Reduction::kMean, mutable_data<Acc>(loss), mutable_data<Acc>(divisor));
    }
  });
  return {loss, divisor};
}

std::tuple<Tensor, Tensor> elementwise_loss_backward(Tensor grad_loss, Tensor input, Tensor target,
                                                     std::optional<Tensor> weight, int64_t weight_inner,
                                                     std::optional<Tensor> pos_weight,
                                                     int64_t pos_weight_inner, Tensor divisor, int64_t kind,
                                                     double parameter, int64_t reduction, bool both) {
  const char* op = "elementwise_loss_backward";
  const LossArguments a(op, input, target, weight, weight_inner, pos_weight, pos_weight_inner, kind,
                        parameter, reduction);
  a.check_backward(op, grad_loss, divisor);
  a.check_both(op, both);
  const DeviceScope device(input);
  Tensor grad_input = new_tensor(input, shape_of(input), a.type());
  Tensor grad_target = new_tensor(input, both ? shape_of(input) : std::vector<int64_t>{0}, a.type());
  dispatch_floating(a.type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    if (input.numel() == 0) return;
    T* const grad = mutable_data<T>(grad_input);
    T* const negated = both ? mutable_data<T>(grad_target) : nullptr;
    const T* const per_element = a.per_element() ? data<T>(grad_loss) : nullptr;
    const Acc* const upstream = a.per_element() ? nullptr : data<Acc>(grad_loss);
    const LossInputs<T> in = inputs_of<T>(a, grad, negated, per_element);
    math::dispatch_loss<Acc>(a.kind, parameter, pos_weight.has_value(), [&](const auto& term_of) {
      launch(loss_backward_kernel<T, std::decay_t<decltype(term_of)>>, loss_blocks<T>(in.count, 1), kThreads,
             0, device.stream, in, term_of, upstream,
             a.reduction == Reduction::kMean ? data<Acc>(divisor) : nullptr, per_element, grad, negated);
    });
  });
  return {grad_input, grad_target};
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("elementwise_loss_forward", TORCH_BOX(&pyops::cuda::elementwise_loss_forward));
  m.impl("elementwise_loss_backward", TORCH_BOX(&pyops::cuda::elementwise_loss_backward));
}
