// What every op's C++ entry needs from torch: LibTorch Stable ABI aliases, checks, dtype dispatch.
//
// Nothing here may use an unstable at:: or c10:: symbol: tests/build/test_build.py reads the library.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "binding/torch_call.h"
#include "common/check.h"
#include "common/dtypes.h"

namespace pyops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline std::string shape_string(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + ")";
}

inline std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && a.get_device_index() == b.get_device_index();
}

// float32 for 16-bit types, otherwise the type itself.
inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Uninitialised, of these sizes and strides, on the device of `like`. The C shim is called directly:
// torch::stable::new_empty looks its operator up by name, which takes longer than a small kernel.
inline Tensor new_strided(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                          torch::headeronly::IntHeaderOnlyArrayRef strides, ScalarType type) {
  int32_t device_type, device_index;
  PYOPS_TORCH_CALL(aoti_torch_get_device_type(like.get(), &device_type));
  PYOPS_TORCH_CALL(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  PYOPS_TORCH_CALL(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                            dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

// The same, contiguous.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i > 0; --i) {
    strides[i - 1] = stride;
    PYOPS_CHECK(!__builtin_mul_overflow(stride, std::max<int64_t>(shape[i - 1], 1), &stride),
                "a tensor of shape ", shape_string(shape), " has more elements than can be counted");
  }
  return new_strided(like, shape, strides, type);
}

// The conditions under which a raw pointer into `t` may be used; `op` and `name` are for the message.
inline void check_dense(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  PYOPS_CHECK(same_device(t, like), op, ": ", name, " must be on the device of the first tensor");
  PYOPS_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

// Whether the elements fill their memory without gaps or repetition, in whatever order of dimensions.
inline bool is_packed(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride and size, where the stride matters
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1) dims.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The condition under which the tensor's memory may be seen as numel() elements in a row.
inline void check_packed(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  PYOPS_CHECK(same_device(t, like), op, ": ", name, " must be on the device of the first tensor");
  PYOPS_CHECK(is_packed(t), op, ": ", name, " must be dense (contiguous after some permutation)");
}

// Whether elements of the same index have the same place in both tensors' memory; the shapes are equal.
inline void check_same_order(const Tensor& t, const char* op, const char* name, const Tensor& like) {
  bool same = true;
  for (int64_t i = 0; i < t.dim(); ++i) same &= t.size(i) <= 1 || t.stride(i) == like.stride(i);
  PYOPS_CHECK(same || t.numel() == 0, op, ": ", name,
              " must be laid out in memory as the tensor it belongs to");
}

// As new_tensor, with the shape and the strides of the packed tensor `like`.
inline Tensor new_tensor_like(const Tensor& like) {
  if (like.is_contiguous()) return new_tensor(like, shape_of(like), like.scalar_type());
  return new_strided(like, like.sizes(), like.strides(), like.scalar_type());
}

inline void check_shape(const Tensor& t, const char* op, const char* name,
                        const std::vector<int64_t>& shape) {
  const auto sizes = t.sizes();
  PYOPS_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), op, ": ", name,
              " must have shape ", shape_string(shape), ", got ", shape_string(t));
}

inline void check_type(const Tensor& t, const char* op, const char* name, ScalarType type) {
  PYOPS_CHECK(t.scalar_type() == type, op, ": ", name, " must have dtype ", torch::headeronly::toString(type),
              ", got ", torch::headeronly::toString(t.scalar_type()));
}

inline Reduction check_reduction(int64_t reduction, const char* op) {
  PYOPS_CHECK(reduction >= 0 && reduction <= 2, op, ": reduction must be 0 (none), 1 (mean) or 2 (sum), got ",
              reduction);
  return static_cast<Reduction>(reduction);
}

// A tensor's memory as elements of type T.
template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// Calls f with a value of the C++ type that `type` stands for: dispatch_floating(t, op, [&](auto tag) {
// using T = decltype(tag); ... }).
template <class F>
void dispatch_floating(ScalarType type, const char* op, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      PYOPS_CHECK(false, op, ": expected float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(type));
  }
}

}  // namespace pyops
