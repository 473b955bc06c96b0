// The ops of dropout.cu that other ops end in; see pyops/ops/dropout.py.
#pragma once

#include <optional>
#include <tuple>

#include "binding/tensor.h"

namespace pyops::cuda {

Tensor bias_activation_dropout_forward(Tensor input, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, std::optional<Tensor> seed, double p,
                                       int64_t kind, double a, double b, int64_t dim);

std::tuple<Tensor, Tensor> bias_activation_dropout_backward(Tensor grad_output, std::optional<Tensor> saved,
                                                            std::optional<Tensor> bias,
                                                            std::optional<Tensor> seed, double p,
                                                            int64_t kind, double a, double b, int64_t dim,
                                                            bool saved_is_output, bool needs_bias);

// The sums of a gradient over all dimensions but `dim`.
Tensor bias_gradient(const Tensor& grad_output, int64_t dim);

}  // namespace pyops::cuda
