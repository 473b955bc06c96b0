"""Batch normalisation with what follows it, as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ..kinds import Activation
from .activation import activate


def centred(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` less its mean over all dimensions but ``dim``, that mean and the biased variance.

    In two steps: the mean of values far from 0 is itself rounded by more than their small deviations.
    """
    others = [d for d in range(x.dim()) if d != dim]
    near = x.detach().mean(others, keepdim=True)
    x = x - near
    rest = x.mean(others, keepdim=True)
    x = x - rest
    mean = torch.where(near.isfinite(), near + rest, near)  # infinity less itself is none
    return x, mean.flatten(), x.square().mean(others)


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
    activation: Activation,
) -> Tensor:
    """activation(batch_norm(input) + residual); in training, the running statistics are updated."""
    x = input.to(acc_dtype(input.dtype))
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    if input.numel() == 0:  # nothing to take statistics of
        var = x.new_ones(x.shape[dim])
    elif training:
        x, mean, var = centred(x, dim)
        update_running(running_mean, running_var, mean, var, x.numel() // x.shape[dim], momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        x, var = x - running_mean.to(x.dtype).view(shape), running_var.to(x.dtype)
    value = x * (var + eps).rsqrt().view(shape)
    if weight is not None:
        value = value * weight.to(x.dtype).view(shape)
    if bias is not None:
        value = value + bias.to(x.dtype).view(shape)
    if residual is not None:
        value = value + residual.to(x.dtype)
    return activate(value, activation).to(input.dtype)


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
