"""A tensor times a number: schema, autograd and public function.

Kernels: ``csrc/cpu/toy_scale.cpp``, ``csrc/cuda/toy_scale.cu``, ``triton_kernels/toy_scale.py``; the formula
is in ``csrc/math/toy_scale.h``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..reference import toy_scale as reference
from .tools.autograd import apply
from .tools.checks import check_floating

__all__ = ["toy_scale"]

_library.define(
    "toy_scale", "(Tensor input, float factor) -> Tensor", lambda input, factor: torch.empty_like(input)
)


class _ToyScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, factor: float, ops: SimpleNamespace) -> Tensor:
        ctx.factor, ctx.ops = factor, ops
        return ops.toy_scale(input, factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return apply(_ToyScale, grad.contiguous(), ctx.factor, ctx.ops), None, None


def toy_scale(input: Tensor, factor: float = 2.0) -> Tensor:
    """``input`` times ``factor``; any shape, same shape out."""
    check_floating("toy_scale", "input", input)
    ops = backends.resolve(input, "toy_scale")
    if ops is None:
        return reference.toy_scale(input, factor)
    return apply(_ToyScale, input.contiguous(), factor, ops)
