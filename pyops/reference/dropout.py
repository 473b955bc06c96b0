"""Dropout as torch formulas, with the very masks that the kernels make."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_DRAWS_PER_BLOCK = 8
_STEPS = 1 << 16
_LOW = 0xFFFFFFFF


def _draws(seed: Tensor, count: int) -> Tensor:
    """16-bit draws of elements 0, ..., count - 1, as int64 (``csrc/common/philox.h``).

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
    return torch.stack((words & 0xFFFF, words >> 16), -1).flatten()[:count]


def threshold(p: float) -> int:
    """Draws below it are dropped: p in steps of 2^-16, and 0 or 65536 only for p = 0 and p = 1."""
    steps = int(p * _STEPS + 0.5)
    return steps if p in (0.0, 1.0) else min(max(steps, 1), _STEPS - 1)


def dropout_factor(like: Tensor, seed: Tensor, p: float) -> Tensor:
    """What dropout multiplies each element of ``like`` by: 0, or the inverse of the probability to stay."""
    limit = threshold(p)
    scale = _STEPS / (_STEPS - limit) if limit < _STEPS else 0.0
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
    activation: Callable[[Tensor], Tensor],
    dim: int,
) -> Tensor:
    """residual + dropout(activation(input + bias)), the bias of shape (C,) along ``dim``."""
    value = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    if bias is not None:
        value = value + bias.to(value.dtype).view(-1, *[1] * (input.dim() - 1 - dim))
    value = activation(value)
    if seed is not None:
        value = value * dropout_factor(value, seed, p)
    if residual is not None:
        value = value + residual
    return value.to(input.dtype)
