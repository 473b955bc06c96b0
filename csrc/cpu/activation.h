// The gradient of an activation, compiled once for the ops that fuse one.
#pragma once

#include <cstdint>

#include "binding/tensor.h"
#include "math/activation.h"

namespace pyops::cpu {

// The gradient of the activation's input, in the order of memory that the tensors share.
void activation_gradient(const Tensor& grad, const Tensor& saved, const math::ActivationParams& params,
                         bool saved_is_output, const char* op, const Tensor& to);

}  // namespace pyops::cpu
