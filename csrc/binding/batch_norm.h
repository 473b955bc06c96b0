// Checks of the batch normalisation ops that hold on every device.
#pragma once

#include "binding/activation.h"
#include "binding/tensor.h"
#include "math/batch_norm.h"

namespace pyops {

// A contiguous tensor as [outer, channels, inner].
struct BatchNormShape {
  // With at least as many elements of a channel in a row, such a run is a row of one channel; otherwise
  // everything behind `outer` is a row, in which channels alternate (as in pyops/ops/tools/batch_norm.py).
  static constexpr int64_t kLongRun = 64;

  int64_t outer;
  int64_t channels;
  int64_t inner;

  PYOPS_HD int64_t numel() const { return outer * channels * inner; }
  PYOPS_HD int64_t count() const { return outer * inner; }  // values per channel
  PYOPS_HD bool has_runs() const { return inner >= kLongRun; }
  PYOPS_HD int64_t rows() const { return has_runs() ? outer * channels : outer; }
  PYOPS_HD int64_t width() const { return has_runs() ? inner : channels * inner; }
  // A row of the mask: one bit per element, the first in the lowest.
  PYOPS_HD int64_t mask_bytes() const { return (width() + 7) / 8; }

  static BatchNormShape of(const Tensor& input, int64_t dim, const char* op) {
    check_dense(input, op, "input", input);
    PYOPS_CHECK(is_floating(input.scalar_type()), op,
                ": expected float32, float64, bfloat16 or float16, got ",
                torch::headeronly::toString(input.scalar_type()));
    PYOPS_CHECK(dim >= 0 && dim < input.dim(), op, ": dim must be in [0, ", input.dim() - 1, "], got ", dim);
    BatchNormShape s{1, input.size(dim), 1};
    for (int64_t i = 0; i < dim; ++i) s.outer *= input.size(i);
    for (int64_t i = dim + 1; i < input.dim(); ++i) s.inner *= input.size(i);
    return s;
  }
};

// One number per channel, of the input's dtype or the one it accumulates in.
inline void check_channel_vector(const std::optional<Tensor>& t, const char* op, const char* name,
                                 const Tensor& input, const BatchNormShape& shape) {
  if (!t) return;
  check_dense(*t, op, name, input);
  check_shape(*t, op, name, {shape.channels});
  if (t->scalar_type() != input.scalar_type()) {
    check_type(*t, op, name, accumulate_type(input.scalar_type()));
  }
}

inline void check_like_input(const std::optional<Tensor>& t, const char* op, const char* name,
                             const Tensor& input) {
  if (!t) return;
  check_dense(*t, op, name, input);
  check_type(*t, op, name, input.scalar_type());
  check_shape(*t, op, name, shape_of(input));
}

inline void check_channel_pair(const std::optional<Tensor>& t, const char* op, const char* name,
                               const Tensor& input, const BatchNormShape& shape) {
  if (!t) return;
  check_dense(*t, op, name, input);
  check_type(*t, op, name, ScalarType::Double);
  check_shape(*t, op, name, {2, shape.channels});
}

// What the forward is given beside the input.
struct BatchNormArguments {
  std::optional<Tensor> weight, bias, residual, running_mean, running_var, statistics;

  BatchNormShape check(const Tensor& input, int64_t dim, bool training, const math::ActivationParams& params,
                       bool save_mask, const char* op) const {
    const BatchNormShape shape = BatchNormShape::of(input, dim, op);
    check_channel_vector(weight, op, "weight", input, shape);
    check_channel_vector(bias, op, "bias", input, shape);
    check_channel_vector(running_mean, op, "running_mean", input, shape);
    check_channel_vector(running_var, op, "running_var", input, shape);
    check_like_input(residual, op, "residual", input);
    check_channel_pair(statistics, op, "statistics", input, shape);
    check_activation_kind(params, op);
    PYOPS_CHECK(training || statistics || (running_mean && running_var), op,
                ": running_mean and running_var must be given unless training");
    PYOPS_CHECK(!save_mask || params.is(math::ActivationKind::kRelu), op,
                ": save_mask is for relu, got kind ", params.kind);
    return shape;
  }
};

// What the backward is given beside the gradient and the input.
struct BatchNormSaved {
  std::optional<Tensor> weight, bias, residual, mask;
  Tensor mean, rstd;
  std::optional<Tensor> mean_gradients;

  BatchNormShape check(const Tensor& grad_output, const Tensor& input, int64_t dim,
                       const math::ActivationParams& params, const char* op) const {
    const BatchNormShape shape = BatchNormShape::of(input, dim, op);
    check_like_input(grad_output, op, "grad_output", input);
    check_channel_vector(weight, op, "weight", input, shape);
    check_channel_vector(bias, op, "bias", input, shape);
    check_like_input(residual, op, "residual", input);
    check_channel_pair(mean_gradients, op, "mean_gradients", input, shape);
    check_dense(mean, op, "mean", input);
    check_type(mean, op, "mean", ScalarType::Double);
    check_shape(mean, op, "mean", {shape.channels});
    check_dense(rstd, op, "rstd", input);
    check_type(rstd, op, "rstd", accumulate_type(input.scalar_type()));
    check_shape(rstd, op, "rstd", {shape.channels});
    check_activation_kind(params, op);
    if (mask) {
      check_dense(*mask, op, "mask", input);
      check_type(*mask, op, "mask", ScalarType::Byte);
      check_shape(*mask, op, "mask", {shape.rows(), shape.mask_bytes()});
      PYOPS_CHECK(params.is(math::ActivationKind::kRelu), op, ": a mask is for relu, got kind ", params.kind);
    }
    return shape;
  }

  // Those of weight and bias have the parameters' dtype.
  ScalarType parameter_type() const {
    return weight ? weight->scalar_type() : bias ? bias->scalar_type() : rstd.scalar_type();
  }
};

}  // namespace pyops
