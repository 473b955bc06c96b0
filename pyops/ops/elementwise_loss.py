"""The raw ops of the elementwise losses: schemas, fakes, autograd, and the call for tensors of one shape.

One set of ops with the loss's number as an argument; :mod:`pyops.ops.loss` has the public functions. Forward
reads input and target once; backward reads them again and writes the gradient. On the CPU, forward writes the
gradient of a scalar loss at once where the upstream gradient is likely to be 1.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import acc_dtype
from ..kinds import BCE_WITH_LOGITS
from ..layouts import dense_order, in_order, out_of_order
from ..reference import loss as reference
from .tools.autograd import apply, differentiable_gradients, expects_one, is_one, take_written

# Element i of a contiguous input has entry i // inner % numel of weight and pos_weight.
_TENSORS = (
    "Tensor input, Tensor target, Tensor? weight, SymInt weight_inner, Tensor? pos_weight, "
    "SymInt pos_weight_inner"
)
_OPTIONS = "int kind, float parameter, int reduction"

#: weight, its inner, pos_weight, its inner
Factors = tuple[Tensor | None, int, Tensor | None, int]
#: kind, parameter, reduction
Options = tuple[int, float, int]


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

# On the CPU only: forward writes the gradients of a scalar loss for an upstream gradient of 1, and regrade_
# corrects one of float32 or float64 for another upstream gradient. On a GPU, the host would have to wait to
# know which it is.
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
    """Of tensors in the order of memory; losses of elements are in that of the dimensions."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        weight_inner: int,
        pos_weight: Tensor | None,
        pos_weight_inner: int,
        options: Options,
        result_dtype: torch.dtype,
        order: list[int] | None,
        ops: SimpleNamespace,
    ) -> Tensor:
        tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
        loss, divisor = ops.elementwise_loss_forward(*tensors, *options)
        ctx.save_for_backward(input, target, weight, pos_weight, divisor)
        ctx.call, ctx.order = (weight_inner, pos_weight_inner, options, ops), order
        return out_of_order(loss.to(result_dtype), order)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if saved[0].is_cpu and saved[0].dtype.itemsize == 2 and ctx.call[2][2] != 0:
            is_one(grad_loss, saved[0].dtype)  # for the next call
        return *_gradients(ctx, in_order(grad_loss, ctx.order), saved), *_NONES


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
        options: Options,
        result_dtype: torch.dtype,
        order: None,
        ops: SimpleNamespace,
    ) -> Tensor:
        both = ctx.needs_input_grad[1]
        tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
        loss, divisor, *gradients = ops.elementwise_loss_forward_with_grad(*tensors, *options, both)
        ctx.save_for_backward(input, target, weight, pos_weight, divisor, *gradients[: 1 + both])
        ctx.call = (weight_inner, pos_weight_inner, options, ops)
        ctx.is_fresh = True
        return loss.to(result_dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        dtype, divisor = saved[0].dtype, saved[4]
        scales = dtype.itemsize >= 4
        gradients = None
        if (scales or is_one(grad_loss, dtype)) and not torch.is_grad_enabled():
            gradients = take_written(ctx, saved[5:])
        if gradients is None:
            return *_gradients(ctx, grad_loss, saved[:5]), *_NONES
        if scales:
            for gradient in gradients:
                ctx.call[3].elementwise_loss_regrade_(gradient, grad_loss.to(divisor.dtype))
        return gradients[0], gradients[1] if len(gradients) > 1 else None, *_NONES


_NONES = (None,) * 8


def _gradients(ctx: Any, grad_loss: Tensor, saved: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and, where it needs one, target."""
    input, target, weight, pos_weight, divisor = saved
    weight_inner, pos_weight_inner, options, ops = ctx.call
    both = ctx.needs_input_grad[1]
    grad_loss = grad_loss.to(divisor.dtype if options[2] != 0 else input.dtype)
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


def elementwise_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Options,
    result_dtype: torch.dtype,
) -> Tensor:
    """Loss of two floating tensors of one shape, and factors that broadcast to it, in ``result_dtype``.

    Chooses the dtype to compute in, the backend and the layout. Arguments are not checked.
    """
    kind, _, reduction = options
    ops = backends.resolve(input)
    if (
        weight is None
        and pos_weight is None
        and ops is not None
        and input.dtype is target.dtype is result_dtype
        and input.is_contiguous()
        and target.is_contiguous()
        and not (kind == BCE_WITH_LOGITS and target.requires_grad)
    ):  # the usual call: there is nothing to convert
        return _apply(input, target, (None, 1, None, 1), options, result_dtype, None, ops)
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
        return reference.elementwise_loss(input, target, weight, pos_weight, *options).to(result_dtype)
    return _in_memory_order(input, target, weight, pos_weight, options, result_dtype, ops)


def _in_memory_order(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Options,
    result_dtype: torch.dtype,
    ops: SimpleNamespace,
) -> Tensor:
    """Calls the kernels on contiguous tensors: permuted views where memory is dense."""
    # The layout that torch gives the losses of the elements.
    leading = target if options[0] == BCE_WITH_LOGITS else input
    order = None if leading.is_contiguous() else dense_order(leading)
    if order is not None:
        input, target = input.permute(order), target.permute(order)
    factors = (
        *_repeated(weight, input.dtype, leading.shape, order),
        *_repeated(pos_weight, input.dtype, leading.shape, order),
    )
    order = order if options[2] == 0 else None
    return _apply(input.contiguous(), target.contiguous(), factors, options, result_dtype, order, ops)


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
    input: Tensor,
    target: Tensor,
    factors: Factors,
    options: Options,
    result_dtype: torch.dtype,
    order: list[int] | None,
    ops: SimpleNamespace,
) -> Tensor:
    if not (torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)):
        loss = ops.elementwise_loss_forward(input, target, *factors, *options)[0].to(result_dtype)
        return out_of_order(loss, order)
    if not input.requires_grad:
        input, target = target, input  # the losses of a difference are symmetric
    writes_gradient = (
        ops.backend == "cpp"
        and options[2] != 0
        and not torch.compiler.is_compiling()  # it plans memory itself
        and expects_one(input.dtype, factors[0])
    )
    function = _ElementwiseLossWithGrad if writes_gradient else _ElementwiseLoss
    return apply(function, input, target, *factors, options, result_dtype, order, ops)
