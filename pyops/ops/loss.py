"""Elementwise losses: mse, l1, huber, smooth_l1 and binary cross-entropy with logits.

One set of ops with the loss's number as an argument. Forward reads input and target once; backward reads
them again and writes the gradient. On the CPU, forward writes the gradient of a scalar float32 or float64
loss at once. Kernels: ``csrc/cpu/loss.cpp``, ``csrc/cuda/loss.cu``, ``triton_kernels/loss.py``; the formulas
are in ``csrc/math/loss.h``.
"""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends, reference
from ._common import (
    acc_dtype,
    autocasts_to_float32,
    check_device,
    check_tensor,
    differentiable_gradients,
    reduction_code,
    take_written,
)

# As in csrc/math/loss.h.
MSE, L1, HUBER, SMOOTH_L1, BCE_WITH_LOGITS = range(5)

# Element i of a contiguous input has entry i // inner % numel of weight and pos_weight.
_TENSORS = (
    "Tensor input, Tensor target, Tensor? weight, SymInt weight_inner, Tensor? pos_weight, "
    "SymInt pos_weight_inner"
)
_OPTIONS = "int kind, float parameter, int reduction"

#: weight, its inner, pos_weight, its inner
_Factors = tuple[Tensor | None, int, Tensor | None, int]
#: kind, parameter, reduction
_Options = tuple[int, float, int]


