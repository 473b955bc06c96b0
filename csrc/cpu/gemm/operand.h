// Torch's matrices as operands of gemm.h.
#pragma once

#include "binding/tensor.h"
#include "cpu/gemm/pack.h"

namespace pyops::cpu {

// The stride of a dimension nobody steps along is arbitrary in torch; calling it 1 lets single rows and
// columns pass as either layout.
inline int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) <= 1 ? 1 : t.stride(dim); }

// The operand whose rows are x's terms: x.t() where x was a matrix.
template <class T>
Operand<T> transposed(const Operand<T>& x) {
  return {x.data, x.depth_stride, x.row_stride};
}

// t [*, K] as the left operand of a product: 2-D, or contiguous with leading dimensions that become one. As
// the right operand, whose rows are the columns of t, it is transposed(rows_of(t)).
template <class T>
Operand<T> rows_of(const Tensor& t) {
  if (t.dim() == 2) return {data<T>(t), step(t, 0), step(t, 1)};
  return {data<T>(t), t.size(t.dim() - 1), 1};
}

}  // namespace pyops::cpu
