"""Activations as torch's own functions, and their derivatives as torch's differentiable formulas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kinds import (
    ELU,
    GELU,
    GELU_TANH,
    HARDSIGMOID,
    HARDSWISH,
    HARDTANH,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SOFTPLUS,
    TANH,
    Activation,
)

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946

_aten = torch.ops.aten

# The function of (input, activation, inplace) ...
_FORWARD: dict[int, Callable[..., Tensor]] = {
    IDENTITY: lambda x, f, inplace: x,
    RELU: lambda x, f, inplace: torch.nn.functional.relu(x, inplace),
    LEAKY_RELU: lambda x, f, inplace: torch.nn.functional.leaky_relu(x, f.alpha, inplace),
    SIGMOID: lambda x, f, inplace: torch.sigmoid(x),
    TANH: lambda x, f, inplace: torch.tanh(x),
    SELU: lambda x, f, inplace: torch.nn.functional.selu(x, inplace),
    SOFTPLUS: lambda x, f, inplace: torch.nn.functional.softplus(x, f.alpha, f.beta),
    ELU: lambda x, f, inplace: torch.nn.functional.elu(x, f.alpha, inplace),
    GELU: lambda x, f, inplace: torch.nn.functional.gelu(x),
    GELU_TANH: lambda x, f, inplace: torch.nn.functional.gelu(x, approximate="tanh"),
    SILU: lambda x, f, inplace: torch.nn.functional.silu(x, inplace),
    HARDSWISH: lambda x, f, inplace: torch.nn.functional.hardswish(x, inplace),
    HARDTANH: lambda x, f, inplace: torch.nn.functional.hardtanh(x, f.alpha, f.beta, inplace),
    HARDSIGMOID: lambda x, f, inplace: torch.nn.functional.hardsigmoid(x, inplace),
}
# ... and its gradient of (grad, saved, activation, saved_is_output).
_GRADIENT: dict[int, Callable[..., Tensor]] = {
    IDENTITY: lambda g, s, f, output: g,
    RELU: lambda g, s, f, output: _aten.threshold_backward(g, s, 0),
    LEAKY_RELU: lambda g, s, f, output: _aten.leaky_relu_backward(g, s, f.alpha, output),
    SIGMOID: lambda g, s, f, output: _aten.sigmoid_backward(g, s if output else s.sigmoid()),
    TANH: lambda g, s, f, output: _aten.tanh_backward(g, s if output else s.tanh()),
    SELU: lambda g, s, f, output: _aten.elu_backward(g, _SELU_ALPHA, _SELU_SCALE, 1, output, s),
    SOFTPLUS: lambda g, s, f, output: _aten.softplus_backward(g, s, f.alpha, f.beta),
    ELU: lambda g, s, f, output: _aten.elu_backward(g, f.alpha, 1, 1, output, s),
    GELU: lambda g, s, f, output: _aten.gelu_backward(g, s),
    GELU_TANH: lambda g, s, f, output: _aten.gelu_backward(g, s, approximate="tanh"),
    # aten's has no derivative
    SILU: lambda g, s, f, output: g * s.sigmoid() * (1 + s * (1 - s.sigmoid())),
    HARDSWISH: lambda g, s, f, output: _aten.hardswish_backward(g, s),
    HARDTANH: lambda g, s, f, output: _aten.hardtanh_backward(g, s, f.alpha, f.beta),
    # aten's has a sixth of float32
    HARDSIGMOID: lambda g, s, f, output: torch.where((s > -3) & (s < 3), g / 6, 0.0),
}


def activate(input: Tensor, activation: Activation, inplace: bool = False) -> Tensor:
    """The activation of ``input``."""
    return _FORWARD[activation.kind](input, activation, inplace)


def activation_gradient(grad: Tensor, saved: Tensor, activation: Activation, saved_is_output: bool) -> Tensor:
    """Gradient of the activation's input, from its output or its input; differentiable in both tensors."""
    return _GRADIENT[activation.kind](grad, saved, activation, saved_is_output)
