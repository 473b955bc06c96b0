// torch's own matrix multiplication, through the dispatcher: the vendor's library on whatever device.
//
// The variants that write to `out` are called because autocast leaves them alone: it would change the dtype
// of a result.
#pragma once

#include <array>
#include <optional>

#include "binding/tensor.h"

namespace pyops {

// t with shape [rows, columns], where its memory allows that without a copy: t is contiguous, or 2-D already.
inline Tensor matrix_view(const Tensor& t, int64_t rows, int64_t columns) {
  return t.dim() == 2 ? t : torch::stable::view(t, {rows, columns});
}

// out[M, N] = input[M, K] @ weight[N, K].t(), plus `bias` [N], rounded once.
inline void library_linear(const Tensor& out, const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(input), from(weight), from(bias), from(out)};
  PYOPS_TORCH_CALL(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the reference that was returned
}

// out[M, N] = a[M, K] @ b[K, N].
inline void library_mm(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  PYOPS_TORCH_CALL(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

// The answer of an op that returns a bool. torch's switches are process-wide and may change between calls,
// and no stable C++ interface tells them: pyops/precision.py asks torch.
template <class... Arguments>
bool ask(const char* op, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments) + 1> stack{torch::stable::detail::from(arguments)...};
  PYOPS_TORCH_CALL(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
}

// Whether torch lets products of float32 on CUDA round their factors to TF32.
inline bool library_allows_tf32() { return ask("pyops::matmul_allows_tf32"); }

}  // namespace pyops