def _fake_forward(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    reduction, dtype = others[-1], acc_dtype(input.dtype)
    loss = torch.empty_like(input) if reduction == 0 else input.new_empty((), dtype=dtype)
    return loss, input.new_empty((), dtype=dtype)


def _fake_gradients(input: Tensor, both: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(input) if both else input.new_empty((0,))


def _fake_forward_with_grad(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_fake_forward(*arguments[:-1]), *_fake_gradients(arguments[0], arguments[-1])


_library.define(
    "elementwise_loss_forward", f"({_TENSORS}, {_OPTIONS}) -> (Tensor loss, Tensor divisor)", _fake_forward
)
# grad_target is minus grad_input if asked for by `both`, otherwise empty.
_library.define(
    "elementwise_loss_backward",
    f"(Tensor grad_loss, {_TENSORS}, Tensor divisor, {_OPTIONS}, bool both) "
    "-> (Tensor grad_input, Tensor grad_target)",
    lambda *arguments: _fake_gradients(arguments[1], arguments[-1]),
)

# On the CPU alone: a scalar loss with its gradients for an upstream gradient of 1, and such a gradient made
# right for another. A GPU's host would have to wait to know which it is.
_library.define(
    "elementwise_loss_forward_with_grad",
    f"({_TENSORS}, {_OPTIONS}, bool both) "
    "-> (Tensor loss, Tensor divisor, Tensor grad_input, Tensor grad_target)",
    _fake_forward_with_grad,
    namespaces=("pyops",),
)
_library.define(
    "elementwise_loss_regrade_",
    "(Tensor(a!) gradient, Tensor grad_loss) -> ()",
    lambda gradient, grad_loss: None,
    namespaces=("pyops",),
)


class _ElementwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        weight_inner: int,
        pos_weight: Tensor | None,
        pos_weight_inner: int,
        options: _Options,
        ops: SimpleNamespace,
    ) -> Tensor:
        tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
        loss, divisor = ops.elementwise_loss_forward(*tensors, *options)
        ctx.save_for_backward(input, target, weight, pos_weight, divisor)
        ctx.call = (weight_inner, pos_weight_inner, options, ops)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        return *_gradients(ctx, grad_loss, ctx.saved_tensors), *_NONES


class _ElementwiseLossWithGrad(torch.autograd.Function):
    """A scalar loss on the CPU, whose gradient is written while input and target are in registers."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        weight_inner: int,
        pos_weight: Tensor | None,
        pos_weight_inner: int,
        options: _Options,
        ops: SimpleNamespace,
    ) -> Tensor:
        both = ctx.needs_input_grad[1]
        tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
        loss, divisor, *gradients = ops.elementwise_loss_forward_with_grad(*tensors, *options, both)
        ctx.save_for_backward(input, target, weight, pos_weight, divisor, *gradients[: 1 + both])
        ctx.call = (weight_inner, pos_weight_inner, options, ops)
        ctx.is_fresh = True
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or (gradients := take_written(ctx, saved[5:])) is None:
            return *_gradients(ctx, grad_loss, saved[:5]), *_NONES
        for gradient in gradients:
            ctx.call[3].elementwise_loss_regrade_(gradient, grad_loss)
        return gradients[0], gradients[1] if len(gradients) > 1 else None, *_NONES


_NONES = (None,) * 6


def _gradients(ctx: Any, grad_loss: Tensor, saved: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and, where it needs one, target."""
    input, target, weight, pos_weight, divisor = saved
    weight_inner, pos_weight_inner, options, ops = ctx.call
    both = ctx.needs_input_grad[1]
    if not torch.is_grad_enabled():
        tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
        gradients = ops.elementwise_loss_backward(grad_loss.contiguous(), *tensors, divisor, *options, both)
        return gradients[0], gradients[1] if both else None
    factors = _spread(weight, weight_inner, input.shape), _spread(pos_weight, pos_weight_inner, input.shape)

    def formula(x: Tensor, y: Tensor = target) -> Tensor:
        return reference.elementwise_loss(x, y, *factors, *options)

    found = differentiable_gradients(formula, (input, target) if both else (input,), (grad_loss,))
    return found[0], found[1] if both else None


def _spread(factor: Tensor | None, inner: int, shape: torch.Size) -> Tensor | None:
    """Undoes :func:`_repeated`: one factor per element."""
    if factor is None or shape.numel() == 0:
        return None
    return factor.view(1, -1, 1).expand(-1, -1, inner).reshape(1, -1).expand(
        shape.numel() // (factor.numel() * inner), -1
    ).reshape(shape)  # fmt: skip


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
    if _is_tiny(input, target):
        return torch.nn.functional.mse_loss(input, target, size_average, reduce, reduction, weight)
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
    if _is_tiny(input, target):
        return torch.nn.functional.l1_loss(input, target, size_average, reduce, reduction, weight)
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
    if _is_tiny(input, target):
        return torch.nn.functional.huber_loss(input, target, reduction, delta, weight)
    code = reduction_code("huber_loss", reduction)
    delta = _number("huber_loss", "delta", delta)
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
    if _is_tiny(input, target):
        return torch.nn.functional.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
    code = reduction_code("smooth_l1_loss", reduction, size_average, reduce)
    beta = _number("smooth_l1_loss", "beta", beta)
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
    if _is_tiny(input, target):
        return torch.nn.functional.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
    code = reduction_code(name, reduction, size_average, reduce)
    options = (BCE_WITH_LOGITS, 0.0, code)
    if weight is None and pos_weight is None and _is_plain(input, target):
        return _dispatch(input, target, None, None, options, input.dtype)
    _check_pair(name, input, target)
    if target.shape != input.shape:
        raise ValueError(
            f"{name}: target must have the input's shape {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    for argument, tensor in (("input", input), ("target", target)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: {argument} must be a floating-point tensor, got {tensor.dtype}")
    for argument, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None:
            check_device(name, argument, factor, input)
            _check_broadcastable(name, argument, factor, input.shape)
    result_dtype = torch.float32 if autocasts_to_float32(target) else target.dtype
    return _dispatch(input, target, weight, pos_weight, options, result_dtype)


# ------------------------------------------------------------------------------------------------- checks


def _is_tiny(input: Tensor, target: Tensor) -> bool:
    """Whether the call is torch's (see :func:`backends.prefers_torch`); unequal shapes never are."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and backends.prefers_torch(input)
        and target.shape == input.shape
    )


def _is_plain(input: Tensor, target: Tensor) -> bool:
    """Whether this is the usual call, two float32 tensors of one shape: every check at once."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype is torch.float32
        and target.dtype is torch.float32
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


def _number(name: str, argument: str, value: float) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    return float(value)


# ---------------------------------------------------------------------------------------------- dispatching


def _difference_loss(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, options: _Options
) -> Tensor:
    """A loss of input - target: shapes are broadcast and dtypes promoted."""
    if weight is None and _is_plain(input, target):
        return _dispatch(input, target, None, None, options, input.dtype)
    _check_pair(name, input, target)
    if weight is not None:
        check_device(name, "weight", weight, input)
        if weight.shape != input.shape:
            raise ValueError(
                f"{name}: weight must have the input's shape {tuple(input.shape)}, got {tuple(weight.shape)}"
            )
    if target.shape != input.shape:
        input, target = _broadcast(name, input, target)
    result_dtype = _difference_dtype(name, input, target, weight, options)
    if not result_dtype.is_floating_point and options[0] == L1:
        reduction = ("none", "mean", "sum")[options[2]]  # torch has it for integers and complex numbers
        return torch.nn.functional.l1_loss(input, target, reduction=reduction, weight=weight)
    if not result_dtype.is_floating_point:
        raise TypeError(
            f"{name}: input and target must be floating-point tensors, got {input.dtype} and {target.dtype}"
        )
    return _dispatch(input, target, weight, None, options, result_dtype)


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
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, options: _Options
) -> torch.dtype:
    """The dtype of torch's result."""
    kind, _, reduction = options
    # torch composes a weighted mse or l1 loss of ops of which autocast casts pow and sum, on CUDA only.
    composed = weight is not None and kind in (MSE, L1)
    casts = not composed or (input.is_cuda and (kind == MSE or reduction != 0))
    dtypes = [torch.float32 if casts and autocasts_to_float32(t) else t.dtype for t in (input, target)]
    if kind == HUBER and not input.is_floating_point():
        raise TypeError(f"{name}: input must be a floating-point tensor, got {input.dtype}")
    dtype = dtypes[0] if kind == HUBER else torch.promote_types(*dtypes)
    return dtype if weight is None else torch.promote_types(dtype, weight.dtype)


def _dispatch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: _Options,
    result_dtype: torch.dtype,
) -> Tensor:
    """Chooses dtype, backend and layout. The tensors are of one shape, but for the factors."""
    kind, _, reduction = options
    dtype = input.dtype
    for tensor in (target, weight, pos_weight):
        if tensor is not None and tensor.dtype is not dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    if reduction == 0 and dtype.itemsize < result_dtype.itemsize:
        dtype = result_dtype  # under autocast; a reduced loss is in float32 whatever it was made of
    input, target = input.to(dtype), target.to(dtype)
    ops = backends.resolve(input)
    # Gradients of the factors, and of binary cross-entropy's target, are rare; torch's ops have them.
    differentiates_more = torch.is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or (pos_weight is not None and pos_weight.requires_grad)
        or (kind == BCE_WITH_LOGITS and target.requires_grad)
    )
    # torch divides by the sum of the weights it was given, not of those it broadcast.
    broadcasts_weight = kind != BCE_WITH_LOGITS and weight is not None and weight.shape != input.shape
    if ops is None or differentiates_more or broadcasts_weight:
        loss = reference.elementwise_loss(input, target, weight, pos_weight, *options)
    else:
        loss = _in_memory_order(input, target, weight, pos_weight, options, ops)
    return loss if loss.dtype is result_dtype else loss.to(result_dtype)


