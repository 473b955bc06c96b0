// Torch's matrices as operands of gemm.h.
#pragma once

#include <algorithm>

#include "../binding/tensor.h"
#include "gemm.h"
#include "parallel.h"

namespace pyops::cpu {

// The stride of a dimension nobody steps along is arbitrary in torch; calling it 1 lets single rows and
// columns pass as either layout.
inline int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) <= 1 ? 1 : t.stride(dim); }

// The 2-D tensor t as the left operand of a product (t @ ...), or t.t() as it.
template <class T>
Operand<T> left_operand(const Tensor& t, bool transposed = false) {
  const T* data = static_cast<const T*>(t.const_data_ptr());
  return transposed ? Operand<T>{data, step(t, 1), step(t, 0)} : Operand<T>{data, step(t, 0), step(t, 1)};
}

// t, or t.t(), as the right operand: its columns are along N.
template <class T>
Operand<T> right_operand(const Tensor& t, bool transposed = false) {
  return left_operand<T>(t, !transposed);
}

}  // namespace pyops::cpu
