"""Elementwise losses: mse, l1, huber, smooth_l1 and binary cross-entropy with logits.

The public functions and their checks; :mod:`pyops.ops.elementwise_loss` has the ops. Kernels:
``csrc/cpu/loss.cpp``, ``csrc/cuda/loss.cu``, ``triton_kernels/loss.py``; the formulas are in
``csrc/math/loss.h``.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import backends
from ..dtypes import autocasts_to_float32, is_plain_sixteen_bit
from ..kinds import BCE_WITH_LOGITS, HUBER, L1, MSE, SMOOTH_L1
from .elementwise_loss import Options, elementwise_loss
from .tools.checks import ArgumentError, DtypeError, check_device, check_tensor, number, reduction_code

__all__ = ["binary_cross_entropy_with_logits", "huber_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""(input - target)^2, as :func:`torch.nn.functional.mse_loss`.

    Args:
        input, target: floating tensors of one shape and any strides; other shapes are broadcast, with
            torch's warning. Integer tensors are converted to the other's dtype.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` (over the elements; over the weights where there are any) or
            ``"sum"``.
        weight: factor of each element's loss, of the shape of ``input``.

    Returns:
        Loss in the dtype that the arguments promote to (float32 for 16-bit ones under autocast): 0-d, or of
        the broadcast shape with ``"none"``. Both ``input`` and ``target`` have a gradient.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: shapes that do not broadcast, or tensors on different devices.
    """
    if weight is None and _is_small("mse_loss", input, target):
        return torch.nn.functional.mse_loss(input, target, size_average, reduce, reduction)
    code = reduction_code("mse_loss", reduction, size_average, reduce)
    return _difference_loss("mse_loss", input, target, weight, (MSE, 0.0, code))


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""|input - target|, as :func:`torch.nn.functional.l1_loss`.

    Arguments, result and errors are those of :func:`mse_loss`. The gradient at 0 is 0.
    """
    if weight is None and _is_small("l1_loss", input, target):
        return torch.nn.functional.l1_loss(input, target, size_average, reduce, reduction)
    code = reduction_code("l1_loss", reduction, size_average, reduce)
    return _difference_loss("l1_loss", input, target, weight, (L1, 0.0, code))


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""d^2 / 2 where \|d\| <= delta, delta (\|d\| - delta / 2) elsewhere, for d = input - target; as
    :func:`torch.nn.functional.huber_loss`.

    Arguments, result and errors are those of :func:`mse_loss`, except that ``delta`` must be positive, that
    the loss has the dtype of ``input`` (promoted with that of ``weight``), which must be floating, and that
    a weighted mean is over the elements.
    """
    if weight is None and _is_small("huber_loss", input, target):
        return torch.nn.functional.huber_loss(input, target, reduction, delta)
    code = reduction_code("huber_loss", reduction)
    delta = number("huber_loss", "delta", delta)
    if not delta > 0:
        raise RuntimeError(f"huber_loss: delta must be positive, got {delta}")
    return _difference_loss("huber_loss", input, target, weight, (HUBER, delta, code))


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    r"""d^2 / (2 beta) where \|d\| < beta, \|d\| - beta / 2 elsewhere, for d = input - target; as
    :func:`torch.nn.functional.smooth_l1_loss`.

    Arguments, result and errors are those of :func:`mse_loss`; ``beta`` must not be negative, and 0 makes it
    :func:`l1_loss`.
    """
    if _is_small("smooth_l1_loss", input, target):
        return torch.nn.functional.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
    code = reduction_code("smooth_l1_loss", reduction, size_average, reduce)
    beta = number("smooth_l1_loss", "beta", beta)
    if not beta >= 0:
        raise RuntimeError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    options = (SMOOTH_L1, beta, code) if beta > 0 else (L1, 0.0, code)
    return _difference_loss("smooth_l1_loss", input, target, None, options)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""-(p target log sigmoid(input) + (1 - target) log(1 - sigmoid(input))), p being ``pos_weight``; as
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: logits, a floating tensor of any shape and strides.
        target: probabilities, floating, of the same shape.
        weight: factor of each element's loss, broadcastable to the shape of ``input``.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` (over the elements, weighted or not) or ``"sum"``.
        pos_weight: factor of the loss of positive targets, broadcastable to the shape of ``input``.

    Returns:
        Loss in the dtype of ``target`` (float32 for 16-bit ones under autocast): 0-d, or of the shape of
        ``input`` with ``"none"``. All four tensors have a gradient; those of ``target`` and the weights, and
        with them that of ``input``, come from torch's own ops.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: weights that do not broadcast, or tensors on different devices.
    """
    name = "binary_cross_entropy_with_logits"
    if _is_small("binary_cross_entropy_with_logits", input, target):
        return torch.nn.functional.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
    code = reduction_code(name, reduction, size_average, reduce)
    options = (BCE_WITH_LOGITS, 0.0, code)
    if weight is None and pos_weight is None and _is_plain(input, target):
        return elementwise_loss(input, target, None, None, options, input.dtype)
    _check_pair(name, input, target)
    if target.shape != input.shape:
        raise ArgumentError(
            f"{name}: target must have the input's shape {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    for argument, tensor in (("input", input), ("target", target)):
        if not tensor.is_floating_point():
            raise DtypeError(f"{name}: {argument} must be a floating-point tensor, got {tensor.dtype}")
    for argument, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None:
            check_device(name, argument, factor, input)
            _check_broadcastable(name, argument, factor, input.shape)
    result_dtype = torch.float32 if autocasts_to_float32(target) else target.dtype
    return elementwise_loss(input, target, weight, pos_weight, options, result_dtype)


# ------------------------------------------------------------------------------------------------- checks


def _is_small(name: str, input: Tensor, target: Tensor) -> bool:
    """Whether the call is torch's (see :func:`backends.prefers_torch`); unequal shapes never are."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and backends.prefers_torch(name, input, target)
        and target.shape == input.shape
    )


