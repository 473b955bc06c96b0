"""Checks of arguments: errors that name the function, the argument, what was expected and what was given."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from ...kinds import MEAN, NONE, SUM


class ArgumentError(ValueError, RuntimeError):
    """A shape or a value that does not fit. torch raises RuntimeError for it, or ValueError: this is both."""


class DtypeError(TypeError, NotImplementedError):
    """A dtype that an op cannot take. torch raises one or the other for it."""


_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def as_integer(value: Any) -> Any:
    """``value`` where an integer is asked for: also numpy's, and a tensor's; None if it is none."""
    if isinstance(value, (int, torch.SymInt)):
        return value
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        return None


def integer(function: str, name: str, value: Any) -> Any:
    """``value`` as the integer that it must be."""
    whole = as_integer(value)
    if whole is None:
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}")
    return whole


def number(function: str, name: str, value: Any) -> Any:
    """``value`` as the float that it must be."""
    if type(value) is float:  # the usual case, and the shortest
        return value
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, RuntimeError, OverflowError) as error:  # a class; several numbers; too large a one
        raise TypeError(f"{function}: {name} must be a number, got {value!r}") from error


def check_tensor(function: str, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        kind, hint = type(tensor), ""
        if any(base.__module__ == "torch.fx.proxy" for base in kind.__mro__):
            hint = f"; for torch.fx call it as pyops.functional.{function}, or name it in torch.fx.wrap"
        raise TypeError(f"{function}: {name} must be a Tensor, got {kind.__name__}{hint}")


def check_floating(function: str, name: str, tensor: Tensor) -> None:
    check_tensor(function, name, tensor)
    if not tensor.is_floating_point():
        raise DtypeError(f"{function}: {name} must be a floating-point tensor, got {tensor.dtype}")


def check_device(function: str, name: str, tensor: Tensor, like: Tensor) -> None:
    check_tensor(function, name, tensor)
    if tensor.device != like.device:
        raise RuntimeError(
            f"{function}: {name} must be on {like.device} as the input is, got {tensor.device}"
        )


def check_shape(function: str, name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tensor.shape != shape:
        raise ArgumentError(
            f"{function}: {name} must have shape {tuple(shape)} ({meaning}), got {tuple(tensor.shape)}"
        )


def reduction_code(
    function: str, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> int:
    """The reduction's number; torch's deprecated ``size_average`` and ``reduce`` go before it."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    code = _REDUCTIONS.get(reduction)
    if code is None:
        raise ArgumentError(f"{function}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return code


def refuse_leaf(function: str, input: Tensor) -> None:
    """Raise torch's error for an in-place operation on a leaf that requires grad, or on a view of one."""
    base = input if input._base is None else input._base
    if base.is_leaf and base.requires_grad:
        what = "a leaf Variable" if base is input else "a view of a leaf Variable"
        raise RuntimeError(f"{function}: {what} that requires grad is being used in an in-place operation.")
