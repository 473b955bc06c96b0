"""Batch normalisation with what follows it, as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import activation


def batch_statistics(input: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each index of ``dim``, differentiable; the deviations are taken first."""
    others = [d for d in range(input.dim()) if d != dim]
    mean = input.mean(others, keepdim=True)
    return mean.flatten(), (input - mean).square().mean(others)


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    dim: int,
    training: bool,
    momentum: float,
    eps: float,
    kind: int,
    a: float,
    b: float,
) -> Tensor:
    """activation(batch_norm(input) + residual); in training, the running statistics are updated."""
    x = input.to(torch.float64 if input.dtype is torch.float64 else torch.float32)
    if input.numel() == 0:  # nothing to take statistics of
        mean, var = x.new_zeros(x.shape[dim]), x.new_ones(x.shape[dim])
    elif training:
        mean, var = batch_statistics(x, dim)
        update_running(running_mean, running_var, mean, var, x.numel() // x.shape[dim], momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = running_mean.to(x.dtype), running_var.to(x.dtype)
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    value = (x - mean.view(shape)) * (var + eps).rsqrt().view(shape)
    if weight is not None:
        value = value * weight.to(x.dtype).view(shape)
    if bias is not None:
        value = value + bias.to(x.dtype).view(shape)
    if residual is not None:
        value = value + residual.to(x.dtype)
    return activation(value, kind, a, b).to(input.dtype)


@torch.no_grad()
def update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    momentum: float,
) -> None:
    """Move the running statistics towards those of a batch, whose ``var`` is made unbiased first."""
    if running_mean is not None:
        running_mean.copy_(running_mean * (1 - momentum) + mean * momentum)
    if running_var is not None:
        running_var.copy_(running_var * (1 - momentum) + var * (count / (count - 1)) * momentum)
