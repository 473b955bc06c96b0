// Checks of dropout and of its fusions that hold on every device.
#pragma once

#include "binding/activation.h"
#include "binding/softmax.h"
#include "math/dropout.h"

namespace pyops {

// Any two int64 make a mask, so the seed's values are not checked.
inline void check_dropout_mask(const std::optional<Tensor>& seed, double p, const char* op,
                               const Tensor& like) {
  PYOPS_CHECK(p >= 0 && p <= 1, op, ": p must be in [0, 1], got ", p);
  if (!seed) return;
  check_dense(*seed, op, "seed", like);
  check_type(*seed, op, "seed", ScalarType::Long);
  check_shape(*seed, op, "seed", {2});
}

// The seed on the device; null without dropout.
inline const int64_t* seed_data(const std::optional<Tensor>& seed) { return data_or_null<int64_t>(seed); }

// The elements as [outer, channels, inner], the bias along channels; one row when there is no bias.
inline ReducedShape bias_shape(const Tensor& t, bool has_bias, int64_t dim, const char* op) {
  if (has_bias) return ReducedShape::of(t, dim, op);
  int64_t total = 1;
  for (int64_t i = 0; i < t.dim(); ++i) total *= t.size(i);
  return {1, 1, total};
}

// A tensor of the same shape and dtype as `like`.
inline void check_companion(const std::optional<Tensor>& t, const char* op, const char* name,
                            const Tensor& like) {
  if (!t) return;
  check_dense(*t, op, name, like);
  check_type(*t, op, name, like.scalar_type());
  check_shape(*t, op, name, shape_of(like));
}

inline void check_bias(const std::optional<Tensor>& bias, const char* op, const Tensor& like,
                       const ReducedShape& s) {
  if (!bias) return;
  check_dense(*bias, op, "bias", like);
  check_type(*bias, op, "bias", like.scalar_type());
  check_shape(*bias, op, "bias", {s.classes});
}

// Whether the activation's derivative can be formed from its output; an error if there is no such activation.
inline bool is_from_output(const math::ActivationParams& params, const char* op) {
  bool from_output = false;
  check_activation_kind(params, op);
  math::dispatch_activation<float>(
      params, [&](const auto& f) { from_output = std::decay_t<decltype(f)>::kFromOutput; });
  return from_output;
}

inline ReducedShape check_fused_forward(const Tensor& input, const std::optional<Tensor>& bias,
                                        const std::optional<Tensor>& residual,
                                        const std::optional<Tensor>& seed, double p,
                                        const math::ActivationParams& params, int64_t dim, const char* op) {
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  const ReducedShape s = bias_shape(input, bias.has_value(), dim, op);
  check_bias(bias, op, input, s);
  check_companion(residual, op, "residual", input);
  check_activation_kind(params, op);
  return s;
}

inline ReducedShape check_fused_backward(const Tensor& grad_output, const std::optional<Tensor>& saved,
                                         const std::optional<Tensor>& bias, const std::optional<Tensor>& seed,
                                         double p, const math::ActivationParams& params, int64_t dim,
                                         bool saved_is_output, bool needs_bias, const char* op) {
  check_dense(grad_output, op, "grad_output", grad_output);
  check_dropout_mask(seed, p, op, grad_output);
  const ReducedShape s = bias_shape(grad_output, needs_bias || bias.has_value(), dim, op);
  check_companion(saved, op, "saved", grad_output);
  check_bias(bias, op, grad_output, s);
  const bool from_output = is_from_output(params, op);
  const bool identity = params.is(math::ActivationKind::kIdentity);
  PYOPS_CHECK(saved || identity, op, ": saved must be given unless the activation is the identity");
  PYOPS_CHECK(!saved || !saved_is_output || from_output, op,
              ": this activation's derivative needs its input, so saved_is_output must be false");
  return s;
}

}  // namespace pyops
