"""Fused softmax cross-entropy: schema, autograd and public function.

Forward reads the logits once and keeps two numbers per row (maximum and log-sum); backward reads them
again and writes the gradient. On the CPU, forward writes the gradient of a scalar float32 or float64 loss
at once, while the row is in cache. Kernels: ``classes/cross_entropy`` in ``csrc/cpu``,
``csrc/cuda`` and ``triton_kernels``; the formulas are in ``csrc/math/cross_entropy.h``.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _library, backends
from ..dtypes import acc_dtype, autocasts_to_float32
from ..reference import cross_entropy as reference
from .sharded_cross_entropy import sharded_cross_entropy
from .tools.autograd import (
    apply,
    differentiable_gradients,
    expects_one,
    is_one,
    may_be_overwritten,
    take_written,
)
from .tools.checks import ArgumentError, DtypeError, check_device, check_floating, number, reduction_code
from .tools.classes import (
    by_classes,
    class_indices,
    class_weight,
    dense_rows,
    is_plain,
    row_weights,
    without_class_dim,
)

__all__ = ["cross_entropy"]

_OPTIONS = "int reduction, int ignore_index, float label_smoothing, float z_loss"
_SAVED = (
    "Tensor grad_loss, Tensor? grad_lse, {logits} logits, Tensor target, Tensor? weight, "
    "Tensor? sample_weight, Tensor stats, Tensor divisor, " + _OPTIONS
)


def _fake_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = acc_dtype(logits.dtype)
    row_shape = without_class_dim(logits.shape)
    loss = logits.new_empty(row_shape if reduction == 0 else (), dtype=dtype)
    return loss, logits.new_empty((2, math.prod(row_shape)), dtype=dtype), logits.new_empty((), dtype=dtype)


def _fake_forward_with_grad(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_fake_forward(logits, *others), torch.empty_like(logits)


def _fake_backward(grad_loss: Tensor, grad_lse: Tensor | None, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


def _fake_backward_(*arguments: Any) -> None:
    return None


_library.define(
    "cross_entropy_forward",
    f"(Tensor logits, Tensor target, Tensor? weight, Tensor? sample_weight, {_OPTIONS}) "
    "-> (Tensor loss, Tensor stats, Tensor divisor)",
    _fake_forward,
)
_library.define("cross_entropy_backward", f"({_SAVED.format(logits='Tensor')}) -> Tensor", _fake_backward)
_library.define("cross_entropy_backward_", f"({_SAVED.format(logits='Tensor(a!)')}) -> ()", _fake_backward_)

# On the CPU only: forward writes the gradient of a scalar loss for an upstream gradient of 1, and regrade_
# corrects it for another one. On a GPU, the host would have to wait to know which it is.
_library.define(
    "cross_entropy_forward_with_grad",
    f"(Tensor logits, Tensor target, Tensor? weight, Tensor? sample_weight, {_OPTIONS}) "
    "-> (Tensor loss, Tensor stats, Tensor divisor, Tensor grad_logits)",
    _fake_forward_with_grad,
    namespaces=("pyops",),
)
_library.define(
    "cross_entropy_regrade_",
    "(Tensor(a!) grad_logits, Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, "
    f"Tensor? sample_weight, Tensor stats, Tensor divisor, {_OPTIONS}) -> ()",
    _fake_backward_,
    namespaces=("pyops",),
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: tuple[int, int, float, float],
        result_dtype: torch.dtype,
        return_lse: bool,
        inplace_backward: bool,
        ops: SimpleNamespace,
    ) -> Tensor | tuple[Tensor, Tensor]:
        loss, stats, divisor = ops.cross_entropy_forward(logits, target, weight, sample_weight, *options)
        ctx.save_for_backward(logits, target, weight, sample_weight, stats, divisor)
        ctx.call = options, ops, inplace_backward
        loss = loss.to(result_dtype)
        if not return_lse:
            return loss
        ctx.set_materialize_grads(False)
        return loss, (stats[0] + stats[1]).view(without_class_dim(logits.shape))

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None = None) -> tuple[Any, ...]:
        logits, target, weight, sample_weight, stats, divisor = ctx.saved_tensors
        options, ops, inplace = ctx.call
        nones = (None,) * 8
        if grad_loss is not None:
            if logits.is_cpu and logits.dtype.itemsize == 2 and options[0] != 0:
                is_one(grad_loss, logits.dtype)  # for the next call
            grad_loss = grad_loss.to(divisor.dtype)
        if torch.is_grad_enabled():
            saved = (target, weight, sample_weight, *options)
            return (_differentiable(logits, saved, grad_loss, grad_lse), *nones)
        if grad_loss is None:
            grad_loss = divisor.new_zeros(without_class_dim(logits.shape) if options[0] == 0 else ())
        if grad_lse is not None:
            grad_lse = grad_lse.contiguous()
        arguments = (grad_loss.contiguous(), grad_lse, logits, target, weight, sample_weight, stats, divisor)
        if not inplace:
            return (ops.cross_entropy_backward(*arguments, *options), *nones)
        ops.cross_entropy_backward_(*arguments, *options)
        # Whoever else saved these logits, a second backward through this node included, now gets
        # autograd's "modified by an inplace operation" instead of a wrong gradient.
        increment_version(logits)
        return (logits.detach(), *nones)


class _CrossEntropyWithGrad(torch.autograd.Function):
    """A scalar loss on the CPU, whose gradient is written while the logits are in cache."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: tuple[int, int, float, float],
        result_dtype: torch.dtype,
        ops: SimpleNamespace,
    ) -> Tensor:
        loss, stats, divisor, grad = ops.cross_entropy_forward_with_grad(
            logits, target, weight, sample_weight, *options
        )
        # Beside what is saved, so that it is there when autograd refuses the rest (backward), but for those
        # who watch what is saved.
        hooks = torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(True)
        saved, ctx.grad = (grad, None) if hooks else (None, grad)
        ctx.save_for_backward(logits, target, weight, sample_weight, stats, divisor, saved)
        ctx.call, ctx.is_fresh = (options, ops), True
        return loss.to(result_dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        options, ops = ctx.call
        nones = (None,) * 6
        try:
            *saved, grad = ctx.saved_tensors
        except RuntimeError as error:
            # torch keeps log-probabilities, and lets a caller change the logits.
            if "inplace" not in str(error) or ctx.grad is None or torch.is_grad_enabled():
                raise
            return (ctx.grad * grad_loss, *nones)
        serves = saved[0].dtype.itemsize == 2 and is_one(grad_loss, saved[0].dtype)
        grad_loss = grad_loss.to(saved[-1].dtype)
        if torch.is_grad_enabled():
            logits, *others = saved[:4]
            return (_differentiable(logits, (*others, *options), grad_loss, None), *nones)
        if (written := take_written(ctx, (grad if ctx.grad is None else ctx.grad,))) is not None:
            ctx.grad = None
            if not serves:
                ops.cross_entropy_regrade_(*written, grad_loss, *saved, *options)
            return (*written, *nones)
        return (ops.cross_entropy_backward(grad_loss, None, *saved, *options), *nones)


def _differentiable(
    logits: Tensor, saved: tuple[Any, ...], grad_loss: Tensor | None, grad_lse: Tensor | None
) -> Tensor:
    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.cross_entropy_with_lse(x, *saved)

    return differentiable_gradients(formula, (logits,), (grad_loss, grad_lse))[0]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
    process_group: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax cross-entropy between logits and targets, as :func:`torch.nn.functional.cross_entropy`.

    Args:
        input: logits, floating, of shape (C), (N, C) or (N, C, d1, ..., dK).
        target: class indices, int64, of shape (), (N) or (N, d1, ..., dK); or class probabilities,
            floating, of the shape of ``input``.
        weight: one weight per class, shape (C).
        size_average, reduce: deprecated, as in torch.
        ignore_index: rows with this class index add nothing to loss, gradient or mean. It may lie inside
            or outside [0, C).
        reduction: ``"none"``, ``"mean"`` (over the weights of the counted targets) or ``"sum"``.
        label_smoothing: e in [0, 1]: the target becomes (1-e) target + e/C (arXiv:1512.00567).
        z_loss: adds ``z_loss * lse**2`` to each row's loss, which keeps lse, the log of the softmax's
            denominator, near 0 (arXiv:2204.02311).
        sample_weight: factor of each row's loss and gradient, of the shape of a row index or
            broadcastable to it. It does not enter the mean's divisor: the mean is the importance-weighted
            risk estimate.
        return_lse: also return lse, differentiable, one per row, in float32 (float64 for float64).
        inplace_backward: backward writes the gradient over ``input`` instead of into new memory. ``input``
            must not be a leaf, and nothing that runs its backward later may have saved it: autograd then
            raises. Ignored under ``torch.compile``, which plans memory itself.
        process_group: the processes of this ``torch.distributed.ProcessGroup`` share the classes out:
            ``input`` and ``weight`` hold those of this process, whose slices may differ in size and follow
            each other by rank, and ``target`` indexes all classes. Every process of the group makes this
            call, with the same target and options. All get the same loss, and each the gradient of its
            own logits. Targets are class indices; of tensors only ``input`` has a gradient, a first one.

    After the call, ``input`` may be changed in place, as after torch's, if the loss is a scalar on the CPU;
    elsewhere backward needs it and says so.

    Returns:
        Loss in the dtype of ``input`` (float32 under autocast): 0-d, or one per row with ``"none"``; with
        ``return_lse`` a tuple (loss, lse).

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
        IndexError: on the CPU, a class index that is neither in [0, C) nor ``ignore_index``. Elsewhere
            finding out would need a synchronisation, so such a row's loss and gradient are NaN.
    """
    name = "cross_entropy"
    if process_group is not None:
        alike = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        found = sharded_cross_entropy(
            input, target, *alike, z_loss, sample_weight, inplace_backward, process_group
        )
        return found if return_lse else found[0]
    code = reduction_code(name, reduction, size_average, reduce)
    label_smoothing, z_loss = number(name, "label_smoothing", label_smoothing), number(name, "z_loss", z_loss)
    if weight is None and sample_weight is None and not return_lse and is_plain(input, target):
        plain = z_loss == 0.0 and 0.0 <= label_smoothing <= 1.0 and not inplace_backward
        if plain and backends.prefers_torch(by_classes(name, input, min(input.dim() - 1, 1)), input):
            torchs = torch.nn.functional.cross_entropy
            return torchs(input, target, None, None, ignore_index, None, reduction, label_smoothing)
        ops = backends.resolve(input)
        if ops is not None and 0.0 <= label_smoothing <= 1.0:
            options = (code, ignore_index, label_smoothing, z_loss)
            if (
                code != 0
                and ops.backend == "cpp"
                and input.requires_grad
                and torch.is_grad_enabled()
                and not inplace_backward
                and not torch.compiler.is_compiling()
                and expects_one(input.dtype, None)
            ):  # as _fused decides, at a fraction of its cost
                return apply(_CrossEntropyWithGrad, input, target, None, None, options, input.dtype, ops)
            dtype = input.dtype
            return _fused(input, target, None, None, options, dtype, False, inplace_backward, ops)[0]
    check_floating(name, "input", input)
    if input.dim() == 0:
        raise ArgumentError(f"{name}: input must have at least one dimension, got a 0-d tensor")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"{name}: label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    check_device(name, "target", target, input)
    row_shape = without_class_dim(input.shape)
    result_dtype = torch.float32 if autocasts_to_float32(input) else input.dtype
    if target.shape == input.shape:
        input, target = _with_probabilities(name, input, target, ignore_index)
        result_dtype = torch.promote_types(result_dtype, target.dtype)
    else:
        if input.dim() == 1 and target.shape == (1,):  # which torch takes for one row
            target = target[0]
        target = class_indices(name, target, row_shape)
    classes = input.size(1) if input.dim() > 1 else input.size(0)
    weight = class_weight(name, weight, classes, input)
    if sample_weight is not None:
        sample_weight = row_weights(name, sample_weight, row_shape, input)
    options = (code, ignore_index, label_smoothing, z_loss)

    ops = backends.resolve(input)
    # Gradients of targets and weights are rare, and torch's own ops have them.
    differentiates_more = (target.requires_grad or (weight is not None and weight.requires_grad)
                           or (sample_weight is not None and sample_weight.requires_grad))  # fmt: skip
    both: tuple[Tensor, Tensor | None]
    if ops is None or (differentiates_more and torch.is_grad_enabled()):
        both = reference.cross_entropy_with_lse(input, target, weight, sample_weight, *options)
        both = both[0].to(result_dtype), both[1]
    else:
        both = _fused(
            input, target, weight, sample_weight, options, result_dtype, return_lse, inplace_backward, ops
        )
    loss, lse = both
    return loss if lse is None or not return_lse else (loss, lse)


def _with_probabilities(
    name: str, logits: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    if not target.is_floating_point():
        raise DtypeError(
            f"{name}: Expected floating point type for target with class probabilities (it has the input's "
            f"shape), got {target.dtype}"
        )
    if ignore_index >= 0:
        raise ArgumentError(
            f"{name}: ignore_index is not supported for class probabilities, got {ignore_index}"
        )
    if target.dtype is not logits.dtype:
        dtype = torch.promote_types(target.dtype, logits.dtype)
        return logits.to(dtype), target.to(dtype)
    return logits, target


def _fused(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: tuple[int, int, float, float],
    result_dtype: torch.dtype,
    return_lse: bool,
    inplace_backward: bool,
    ops: SimpleNamespace,
) -> tuple[Tensor, Tensor | None]:
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    inplace_backward = inplace_backward and may_be_overwritten("cross_entropy", logits)
    row_shape: torch.Size | None = None
    if not logits.is_contiguous():
        row_shape = without_class_dim(logits.shape)
        logits, target, sample_weight = dense_rows(logits, target, sample_weight)
    elif not target.is_contiguous():
        target = target.contiguous()
    lse: Tensor | None = None
    tensors = (logits, target, weight, sample_weight)
    may_write = needs_grad and ops.backend == "cpp" and not return_lse and not inplace_backward
    if may_write and _has_one_scale(logits, weight, options):
        loss = apply(_CrossEntropyWithGrad, *tensors, options, result_dtype, ops)
    elif needs_grad:
        arguments = (*tensors, options, result_dtype, return_lse, inplace_backward, ops)
        if return_lse:
            loss, lse = apply(_CrossEntropy, *arguments)
        else:
            loss = apply(_CrossEntropy, *arguments)
    else:
        loss, stats, _ = ops.cross_entropy_forward(*tensors, *options)
        loss = loss.to(result_dtype)
        if return_lse:
            lse = (stats[0] + stats[1]).view(without_class_dim(logits.shape))
    if row_shape is not None:  # the rows were laid out differently
        loss = loss.reshape(row_shape) if options[0] == 0 else loss
        lse = lse.reshape(row_shape) if lse is not None else None
    return loss, lse


def _has_one_scale(logits: Tensor, weight: Tensor | None, options: tuple[int, int, float, float]) -> bool:
    """Whether forward may write the gradient: the upstream gradient must be one number, most likely 1.

    The caller has not asked to save memory, nor does torch.compile plan it.
    """
    return options[0] != 0 and not torch.compiler.is_compiling() and expects_one(logits.dtype, weight)
