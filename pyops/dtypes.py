"""The dtypes that ops compute in: accumulation, and what torch's autocast casts to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float64 for float64, otherwise float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def autocasts_to_float32(tensor: Tensor) -> bool:
    """Whether torch's autocast is on for this tensor and would cast it to float32 for a loss."""
    return tensor.dtype in _SIXTEEN_BITS and autocasts(tensor)


def is_plain_sixteen_bit(tensor: Tensor) -> bool:
    """Whether a tensor is of 16 bits and a loss of it, too: no autocast casts it."""
    return tensor.dtype in _SIXTEEN_BITS and not autocasts(tensor)


def autocasts(input: Tensor) -> bool:
    """Whether torch's autocast is on for tensors like this one."""
    if not torch._C._is_any_autocast_enabled():  # a tenth of the time of asking for the device's type
        return False
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast(input: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The tensors as torch's autocast, if it is on for ``input``, casts the arguments of a product.

    As in torch, float64 and what is not floating-point stay as they are.
    """
    tensors = (input, *others)
    if not autocasts(input):
        return tensors
    dtype = torch.get_autocast_dtype(input.device.type)
    return tuple(t if t is None or not _is_cast(t) else t.to(dtype) for t in tensors)


def _is_cast(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype is not torch.float64
