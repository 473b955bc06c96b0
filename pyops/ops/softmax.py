"""Softmax and log-softmax: schemas, autograd and public functions.

Kernels: ``classes/softmax`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the formulas are in
 ``csrc/math/softmax.h``.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import autocasts_to_float32
from ..layouts import dense_order, in_order, inverse, out_of_order
from ..reference import softmax as reference
from .tools.autograd import apply
from .tools.checks import check_floating, check_tensor, integer
from .tools.classes import by_classes

__all__ = ["log_softmax", "softmax"]

_library.define(
    "softmax_forward",
    "(Tensor input, int dim, bool log) -> Tensor",
    lambda input, dim, log: torch.empty_like(input),
)
_library.define(
    "softmax_backward",
    "(Tensor grad_output, Tensor output, int dim, bool log) -> Tensor",
    lambda grad_output, output, dim, log: torch.empty_like(output),
)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, dim: int, log: bool, order: list[int] | None, ops: SimpleNamespace
    ) -> Tensor:
        output = _forward(input, dim, log, order, ops)
        ctx.save_for_backward(output)
        ctx.dim, ctx.log, ctx.order, ctx.ops = dim, log, order, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (output,) = ctx.saved_tensors
        dim, order = ctx.dim, ctx.order
        if torch.is_grad_enabled():
            # As a formula of the output, which carries the graph that double backward needs.
            if ctx.log:
                found = grad - output.exp() * grad.sum(dim, keepdim=True)
            else:
                found = output * (grad - (grad * output).sum(dim, keepdim=True))
        elif order is None:
            found = ctx.ops.softmax_backward(grad.contiguous(), output, dim, ctx.log)
        else:
            tensors = in_order(grad, order).contiguous(), in_order(output, order)
            found = in_order(ctx.ops.softmax_backward(*tensors, order.index(dim), ctx.log), inverse(order))
        return found, None, None, None, None


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""exp(x_i) / sum_j exp(x_j) along ``dim``, as :func:`torch.nn.functional.softmax`.

    Args:
        input: floating tensor of any shape and strides (any dtype that casts when ``dtype`` is given).
        dim: dimension that sums to 1. None picks torch's deprecated default, with a warning.
        dtype: cast ``input`` to it first.

    Returns:
        Tensor of the shape and memory format of ``input``.

    Raises:
        TypeError: ``input`` is not floating-point and no ``dtype`` is given.
        IndexError: ``dim`` is out of range.
    """
    return _softmax("softmax", input, dim, _stacklevel, dtype, log=False)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""log(softmax(input)) along ``dim``, as :func:`torch.nn.functional.log_softmax`.

    Arguments, result and errors are those of :func:`softmax`.
    """
    return _softmax("log_softmax", input, dim, _stacklevel, dtype, log=True)


def _softmax(
    name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None, log: bool
) -> Tensor:
    if dtype is not None:
        check_tensor(name, "input", input)
        input = input.to(dtype)
    check_floating(name, "input", input)
    rank = max(input.dim(), 1)
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    dim = integer(name, "dim", dim)
    if not -rank <= dim < rank:
        raise IndexError(f"{name}: dim must be in [{-rank}, {rank - 1}], got {dim}")
    if backends.prefers_torch(_kind(input, dim), input):
        return torch.log_softmax(input, dim) if log else torch.softmax(input, dim)
    # torch's autocast casts softmax on CUDA only.
    if dtype is None and input.is_cuda and autocasts_to_float32(input):
        input = input.float()
    ops = backends.resolve(input)
    if ops is None:
        return reference.softmax(input, dim, log)
    order = None
    if not input.is_contiguous() and (order := dense_order(input)) is None:
        input = input.contiguous()
    if input.requires_grad and torch.is_grad_enabled():
        return apply(_Softmax, input, dim % rank, log, order, ops)
    return _forward(input, dim % rank, log, order, ops)


def _forward(input: Tensor, dim: int, log: bool, order: list[int] | None, ops: SimpleNamespace) -> Tensor:
    if order is None:
        return ops.softmax_forward(input, dim, log)
    return out_of_order(ops.softmax_forward(input.permute(order), order.index(dim), log), order)


def _kind(input: Tensor, dim: int) -> str:
    """The entry of the rule for small tensors."""
    if not backends.is_strided(input):
        return "softmax"
    if input.dim() > 0 and input.stride(dim) != 1:
        return "softmax, strided"
    return by_classes("softmax", input, dim)
