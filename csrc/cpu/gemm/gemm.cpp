// gemm_: the library's own matrix multiplication as an op; see gemm.h for the algorithm.
#include "cpu/gemm/gemm.h"

#include <cstdint>
#include <type_traits>

#include "cpu/gemm/operand.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

PYOPS_GEMM_PARTS()

namespace {

constexpr const char* kOp = "gemm_";

void check_operand(const Tensor& t, const char* name, const Tensor& out) {
  PYOPS_CHECK(t.dim() == 2, kOp, ": ", name, " must have 2 dimensions, got shape ", shape_string(t));
  PYOPS_CHECK(same_device(t, out), kOp, ": ", name, " must be on the device of out");
  PYOPS_CHECK(t.numel() == 0 || step(t, 0) == 1 || step(t, 1) == 1, kOp, ": ", name,
              " must have one unit stride (rows or columns contiguous), got strides (", t.stride(0), ", ",
              t.stride(1), ")");
}

void check(const Tensor& out, const Tensor& a, const Tensor& b) {
  check_operand(a, "a", out);
  check_operand(b, "b", out);
  PYOPS_CHECK(a.size(1) == b.size(0), kOp, ": b must have shape (K, N) with K = ", a.size(1),
              " as in a, got shape ", shape_string(b));
  check_type(b, kOp, "b", a.scalar_type());
  check_shape(out, kOp, "out", {a.size(0), b.size(1)});
  check_dense(out, kOp, "out", out);
  // Either the operands' dtype or the one they are accumulated in.
  if (out.scalar_type() != a.scalar_type()) {
    check_type(out, kOp, "out", accumulate_type(a.scalar_type()));
  }
}

// First and one-past-last byte that the elements of a 2-D tensor span.
struct Extent {
  explicit Extent(const Tensor& t) : begin(reinterpret_cast<uintptr_t>(t.const_data_ptr())) {
    int64_t last = 0;
    for (int64_t dim = 0; dim < t.dim(); ++dim) last += (t.size(dim) - 1) * t.stride(dim);
    end = t.numel() == 0 ? begin : begin + static_cast<uintptr_t>((last + 1) * t.element_size());
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }

  uintptr_t begin;
  uintptr_t end;
};

template <class T, class Out>
void multiply(const Tensor& out, const Tensor& a, const Tensor& b, double beta) {
  gemm(a.size(0), b.size(1), a.size(1), rows_of<T>(a), transposed(rows_of<T>(b)), mutable_data<Out>(out),
       b.size(1), static_cast<acc_t<T>>(beta), ThreadPool{});
}

// out[M, N] = a[M, K] @ b[K, N] + beta * out, accumulated in float32 (float64 for double).
void gemm_(Tensor out, Tensor a, Tensor b, double beta) {
  check(out, a, b);
  const Extent extent(out);
  PYOPS_CHECK(!extent.overlaps(Extent(a)), kOp, ": out must not share memory with a");
  PYOPS_CHECK(!extent.overlaps(Extent(b)), kOp, ": out must not share memory with b");
  dispatch_floating(a.scalar_type(), kOp, [&](auto tag) {
    using T = decltype(tag);
    if (out.scalar_type() == a.scalar_type()) {
      multiply<T, T>(out, a, b, beta);
    } else if constexpr (!std::is_same_v<T, acc_t<T>>) {
      multiply<T, acc_t<T>>(out, a, b, beta);
    }
  });
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("gemm_", TORCH_BOX(&pyops::cpu::gemm_)); }
