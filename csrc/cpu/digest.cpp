// A digest of tensors' memory (runtime/digest.h) as an op: whether they are still what something was made of.

#include "cpu/runtime/digest.h"

#include <cstdint>
#include <vector>

#include "binding/tensor.h"

namespace pyops::cpu {
namespace {

int64_t digest(std::vector<Tensor> tensors) {
  uint64_t joined = 0;
  for (const Tensor& tensor : tensors) {
    check_packed(tensor, "digest", "tensors", tensors[0]);
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    joined = joined_digest(joined, digest_of(tensor.const_data_ptr(), bytes));
  }
  return static_cast<int64_t>(joined);
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("digest", TORCH_BOX(&pyops::cpu::digest)); }