def _is_plain(input: Tensor, target: Tensor) -> bool:
    """Whether this is the usual call, two tensors of one shape and dtype, which is the result's."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype is target.dtype
        and (input.dtype is torch.float32 or is_plain_sixteen_bit(input))
        and input.shape == target.shape
        and input.device == target.device
    )


def _check_pair(name: str, input: Tensor, target: Tensor) -> None:
    check_tensor(name, "input", input)
    check_device(name, "target", target, input)


def _check_broadcastable(name: str, argument: str, factor: Tensor, shape: torch.Size) -> None:
    if factor.dim() > len(shape) or any(
        f not in (1, n) for f, n in zip(reversed(factor.shape), reversed(shape), strict=False)
    ):
        raise RuntimeError(
            f"{name}: {argument} must broadcast to the input's shape {tuple(shape)}, "
            f"got {tuple(factor.shape)}"
        )


def _difference_loss(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, options: Options
) -> Tensor:
    """A loss of input - target: shapes are broadcast and dtypes promoted."""
    if weight is None and _is_plain(input, target):
        return elementwise_loss(input, target, None, None, options, input.dtype)
    _check_pair(name, input, target)
    if weight is not None:
        check_device(name, "weight", weight, input)
        if weight.shape != input.shape:
            raise ArgumentError(
                f"{name}: weight must have the input's shape {tuple(input.shape)}, got {tuple(weight.shape)}"
            )
    if target.shape != input.shape:
        input, target = _broadcast(name, input, target)
    result_dtype = _difference_dtype(name, input, target, weight, options)
    if weight is None and options[0] == L1 and not result_dtype.is_floating_point:
        reduction = ("none", "mean", "sum")[options[2]]  # torch has it for integers and complex numbers
        return torch.nn.functional.l1_loss(input, target, reduction=reduction)
    if not result_dtype.is_floating_point:
        raise DtypeError(
            f"{name}: input and target must be floating-point tensors, got {input.dtype} and {target.dtype}"
        )
    return elementwise_loss(input, target, weight, None, options, result_dtype)


def _broadcast(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    warnings.warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=4,
    )
    try:
        shape = torch.broadcast_shapes(input.shape, target.shape)
    except RuntimeError:
        raise RuntimeError(
            f"{name}: target must broadcast with the input's shape {tuple(input.shape)}, "
            f"got {tuple(target.shape)}"
        ) from None
    return input.expand(shape), target.expand(shape)


def _difference_dtype(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, options: Options
) -> torch.dtype:
    """The dtype of torch's result."""
    kind, _, reduction = options
    # torch composes a weighted mse or l1 loss of ops of which autocast casts pow and sum, on CUDA only.
    composed = weight is not None and kind in (MSE, L1)
    casts = not composed or (input.is_cuda and (kind == MSE or reduction != 0))
    dtypes = [torch.float32 if casts and autocasts_to_float32(t) else t.dtype for t in (input, target)]
    if kind == HUBER and not input.is_floating_point():
        raise DtypeError(f"{name}: input must be a floating-point tensor, got {input.dtype}")
    dtype = dtypes[0] if kind == HUBER else torch.promote_types(*dtypes)
    return dtype if weight is None else torch.promote_types(dtype, weight.dtype)
