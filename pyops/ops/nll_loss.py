"""Negative log-likelihood loss: schema, autograd and public function.

Kernels: ``classes/nll_loss`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the formula is in
 ``csrc/math/nll_loss.h``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import acc_dtype, autocasts_to_float32
from ..reference import nll_loss as reference
from .tools.autograd import apply, differentiable_gradients
from .tools.checks import ArgumentError, check_device, check_floating, reduction_code
from .tools.classes import class_indices, class_weight, is_plain, without_class_dim

__all__ = ["nll_loss"]


def _fake_forward(
    log_probs: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    dtype = acc_dtype(log_probs.dtype)
    loss_shape = without_class_dim(log_probs.shape) if reduction == 0 else ()
    return log_probs.new_empty(loss_shape, dtype=dtype), log_probs.new_empty((), dtype=dtype)


def _fake_backward(
    grad_loss: Tensor,
    target: Tensor,
    weight: Tensor | None,
    total_weight: Tensor,
    num_classes: int,
    reduction: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    shape = (*target.shape[:1], num_classes, *target.shape[1:])
    return grad_loss.new_empty(shape, dtype=dtype)


_library.define(
    "nll_loss_forward",
    "(Tensor log_probs, Tensor target, Tensor? weight, int reduction, int ignore_index) "
    "-> (Tensor loss, Tensor total_weight)",
    _fake_forward,
)
_library.define(
    "nll_loss_backward",
    "(Tensor grad_loss, Tensor target, Tensor? weight, Tensor total_weight, SymInt num_classes, "
    "int reduction, int ignore_index, ScalarType dtype) -> Tensor",
    _fake_backward,
)


class _NLLLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        result_dtype: torch.dtype,
        ops: SimpleNamespace,
    ) -> Tensor:
        loss, total_weight = ops.nll_loss_forward(log_probs, target, weight, reduction, ignore_index)
        # The gradient is linear in grad_loss alone, so the log-probabilities need not be kept.
        ctx.save_for_backward(target, weight, total_weight)
        ctx.options, ctx.ops = (reduction, ignore_index), ops
        ctx.classes, ctx.dtype, ctx.shape = (
            log_probs.shape[min(log_probs.dim() - 1, 1)],
            log_probs.dtype,
            log_probs.shape,
        )
        return loss.to(result_dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        target, weight, total_weight = ctx.saved_tensors
        grad_loss = grad_loss.to(total_weight.dtype)
        if torch.is_grad_enabled():
            zeros = torch.zeros(ctx.shape, dtype=ctx.dtype, device=target.device, requires_grad=True)
            grad = differentiable_gradients(
                lambda x: reference.nll_loss(x, target, weight, *ctx.options), (zeros,), (grad_loss,)
            )[0]
        else:
            classes = ctx.shape[min(len(ctx.shape) - 1, 1)]
            saved = (target, weight, total_weight, classes, *ctx.options, ctx.dtype)
            grad = ctx.ops.nll_loss_backward(grad_loss.contiguous(), *saved)
        return grad, None, None, None, None, None, None


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative log-likelihood of log-probabilities, as :func:`torch.nn.functional.nll_loss`.

    Args:
        input: log-probabilities, floating, of shape (C), (N, C) or (N, C, d1, ..., dK).
        target: class indices, int64, of shape (), (N) or (N, d1, ..., dK).
        weight: one weight per class, shape (C).
        size_average, reduce: deprecated, as in torch.
        ignore_index: rows with this class index add nothing to loss, gradient or mean.
        reduction: ``"none"``, ``"mean"`` (over the weights of the counted targets) or ``"sum"``.

    Returns:
        Loss in the dtype of ``input`` (float32 under autocast): 0-d, or one per row with ``"none"``.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
        IndexError: on the CPU, a class index that is neither in [0, C) nor ``ignore_index`` (elsewhere such
            a row's loss is NaN, since finding out would synchronise).
    """
    name = "nll_loss"
    code = reduction_code(name, reduction, size_average, reduce)
    # What a call reads are rows: however many classes, one line of memory of each. Up to some 6500 of them
    # torch's op takes less time (measured on Zen 5).
    if (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and backends.prefers_torch(name, input, elements=min(input.numel(), 40 * target.numel()))
    ):
        return torch.nn.functional.nll_loss(input, target, weight, None, ignore_index, None, reduction)
    if weight is None and is_plain(input, target) and (plain_ops := backends.resolve(input)) is not None:
        if input.requires_grad and torch.is_grad_enabled():
            return apply(_NLLLoss, input, target, None, code, ignore_index, input.dtype, plain_ops)
        return plain_ops.nll_loss_forward(input, target, None, code, ignore_index)[0].to(input.dtype)
    check_floating(name, "input", input)
    if input.dim() == 0:
        raise ArgumentError(f"{name}: input must have at least one dimension, got a 0-d tensor")
    check_device(name, "target", target, input)
    row_shape = without_class_dim(input.shape)
    target = class_indices(name, target, row_shape)
    weight = class_weight(name, weight, input.shape[min(input.dim() - 1, 1)], input)
    result_dtype = torch.float32 if autocasts_to_float32(input) else input.dtype
    ops = backends.resolve(input)
    if ops is None:
        return reference.nll_loss(input, target, weight, code, ignore_index).to(result_dtype)
    input = input.contiguous()
    if input.requires_grad and torch.is_grad_enabled():
        return apply(_NLLLoss, input, target, weight, code, ignore_index, result_dtype, ops)
    return ops.nll_loss_forward(input, target, weight, code, ignore_index)[0].to(result_dtype)
