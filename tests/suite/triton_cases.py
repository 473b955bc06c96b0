"""Calls of Triton launchers on meta tensors, for ``test_triton_compile.py``; the ops have their cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def meta(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@contextmanager
def fp32_precision(switch: Any, precision: str) -> Iterator[None]:
    """``switch``, such as ``torch.backends.cudnn.conv``, set to "ieee" or "tf32" for a while."""
    before = switch.fp32_precision
    switch.fp32_precision = precision
    try:
        yield
    finally:
        switch.fp32_precision = before
