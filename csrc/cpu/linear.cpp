// linear with bias, activation and dropout on the CPU. cpu/gemm forms the product, or torch's library where
// that is faster; the epilogue follows while the output is in cache.
#include "binding/linear.h"

#include <tuple>
#include <type_traits>

#include "binding/matmul.h"
#include "cpu/epilogue/matrix.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/operand.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {
namespace {

// oneDNN multiplies pairs of bfloat16 by an instruction that cpu/gemm does not use, but takes 10 us to begin.
// Measured on Zen 4, one thread, times of cpu/gemm relative to oneDNN: [256, 784] x [784, 256] 2.0,
// [8, 784] x [784, 256] 1.2, [32, 16] x [16, 16] 0.2; float16, without such an instruction, 0.1 to 0.02;
// float32 and float64 0.5. Products of few rows or terms (cpu/gemm/skinny.h) are always ours.
bool library_is_faster(ScalarType type, int64_t M, int64_t N, int64_t K) {
#if defined(__x86_64__)
  constexpr double kLeastWork = 1 << 21;
  return type == ScalarType::BFloat16 && std::min({M, N, K}) > kSkinny &&
         double(M) * double(N) * double(K) >= kLeastWork && __builtin_cpu_supports("avx512bf16");
#else
  (void)type, (void)M, (void)N, (void)K;
  return false;
#endif
}

template <class T, class Sum>
MatrixEpilogue forward_epilogue(const Sum* sums, const acc_t<T>* bias, const Tensor* saved,
                                const Tensor& output, int64_t N, const LinearEpilogue& e) {
  MatrixEpilogue epilogue;
  T* const z = saved ? mutable_data<T>(*saved) : nullptr;
  with_activation<acc_t<T>>(e.activation, [&](auto activation) {
    epilogue = ForwardEpilogue<T, Sum, decltype(activation)>{
        sums, bias, z, mutable_data<T>(output), N, activation, seed_data(e.seed), e.p};
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

// The sums are formed in the accumulation type: in place where that is the output's, otherwise beside it.
template <class T>
void forward_by_gemm(const Tensor& output, const Tensor* saved, const Tensor& input, const Tensor& weight,
                     const std::optional<Tensor>& bias, const LinearShape& s, const LinearEpilogue& e) {
  using Acc = acc_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, Acc>;
  std::optional<Tensor> scratch;
  if (!kInPlace) scratch = new_output(input, {s.M, s.N}, accumulate_type(input.scalar_type()));
  Acc* const sums = mutable_data<Acc>(scratch ? *scratch : saved ? *saved : output);
  const auto run = [&](const auto& epilogue) {
    gemm(s.M, s.N, s.K, rows_of<T>(input), rows_of<T>(weight), sums, s.N, Acc(0), ThreadPool{}, epilogue);
  };
  if (kInPlace && !bias && e.is_identity()) return run(NoEpilogue{});
  std::vector<Acc> widened;
  run(forward_epilogue<T, Acc>(sums, widened_bias<T>(bias, widened), saved, output, s.N, e));
}

// The library adds the bias; the rest is a pass over its result.
template <class T>
void forward_by_library(const Tensor& output, const Tensor* saved, const Tensor& input, const Tensor& weight,
                        const std::optional<Tensor>& bias, const LinearShape& s, const LinearEpilogue& e) {
  const Tensor& z = saved ? *saved : output;
  library_linear(matrix_view(z, s.M, s.N), matrix_view(input, s.M, s.K), weight, bias);
  if (e.is_identity()) return;
  const auto epilogue = forward_epilogue<T, T>(mutable_data<T>(z), nullptr, nullptr, output, s.N, e);
  parallel_for(s.M, s.N, [&](int64_t begin, int64_t end) { epilogue(begin, end - begin, 0, s.N); });
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
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (library_is_faster(type, s.M, s.N, s.K)) {
        return forward_by_library<T>(output, z, input, weight, bias, s, e);
      }
    }
    forward_by_gemm<T>(output, z, input, weight, bias, s, e);
  });
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
  if (library_is_faster(out.scalar_type(), s.M, s.K, s.N)) {
    return library_mm(matrix_view(out, s.M, s.K), matrix_view(dz, s.M, s.N), weight);
  }
  gemm(s.M, s.K, s.N, rows_of<T>(dz), transposed(rows_of<T>(weight)), mutable_data<T>(out), s.K, acc_t<T>(0),
       ThreadPool{});
}

// grad_weight [N, K] = dz.t() @ input.
template <class T>
void weight_gradient(const Tensor& out, const Tensor& dz, const Tensor& input, const LinearShape& s) {
  if (library_is_faster(out.scalar_type(), s.N, s.K, s.M)) {
    const Tensor transposed = torch::stable::transpose(matrix_view(dz, s.M, s.N), 0, 1);
    return library_mm(out, transposed, matrix_view(input, s.M, s.K));
  }
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