def _in_memory_order(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: _Options,
    ops: SimpleNamespace,
) -> Tensor:
    """Calls the kernels on contiguous tensors: permuted views where memory is dense."""
    # The layout that torch gives the losses of the elements.
    leading = target if options[0] == BCE_WITH_LOGITS else input
    order = None if leading.is_contiguous() else _dense_order(leading)
    if order is not None:
        input, target = input.permute(order), target.permute(order)
    factors = (
        *_repeated(weight, input.dtype, leading.shape, order),
        *_repeated(pos_weight, input.dtype, leading.shape, order),
    )
    loss = _apply(input.contiguous(), target.contiguous(), factors, options, ops)
    if options[2] == 0 and order is not None:
        loss = loss.permute(sorted(range(len(order)), key=order.__getitem__))
    return loss


def _dense_order(tensor: Tensor) -> list[int] | None:
    """The order of dimensions in which ``tensor`` is contiguous; None when there is none."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda i: (-strides[i], i))
    return order if tensor.permute(order).is_contiguous() else None


def _repeated(
    factor: Tensor | None, dtype: torch.dtype, shape: torch.Size, order: list[int] | None
) -> tuple[Tensor | None, int]:
    """``factor`` for the kernels: contiguous, and how many neighbouring elements share an entry.

    If the dimensions along which it varies are neighbours, it is read where it lies, over and over;
    otherwise it is expanded to one entry per element.
    """
    if factor is None:
        return None, 1
    factor = factor.to(dtype)
    if factor.numel() == 1:
        return factor.reshape(1), 1
    factor = factor.reshape((1,) * (len(shape) - factor.dim()) + factor.shape)
    sizes = list(shape)
    if order is not None:
        factor, sizes = factor.permute(order), [sizes[i] for i in order]
    varies = [i for i, size in enumerate(factor.shape) if size != 1]
    if any(factor.shape[i] != sizes[i] for i in range(varies[0], varies[-1])):
        return factor.expand(sizes).contiguous(), 1
    return factor.contiguous(), max(1, math.prod(sizes[varies[-1] + 1 :]))


def _apply(
    input: Tensor, target: Tensor, factors: _Factors, options: _Options, ops: SimpleNamespace
) -> Tensor:
    if not (torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)):
        return ops.elementwise_loss_forward(input, target, *factors, *options)[0]
    if not input.requires_grad:
        input, target = target, input  # the losses of a difference are symmetric
    writes_gradient = (
        ops.backend == "cpp"
        and options[2] != 0
        # The upstream gradient of a 16-bit loss is a scaler's rather than 1; torch.compile plans memory itself.
        and input.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    )
    function = _ElementwiseLossWithGrad if writes_gradient else _ElementwiseLoss
    return function.apply(input, target, *factors, options, ops)
