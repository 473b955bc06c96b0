"""What the public functions of several ops share: argument checks and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from ..dtypes import acc_dtype

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_code(
    function: str, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> int:
    """The reduction's number, after torch's deprecated ``size_average`` and ``reduce`` had their say."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    code = REDUCTIONS.get(reduction)
    if code is None:
        raise ValueError(f"{function}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return code


def check_tensor(function: str, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} must be a Tensor, got {type(tensor).__name__}")


def check_floating(function: str, name: str, tensor: Tensor) -> None:
    check_tensor(function, name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{function}: {name} must be a floating-point tensor, got {tensor.dtype}")


def check_device(function: str, name: str, tensor: Tensor, like: Tensor) -> None:
    check_tensor(function, name, tensor)
    if tensor.device != like.device:
        raise RuntimeError(
            f"{function}: {name} must be on {like.device} as the input is, got {tensor.device}"
        )


def check_shape(function: str, name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tensor.shape != shape:
        raise ValueError(
            f"{function}: {name} must have shape {tuple(shape)} ({meaning}), got {tuple(tensor.shape)}"
        )


def class_indices(function: str, target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``target`` as int64 class indices of ``shape``; uint8 is widened as torch does."""
    if target.dtype is not torch.int64:
        if target.dtype is not torch.uint8:
            raise TypeError(f"{function}: target must hold int64 class indices, got {target.dtype}")
        target = target.long()
    check_shape(function, "target", target, shape, "the input's shape without its class dimension")
    return target.contiguous()


def class_weight(function: str, weight: Tensor | None, classes: int, like: Tensor) -> Tensor | None:
    """``weight`` of shape (C,) in the accumulation dtype of ``like``, or None."""
    if weight is None:
        return None
    check_floating(function, "weight", weight)
    check_device(function, "weight", weight, like)
    check_shape(function, "weight", weight, (classes,), "one weight per class")
    return weight.to(acc_dtype(like.dtype)).contiguous()


def without_class_dim(shape: torch.Size) -> torch.Size:
    """Shape of the rows of a tensor of shape [C] or [N, C, *d]."""
    return shape[:1] + shape[2:] if len(shape) > 1 else shape[:0]


def take_written(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The gradients that forward wrote and saved, for the first backward; None for a later one.

    Given away once: a later backward (retain_graph) must not find what their owner made of them. As
    ``.data``, whose version is its own: the owner's changes are none to what autograd has saved.
    """
    if not ctx.is_fresh:
        return None
    ctx.is_fresh = False
    return tuple(gradient.data for gradient in gradients)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``, without the 1.5 us in which it looks for wrappers of ``torch.func``.

    That is a twentieth of what a small op costs, forward and backward. ``torch.func``'s transforms and
    torch.compile get the whole of it.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def refuse_leaf(function: str, input: Tensor) -> None:
    """Raise torch's error for an in-place operation on a leaf that requires grad, or on a view of one."""
    base = input if input._base is None else input._base
    if base.is_leaf and base.requires_grad:
        what = "a leaf Variable" if base is input else "a view of a leaf Variable"
        raise RuntimeError(f"{function}: {what} that requires grad is being used in an in-place operation.")


def differentiable_gradients(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], grad_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Gradients of ``function(*inputs)`` that can be differentiated again.

    The kernels' backward cannot: when autograd asks for a graph of it (``create_graph=True``), the op's
    reference formula is differentiated instead.
    """
    with torch.enable_grad():
        outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None]
    return torch.autograd.grad(
        [o for o, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, allow_unused=True
    )
