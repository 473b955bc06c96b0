"""Dropout as torch formulas, with the very masks that the kernels make."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ..kinds import Activation
from .activation import activate, activation_gradient

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_DRAWS_PER_BLOCK = 8
_STEPS = 1 << 32
_LOW = 0xFFFFFFFF


def _draws(seed: Tensor, count: int) -> Tensor:
    """32-bit draws of elements 0, ..., count - 1, as int64 (``csrc/common/philox.h``).

    Words are kept in int64. A product of two wraps around there, but its bits are those of the unsigned one.
    """
    block = torch.arange(-(-count // _DRAWS_PER_BLOCK), device=seed.device)
    key = [seed[0] & _LOW, seed[0] >> 32 & _LOW]
    c0, c1 = block & _LOW, block >> 32
    c2, c3 = seed[1] & _LOW, seed[1] >> 32 & _LOW
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = second >> 32 & _LOW ^ c1 ^ key[0], second & _LOW
        c2, c3 = first >> 32 & _LOW ^ c3 ^ key[1], first & _LOW
        key = [(k + weyl) & _LOW for k, weyl in zip(key, _WEYL, strict=True)]
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)
    high = torch.stack((words & 0xFFFF, words >> 16), -1).flatten()
    low = c0 ^ c1 ^ c2 ^ c3
    low = (low ^ low >> 16) & 0xFFFF
    return (high << 16 | low.repeat_interleave(_DRAWS_PER_BLOCK))[:count]


def rate(p: float) -> tuple[int, float]:
    """Draws below the first number are dropped, and the others are multiplied by the second.

    p is taken in steps of 2^-32, and none or all of them only for p = 0 and p = 1.
    """
    if p == 1.0:
        return _STEPS, 0.0
    steps = int(p * _STEPS + 0.5)
    return (min(max(steps, 1), _STEPS - 1) if p > 0.0 else 0), 1.0 / (1.0 - p)


def dropout_factor(like: Tensor, seed: Tensor, p: float) -> Tensor:
    """What dropout multiplies each element of ``like`` by: 0, or the inverse of the probability to stay."""
    limit, scale = rate(p)
    dtype = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
    kept = _draws(seed, like.numel()) >= limit
    return (kept.to(dtype) * scale).view(like.shape)


def dropout(input: Tensor, seed: Tensor, p: float) -> Tensor:
    """``input`` of any dtype, contiguous, times its mask; 16-bit inputs are rounded once."""
    return (input * dropout_factor(input, seed, p)).to(input.dtype)


def bias_activation_dropout(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    p: float,
    activation: Activation,
    dim: int,
) -> Tensor:
    """residual + dropout(activation(input + bias)), the bias of shape (C,) along ``dim``."""
    value = activate(_with_bias(input.to(acc_dtype(input.dtype)), bias, dim), activation)
    if seed is not None:
        value = value * dropout_factor(value, seed, p)
    if residual is not None:
        value = value + residual
    return value.to(input.dtype)


def bias_activation_dropout_gradient(
    grad: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    activation: Activation,
    dim: int,
    saved_is_output: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and bias from what backward has, differentiable in every tensor."""
    value = grad.to(acc_dtype(grad.dtype))
    factor = None if seed is None else dropout_factor(value, seed, p)
    if factor is not None:
        value = value * factor
    if saved is not None:
        argument = saved.to(value.dtype)
        if not saved_is_output:
            argument = _with_bias(argument, bias, dim)
        elif factor is not None:
            # A dropped output is 0; its gradient is, too, whatever the activation's output was.
            argument = argument / factor.masked_fill(factor == 0, 1.0)
        value = activation_gradient(value, argument, activation, saved_is_output)
    over = [i for i in range(grad.dim()) if i != dim]
    grad_bias = value.sum(over) if over and needs_bias else value
    return value.to(grad.dtype), grad_bias.to(grad.dtype) if needs_bias else None


def _with_bias(value: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    if bias is None:
        return value
    return value + bias.to(value.dtype).view(-1, *[1] * (value.dim() - 1 - dim))
