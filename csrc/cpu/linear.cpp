// linear with bias, activation and dropout on the CPU: cpu/gemm forms the product, and the epilogue follows
// while the sums are in cache.
#include "binding/linear.h"

#include <tuple>
#include <type_traits>

#include "cpu/epilogue/matrix.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/operand.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {
namespace {

template <class T>
MatrixEpilogue<acc_t<T>> forward_epilogue(const acc_t<T>* bias, const Tensor* saved, const Tensor& output,
                                          int64_t N, const LinearEpilogue& e) {
  MatrixEpilogue<acc_t<T>> epilogue;
  T* const z = saved ? mutable_data<T>(*saved) : nullptr;
  with_activation<acc_t<T>>(e.activation, [&](auto activation) {
    epilogue = ForwardEpilogue<T, decltype(activation)>{
        bias, z, mutable_data<T>(output), N, activation, seed_data(e.seed), e.p};
  });
  return epilogue;
}

// The bias in the accumulation type: itself, or a copy in `widened`.
template <class T>
const acc_t<T>* widened_bias(const std::optional<Tensor>& bias, std::vector<acc_t<T>>& widened) {
  const T* const values = data_or_null<T>(bias);
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return values;
  } else {
    if (values == nullptr) return nullptr;
    widened.resize(bias->size(0));
    for_each_vector<acc_t<T>>(bias->size(0), [&](int64_t j, int lanes) {
      store_lanes(widened.data() + j, load_lanes(values + j, lanes), lanes);
    });
    return widened.data();
  }
}

// The sums are formed in the accumulation type: in place where that is the output's, in the threads' memory
// where the kernels leave them there, otherwise beside the output.
template <class T>
void form_output(const Tensor& output, const Tensor* saved, const Tensor& input, const Tensor& weight,
                 const std::optional<Tensor>& bias, const LinearShape& s, const LinearEpilogue& e) {
  using Acc = acc_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, Acc>;
  const Operand<T> a = rows_of<T>(input), b = rows_of<T>(weight);
  std::vector<Acc> widened;
  const auto epilogue = forward_epilogue<T>(widened_bias<T>(bias, widened), saved, output, s.N, e);
  if constexpr (std::is_same_v<T, bfloat16>) {
    const PairKernels* const kernels = pair_kernels();
    if (kernels && !is_skinny(s.M, s.K, a, b)) {
      return pair_gemm(*kernels, s.M, s.N, s.K, a, b, ThreadPool{}, epilogue);
    }
  }
  std::optional<Tensor> scratch;
  if (!kInPlace) scratch = new_output(input, {s.M, s.N}, accumulate_type(input.scalar_type()));
  Acc* const sums = mutable_data<Acc>(scratch ? *scratch : saved ? *saved : output);
  const auto run = [&](const auto& finish) {
    gemm(s.M, s.N, s.K, a, b, sums, s.N, Acc(0), ThreadPool{}, finish);
  };
  if (kInPlace && !bias && e.is_identity()) return run(NoEpilogue{});
  run([&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    epilogue(sums + row * s.N + column, s.N, row, rows, column, columns);
  });
}

// output = dropout(activation(z)), z = input @ weight.t() + bias, and z itself if it is to be saved.
std::tuple<Tensor, Tensor> linear_forward(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> seed, double p, int64_t kind, double alpha,
                                          double beta, bool save_input_of_activation) {
  const char* op = "linear";
  const LinearEpilogue e{seed, p, {kind, alpha, beta}};
  const LinearShape s = check_linear_forward(input, weight, bias, e, op);
  const ScalarType type = input.scalar_type();
  Tensor output = new_output(input, s.output, type);
  Tensor saved = new_output(input, save_input_of_activation ? s.output : std::vector<int64_t>{0}, type);
  const Tensor* const z = save_input_of_activation ? &saved : nullptr;
  dispatch_floating(type, op,
                    [&](auto tag) { form_output<decltype(tag)>(output, z, input, weight, bias, s, e); });
  return {output, saved};
}

// Returns dz, which is the gradient itself where nothing follows the product, and forms the bias gradient.
template <class T>
Tensor backward_of_epilogue(const Tensor& grad_output, const std::optional<Tensor>& saved,
                            bool saved_is_output, Tensor* grad_bias, const LinearShape& s,
                            const LinearEpilogue& e) {
  using Acc = acc_t<T>;
  const T* const grad = data<T>(grad_output);
  if (e.is_identity()) {
    if (grad_bias) column_sums(grad, s.M, s.N, mutable_data<T>(*grad_bias));
    return grad_output;
  }
  Tensor dz = new_output(grad_output, s.output, grad_output.scalar_type());
  const EpilogueSaved<T> from{data_or_null<T>(saved), saved_is_output, {}};
  with_activation<acc_t<T>>(e.activation, [&](auto activation) {
    T* const to = mutable_data<T>(dz);
    T* const total = grad_bias ? mutable_data<T>(*grad_bias) : nullptr;
    sum_rows(s.M, s.N, total, [&](int64_t begin, int64_t end, Acc* sums) {
      DropoutMask<Acc> mask(seed_data(e.seed), e.p);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * s.N;
        epilogue_backward(activation, mask, grad + at, from.from(at), to + at, sums, -1, s.N, at);
      }
    });
  });
  return dz;
}

// grad_input [M, K] = dz @ weight.
template <class T>
void input_gradient(const Tensor& out, const Tensor& dz, const Tensor& weight, const LinearShape& s) {
  gemm(s.M, s.K, s.N, rows_of<T>(dz), transposed(rows_of<T>(weight)), mutable_data<T>(out), s.K, acc_t<T>(0),
       ThreadPool{});
}

// grad_weight [N, K] = dz.t() @ input.
template <class T>
void weight_gradient(const Tensor& out, const Tensor& dz, const Tensor& input, const LinearShape& s) {
  gemm(s.N, s.K, s.M, transposed(rows_of<T>(dz)), transposed(rows_of<T>(input)), mutable_data<T>(out), s.K,
       acc_t<T>(0), ThreadPool{});
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor grad_output, std::optional<Tensor> input,
                                                   Tensor weight, std::optional<Tensor> saved,
                                                   std::optional<Tensor> seed, double p, int64_t kind,
                                                   double alpha, double beta, bool saved_is_output,
                                                   bool needs_input, bool needs_weight, bool needs_bias) {
  const char* op = "linear";
  const LinearEpilogue e{seed, p, {kind, alpha, beta}};
  const LinearShape s =
      check_linear_backward(grad_output, input, weight, saved, saved_is_output, needs_weight, e, op);
  const ScalarType type = weight.scalar_type();
  const auto output = [&](bool needed, const std::vector<int64_t>& shape) {
    return new_output(weight, needed ? shape : std::vector<int64_t>{0}, type);
  };
  Tensor grad_input = output(needs_input, s.input);
  Tensor grad_weight = output(needs_weight, {s.N, s.K});
  Tensor grad_bias = output(needs_bias, {s.N});
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    const Tensor dz =
        backward_of_epilogue<T>(grad_output, saved, saved_is_output, needs_bias ? &grad_bias : nullptr, s, e);
    if (needs_input) input_gradient<T>(grad_input, dz, weight, s);
    if (needs_weight) weight_gradient<T>(grad_weight, dz, *input, s);
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&pyops::cpu::linear_forward));
  m.impl("linear_backward", TORCH_BOX(&pyops::cpu::linear_backward));
}
