// The one operator of torch that our kernels call: a stable sort, to prepare indices on the GPU.
#pragma once

#include <array>
#include <optional>
#include <utility>

#include "binding/tensor.h"

namespace pyops {

// The sorted values of a 1-D tensor and where each was; equal ones stay in order.
inline std::pair<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(false)};
  PYOPS_TORCH_CALL(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace pyops
