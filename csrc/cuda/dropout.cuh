// What other ops of CUDA end in: the work of dropout.cu's ops, which pyops/ops/dropout.py describes.
#pragma once

#include <optional>
#include <tuple>

#include "binding/tensor.h"
#include "math/activation.h"

namespace pyops::cuda {

Tensor bias_activation_dropout(const Tensor& input, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, const std::optional<Tensor>& seed,
                               double p, const math::ActivationParams& params, int64_t dim);

std::tuple<Tensor, Tensor> bias_activation_dropout_gradients(
    const Tensor& grad_output, const std::optional<Tensor>& saved, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& seed, double p, const math::ActivationParams& params, int64_t dim,
    bool saved_is_output, bool needs_bias);

// The sums of a gradient over all dimensions but `dim`.
Tensor bias_gradient(const Tensor& grad_output, int64_t dim);

}  // namespace pyops::cuda
