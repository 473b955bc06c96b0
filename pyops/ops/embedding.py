"""Embedding: schemas, autograd and the public function.

Kernels: ``csrc/cpu/embedding.cpp``, ``csrc/cuda/embedding.cu``, ``triton_kernels/embedding.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _library, backends
from ..reference import embedding as reference
from .tools.autograd import apply
from .tools.checks import ArgumentError, DtypeError, check_device, check_tensor, integer, number

__all__ = ["embedding"]

_library.define(
    "embedding_forward",
    "(Tensor weight, Tensor indices) -> Tensor",
    lambda weight, indices: weight.new_empty((*indices.shape, weight.shape[1])),
)
_library.define(
    "embedding_backward",
    "(Tensor grad_output, Tensor indices, SymInt num_weights, int padding_idx, bool scale_grad_by_freq) "
    "-> Tensor",
    lambda grad_output, indices, num_weights, padding_idx, scale_grad_by_freq: grad_output.new_empty(
        (num_weights, grad_output.shape[-1])
    ),
)
_library.define(
    "embedding_renorm_",
    "(Tensor(a!) weight, Tensor indices, float max_norm, float norm_type) -> ()",
    lambda weight, indices, max_norm, norm_type: None,
)

_NO_PADDING = -1


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, indices: Tensor, padding_idx: int, scale_by_freq: bool, ops: SimpleNamespace
    ) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.arguments, ctx.ops = (weight.shape[0], padding_idx, scale_by_freq), ops
        return ops.embedding_forward(weight, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (indices,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return apply(_EmbeddingGradient, grad, indices, *ctx.arguments, ctx.ops), None, None, None, None
        return ctx.ops.embedding_backward(grad.contiguous(), indices, *ctx.arguments), None, None, None, None


class _EmbeddingGradient(torch.autograd.Function):
    """The weight's gradient: linear in the output's, so its own gradient is a gather again."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        indices: Tensor,
        rows: int,
        padding_idx: int,
        scale_by_freq: bool,
        ops: SimpleNamespace,
    ) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.padding_idx, ctx.scale_by_freq, ctx.ops = padding_idx, scale_by_freq, ops
        return ops.embedding_backward(grad.contiguous(), indices, rows, padding_idx, scale_by_freq)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        rows = torch.arange(grad.shape[0], device=grad.device)
        if ctx.scale_by_freq:
            counts = torch.zeros_like(rows).index_add(
                0, indices.reshape(-1), torch.ones_like(indices.reshape(-1), dtype=rows.dtype)
            )
            grad = grad / counts.clamp(min=1).to(grad.dtype).unsqueeze(1)
        if ctx.padding_idx >= 0:
            grad = grad.masked_fill((rows == ctx.padding_idx).unsqueeze(1), 0.0)
        result = apply(_Embedding, grad, indices, _NO_PADDING, False, ctx.ops)
        return result, None, None, None, None, None


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    r"""Rows of a table by index, as :func:`torch.nn.functional.embedding`.

    Args:
        input: indices, int64 or int32, of any shape (*).
        weight: table of shape (V, D).
        padding_idx: row whose gradient is zero; negative counts from the end.
        max_norm: first scale each row that ``input`` names and whose norm is larger to this norm, in place.
        norm_type: order of that norm.
        scale_grad_by_freq: divide each row's gradient by how often ``input`` names it.
        sparse: the gradient is a sparse tensor. That is torch's own function.

    Returns:
        Tensor of shape (*, D) in the dtype of ``weight``. The gradient of ``weight`` is dense and contiguous;
        every row is summed in the order of the indices, 16-bit types in float32.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
        IndexError: on the CPU an index outside of [0, V), before anything is written. Elsewhere such an index
            gives a row of NaN and no gradient, since finding out would synchronise.
    """
    name = "embedding"
    check_tensor(name, "input", input)
    check_tensor(name, "weight", weight)
    elements = input.numel() * weight.shape[-1] if weight.dim() else 0
    if sparse or backends.prefers_torch(name, weight, elements=elements):
        return torch.nn.functional.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    if input.dtype is not torch.int64 and input.dtype is not torch.int32:
        raise DtypeError(f"{name}: input must hold int64 or int32 indices, got {input.dtype}")
    if weight.dim() != 2:
        raise ArgumentError(f"{name}: weight must have shape (V, D), got {tuple(weight.shape)}")
    check_device(name, "weight", weight, input)
    padding = _row_number(name, padding_idx, weight.shape[0])
    input = input.contiguous()
    ops = backends.resolve(weight)
    if max_norm is not None:
        limit, order = number(name, "max_norm", max_norm), number(name, "norm_type", norm_type)
        _renorm(weight, input, limit, order, ops)
    if ops is None:
        return reference.embedding(weight, input, padding, scale_grad_by_freq)
    if weight.requires_grad and torch.is_grad_enabled():
        return apply(_Embedding, weight, input, padding, scale_grad_by_freq, ops)
    return ops.embedding_forward(weight, input)


def _row_number(name: str, padding_idx: int | None, rows: int) -> int:
    """``padding_idx`` counted from the beginning; -1 for None."""
    if padding_idx is None:
        return _NO_PADDING
    padding_idx = integer(name, "padding_idx", padding_idx)
    if not -rows <= padding_idx < rows:
        raise ArgumentError(f"{name}: padding_idx must be in [{-rows}, {rows - 1}], got {padding_idx}")
    return padding_idx + rows if padding_idx < 0 else padding_idx


def _renorm(
    weight: Tensor, indices: Tensor, max_norm: float, norm_type: float, ops: SimpleNamespace | None
) -> None:
    """Shorten the rows that ``indices`` name; what saved the weight before must notice (its version)."""
    with torch.no_grad():
        if ops is None:
            torch.embedding_renorm_(weight, indices, max_norm, norm_type)
            return
        ops.embedding_renorm_(weight, indices, max_norm, norm_type)
    if not torch.compiler.is_compiling():
        increment_version(weight)
