"""PReLU: schemas, autograd and the public function.

Kernels: ``csrc/cpu/prelu.cpp``, ``csrc/cuda/prelu.cu``, ``triton_kernels/prelu.py``; the formulas are in
``csrc/math/prelu.h``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import autocast
from ..layouts import copied_densely, dense_order, in_order, inverse, out_of_order
from ..reference import prelu as reference
from .tools.autograd import apply
from .tools.checks import ArgumentError, DtypeError, check_device, check_floating, check_tensor

__all__ = ["prelu"]

_library.define(
    "prelu_forward",
    "(Tensor input, Tensor weight, int dim) -> Tensor",
    lambda input, weight, dim: torch.empty_like(input),
)
_library.define(
    "prelu_backward",
    "(Tensor grad_output, Tensor input, Tensor weight, int dim) -> (Tensor, Tensor)",
    lambda grad_output, input, weight, dim: (torch.empty_like(input), torch.empty_like(weight)),
)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, dim: int, order: list[int] | None, ops: SimpleNamespace
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.dim, ctx.order, ctx.ops = dim, order, ops
        return _forward(input, weight, dim, order, ops)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        input, weight = ctx.saved_tensors
        order, dim = ctx.order, ctx.dim
        if torch.is_grad_enabled():
            return *reference.prelu_gradient(grad, input, weight, dim), None, None, None
        tensors = in_order(grad, order).contiguous(), in_order(input, order), weight
        d_input, d_weight = ctx.ops.prelu_backward(*tensors, dim if order is None else order.index(dim))
        return in_order(d_input, None if order is None else inverse(order)), d_weight, None, None, None


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    r"""x above 0, ``weight`` x below, as :func:`torch.nn.functional.prelu`.

    One pass of backward produces both gradients; torch writes the products of ``weight``'s gradient to
    memory before it sums them.

    Args:
        input: floating tensor of any shape and strides.
        weight: one slope (0-d or 1-d), or one per channel, which is dimension 1; a 1-d input has 1 channel.

    Returns:
        Tensor of the shape, dtype and memory format of ``input``.

    Raises:
        TypeError: ``input`` or ``weight`` is not a floating tensor, or their dtypes differ.
        ValueError: ``weight`` has more than one dimension or another number of elements.
        RuntimeError: ``input`` and ``weight`` are on different devices.
    """
    check_tensor("prelu", "input", input)
    check_tensor("prelu", "weight", weight)
    if backends.prefers_torch("prelu", input, weight):
        return torch.nn.functional.prelu(input, weight)
    check_floating("prelu", "input", input)
    check_device("prelu", "weight", weight, input)
    input, weight = autocast(input, weight)
    _check_slopes(input, weight)
    ops = backends.resolve(input)
    dim = 1 if input.dim() > 1 else 0
    if ops is None:
        return torch.nn.functional.prelu(input, weight)
    weight = weight.contiguous()
    order = None
    if not input.is_contiguous() and (order := dense_order(input)) is None:
        return prelu(copied_densely(input), weight)
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return apply(_PReLU, input, weight, dim, order, ops)
    return _forward(input, weight, dim, order, ops)


def _forward(
    input: Tensor, weight: Tensor, dim: int, order: list[int] | None, ops: SimpleNamespace
) -> Tensor:
    if order is None:
        return ops.prelu_forward(input, weight, dim)
    return out_of_order(ops.prelu_forward(input.permute(order), weight, order.index(dim)), order)


def _check_slopes(input: Tensor, weight: Tensor) -> None:
    if weight.dtype is not input.dtype:
        raise DtypeError(f"prelu: weight must have dtype {input.dtype} as the input has, got {weight.dtype}")
    if weight.dim() > 1:
        raise ArgumentError(f"prelu: weight must have at most 1 dimension, got shape {tuple(weight.shape)}")
    channels = input.size(1) if input.dim() > 1 else 1
    if weight.numel() not in (1, channels):
        wanted = "1 element" if channels == 1 else f"1 or {channels} elements, one per channel"
        raise ArgumentError(f"prelu: weight must have {wanted}, got {weight.numel()}")
