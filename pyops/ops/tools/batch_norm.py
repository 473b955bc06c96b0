"""What batch_norm and sync_batch_norm share: argument checks, layouts and the mask's shape."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ...dtypes import acc_dtype
from ...layouts import dense_order, is_channels_last
from .checks import ArgumentError, DtypeError, check_device, check_shape, check_tensor, number

# With at least as many elements of a channel in a row, kernels treat each such run as a row of one channel.
# Otherwise everything behind the outer dimensions is a row, in which channels alternate.
LONG_RUN = 64


def mask_shape(shape: Any, dim: int) -> tuple[int, int]:
    """Rows of the mask of a tensor of ``shape``, and bytes in each."""
    outer, inner = prod(shape[:dim]), prod(shape[dim + 1 :])
    channels = shape[dim]
    rows, width = (outer * channels, inner) if inner >= LONG_RUN else (outer, channels * inner)
    return rows, (width + 7) // 8


def mask_elements(mask: Tensor, shape: torch.Size) -> Tensor:
    """The bits of ``mask`` as a bool tensor of ``shape``."""
    bits = mask.unsqueeze(-1).bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=mask.device)) & 1
    width = prod(shape) // max(1, mask.shape[0])
    return bits.flatten(1)[:, :width].reshape(shape).bool()


def memory_order(input: Tensor) -> list[int] | None:
    """The permutation that makes ``input`` contiguous; None where it is, or is to be copied."""
    if input.dim() == 4 and is_channels_last(input):
        return [0, 2, 3, 1]
    return None if input.is_contiguous() else dense_order(input)


def check_arguments(
    name: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    if input.dim() < 2:
        raise ArgumentError(f"{name}: input must have shape (N, C, *), got {tuple(input.shape)}")
    if (running_mean is None) != (running_var is None):
        raise ArgumentError(f"{name}: running_mean and running_var must both be tensors or both be None")
    if not isinstance(momentum, (int, float, torch.SymFloat)) and not hasattr(momentum, "__float__"):
        raise TypeError(f"{name}: momentum must be a number, got {momentum!r}")
    if not training and running_mean is None:
        raise ArgumentError(f"{name}: running_mean and running_var must be given unless training=True")
    eps = number(name, "eps", eps)
    if eps < 0 or (training and eps == 0):
        raise ArgumentError(f"{name}: eps must be {'positive' if training else 'at least 0'}, got {eps}")
    check_vectors(name, input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if training and input.numel() == input.shape[1] > 0:
        raise ArgumentError(
            f"{name}: expected more than 1 value per channel when training, got input of shape "
            f"{tuple(input.shape)}"
        )


def check_vectors(name: str, input: Tensor, **vectors: Tensor | None) -> None:
    """Raise unless each is one number per channel, in the one dtype that all have."""
    shape, dtype, device = input.shape[1:2], input.dtype, input.device
    if all(
        vector is None
        or (
            isinstance(vector, Tensor)
            and vector.dtype is dtype
            and vector.shape == shape
            and vector.device == device
            and not (vector.requires_grad and label.startswith("running"))
        )
        for label, vector in vectors.items()
    ):
        return  # the usual case, at a third of what one check after the other costs
    first: tuple[str, torch.dtype] | None = None
    for label, vector in vectors.items():
        if vector is None:
            continue
        check_device(name, label, vector, input)
        check_shape(name, label, vector, (input.shape[1],), "one per channel of the input")
        allowed = (input.dtype, acc_dtype(input.dtype))
        if vector.dtype not in allowed:
            wanted = " or ".join(map(str, dict.fromkeys(allowed)))
            raise DtypeError(f"{name}: {label} must have dtype {wanted}, got {vector.dtype}")
        first = first or (label, vector.dtype)
        if vector.dtype is not first[1]:
            raise DtypeError(
                f"{name}: {label} must have dtype {first[1]} as {first[0]} has, got {vector.dtype}"
            )
        if label.startswith("running") and vector.requires_grad:
            raise RuntimeError(f"{name}: {label} cannot be differentiated, but it requires grad")


def check_residual(name: str, residual: Tensor, input: Tensor) -> None:
    check_tensor(name, "residual", residual)
    check_device(name, "residual", residual, input)
    check_shape(name, "residual", residual, tuple(input.shape), "the input's")
    if residual.dtype is not input.dtype:
        raise DtypeError(f"{name}: residual must have the input's dtype {input.dtype}, got {residual.dtype}")
