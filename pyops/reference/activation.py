"""Activations as torch's own functions, and their derivatives as torch's differentiable formulas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946

_aten = torch.ops.aten

# By the kind's number (csrc/math/activation.h): the function of (input, a, b, inplace) ...
_FORWARD: list[Callable[..., Tensor]] = [
    lambda x, a, b, inplace: x,
    lambda x, a, b, inplace: torch.nn.functional.relu(x, inplace),
    lambda x, a, b, inplace: torch.nn.functional.leaky_relu(x, a, inplace),
    lambda x, a, b, inplace: torch.sigmoid(x),
    lambda x, a, b, inplace: torch.tanh(x),
    lambda x, a, b, inplace: torch.nn.functional.selu(x, inplace),
    lambda x, a, b, inplace: torch.nn.functional.softplus(x, a, b),
    lambda x, a, b, inplace: torch.nn.functional.elu(x, a, inplace),
    lambda x, a, b, inplace: torch.nn.functional.gelu(x),
    lambda x, a, b, inplace: torch.nn.functional.gelu(x, approximate="tanh"),
    lambda x, a, b, inplace: torch.nn.functional.silu(x, inplace),
    lambda x, a, b, inplace: torch.nn.functional.hardswish(x, inplace),
]
# ... and its gradient of (grad, saved, a, b, saved_is_output).
_GRADIENT: list[Callable[..., Tensor]] = [
    lambda g, s, a, b, output: g,
    lambda g, s, a, b, output: _aten.threshold_backward(g, s, 0),
    lambda g, s, a, b, output: _aten.leaky_relu_backward(g, s, a, output),
    lambda g, s, a, b, output: _aten.sigmoid_backward(g, s if output else s.sigmoid()),
    lambda g, s, a, b, output: _aten.tanh_backward(g, s if output else s.tanh()),
    lambda g, s, a, b, output: _aten.elu_backward(g, _SELU_ALPHA, _SELU_SCALE, 1, output, s),
    lambda g, s, a, b, output: _aten.softplus_backward(g, s, a, b),
    lambda g, s, a, b, output: _aten.elu_backward(g, a, 1, 1, output, s),
    lambda g, s, a, b, output: _aten.gelu_backward(g, s),
    lambda g, s, a, b, output: _aten.gelu_backward(g, s, approximate="tanh"),
    lambda g, s, a, b, output: g * s.sigmoid() * (1 + s * (1 - s.sigmoid())),  # aten's has no derivative
    lambda g, s, a, b, output: _aten.hardswish_backward(g, s),
]


def activation(input: Tensor, kind: int, a: float, b: float, inplace: bool = False) -> Tensor:
    """The activation of ``input``."""
    return _FORWARD[kind](input, a, b, inplace)


def activation_gradient(
    grad: Tensor, saved: Tensor, kind: int, a: float, b: float, saved_is_output: bool
) -> Tensor:
    """Gradient of the activation's input, from its output or its input; differentiable in both tensors."""
    return _GRADIENT[kind](grad, saved, a, b, saved_is_output)
