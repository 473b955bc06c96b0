"""Two-dimensional convolution with what follows it, as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kinds import Activation
from .activation import activate, activation_gradient


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: Activation,
) -> Tensor:
    """activation(conv2d(input, weight) + bias + residual) of ``input`` [N, C, H, W]."""
    value = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        value = value + residual
    return activate(value, activation)


def conv2d_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: Activation,
    saved_is_output: bool,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight, bias and residual where needed, differentiable in every tensor."""
    if saved is not None:
        grad = activation_gradient(grad, saved, activation, saved_is_output)
    product = torch.ops.aten.convolution_backward(
        grad, input, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, needs[:3]
    )
    return (
        *(g if needed else None for g, needed in zip(product, needs, strict=False)),
        grad if needs[3] else None,
    )
