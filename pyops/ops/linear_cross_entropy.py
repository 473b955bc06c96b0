"""Linear layer and cross-entropy in one: the [N, V] logits are never held, only a chunk of rows.

Each chunk's logits are overwritten by their gradient while they are still in cache, and multiplied into
the gradients of input and weight, which accumulate in float32 (sums over chunks in bfloat16 diverge:
Liger-Kernel issues 512 and 827). The kernels are those of ``gemm`` and ``cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import acc_dtype, autocasts
from ..kinds import SUM
from ..reference import linear_cross_entropy as reference
from .tools.autograd import apply, differentiable_gradients, take_written
from .tools.checks import (
    ArgumentError,
    DtypeError,
    check_device,
    check_floating,
    check_shape,
    integer,
    number,
    reduction_code,
)
from .tools.classes import class_indices, class_weight, row_weights, without_class_dim

__all__ = ["linear_cross_entropy"]

#: Bytes of logits held at a time: enough rows for an efficient GEMM, few enough for the last-level cache
#: of a CPU, and for a GPU to be busy.
_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
_MIN_CHUNK_ROWS = 64

#: Most multiplications in one matrix product for which a C++ call does everything at once, on one thread.
_SMALL_PRODUCT = 1 << 20

_library.define(
    "linear_cross_entropy_with_grad",
    "(Tensor hidden, Tensor linear_weight, Tensor? bias, Tensor target, Tensor? weight, "
    "Tensor? sample_weight, int reduction, int ignore_index, float label_smoothing, float z_loss, "
    "bool needs_hidden, bool needs_weight, bool needs_bias) "
    "-> (Tensor loss, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    lambda hidden, matrix, *others: (
        hidden.new_empty(()),
        *(
            hidden.new_empty(shape if needed else (0,))
            for shape, needed in zip((hidden.shape, matrix.shape, matrix.shape[:1]), others[-3:], strict=True)
        ),
    ),
    namespaces=("pyops",),
)


class _Problem(NamedTuple):
    """One call's arguments: ``hidden`` [N, in], ``linear_weight`` [V, in], ``bias`` [V] or None with
    V = C * prod(d); ``logits_shape`` is that of one row's logits, (C, *d)."""

    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    logits_shape: torch.Size
    options: tuple[int, int, float, float]
    chunk_rows: int
    ops: SimpleNamespace

    def chunks(self, rows: int) -> Iterator[slice]:
        return (slice(begin, begin + self.chunk_rows) for begin in range(0, rows, self.chunk_rows))

    def logits(self, buffer: Tensor, hidden: Tensor, linear_weight: Tensor, bias: Tensor | None) -> Tensor:
        """The chunk's logits [n, C, *d], in the first rows of ``buffer``."""
        out = buffer[: hidden.size(0)]
        if bias is not None:
            out.copy_(bias.expand_as(out))
        self.ops.gemm_(out, hidden, linear_weight.t(), 0.0 if bias is None else 1.0)
        return out.view(-1, *self.logits_shape)

    def loss(self, logits: Tensor, rows: slice, reduction: int) -> tuple[Tensor, Tensor, Tensor]:
        sample_weight = None if self.sample_weight is None else self.sample_weight[rows]
        return self.ops.cross_entropy_forward(
            logits, self.target[rows], self.weight, sample_weight, reduction, *self.options[1:]
        )

    def differentiate_(
        self, logits: Tensor, rows: slice, grad: Tensor, stats: Tensor, divisor: Tensor, reduction: int
    ) -> Tensor:
        """Overwrite ``logits`` with their gradient; returned as a matrix [n, V]."""
        sample_weight = None if self.sample_weight is None else self.sample_weight[rows]
        saved = (self.target[rows], self.weight, sample_weight, stats, divisor, reduction, *self.options[1:])
        self.ops.cross_entropy_backward_(grad, None, logits, *saved)
        return logits.view(logits.size(0), -1)

    def divisor(self) -> Tensor:
        """What the mean divides by. Summed in float64, where the order of summation does not show."""
        if self.target.is_floating_point():
            count = self.target[:, 0].numel()
            return torch.full((), float(count), dtype=torch.float64, device=self.target.device)
        counted = self.target != self.options[1]
        if self.weight is None:
            return counted.sum(dtype=torch.float64)
        index = self.target.clamp(0, self.weight.numel() - 1)
        return torch.where(counted, self.weight[index], 0.0).sum(dtype=torch.float64)


class _Gradients:
    """Gradients of hidden states, weight and bias, accumulated chunk by chunk in the accumulation dtype."""

    def __init__(self, hidden: Tensor, linear_weight: Tensor, needs: tuple[bool, bool, bool]) -> None:
        dtype = acc_dtype(hidden.dtype)
        self.hidden = hidden.new_empty(hidden.shape, dtype=dtype) if needs[0] else None
        self.weight = hidden.new_zeros(linear_weight.shape, dtype=dtype) if needs[1] else None
        self.bias = hidden.new_zeros((1, linear_weight.size(0)), dtype=dtype) if needs[2] else None

    def add(self, p: _Problem, rows: slice, grad: Tensor, hidden: Tensor, linear_weight: Tensor) -> None:
        if self.hidden is not None:
            p.ops.gemm_(self.hidden[rows], grad, linear_weight, 0.0)
        if self.weight is not None:
            p.ops.gemm_(self.weight, grad.t(), hidden[rows], 1.0)
        if self.bias is not None:
            p.ops.gemm_(self.bias, grad.new_ones((1, grad.size(0))), grad, 1.0)

    def scaled(self, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        bias = None if self.bias is None else self.bias[0]
        grads = (self.hidden, self.weight, bias)
        return tuple(None if g is None else (g if scale is None else g * scale).to(dtype) for g in grads)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        linear_weight: Tensor,
        bias: Tensor | None,
        problem: _Problem,
        needs: tuple[bool, bool, bool],
    ) -> Tensor:
        p, reduction = problem, problem.options[0]
        dtype = acc_dtype(hidden.dtype)
        buffer = hidden.new_empty((min(p.chunk_rows, hidden.size(0)), linear_weight.size(0)))
        ctx.problem, ctx.needs, ctx.dtype = p, needs, hidden.dtype
        ctx.save_for_backward(hidden, linear_weight, bias)
        if reduction == 0:
            losses = [
                p.loss(p.logits(buffer, hidden[rows], linear_weight, bias), rows, 0)[0]
                for rows in p.chunks(hidden.size(0))
            ]
            return torch.cat(losses) if losses else hidden.new_empty((0, *p.logits_shape[1:]), dtype=dtype)
        # A scalar loss scales every row's gradient alike, so the gradients of the sum are formed now, from
        # logits that are at hand, and scaled in backward.
        total = hidden.new_zeros((), dtype=dtype)
        one = hidden.new_ones((), dtype=dtype)
        ctx.gradients = _Gradients(hidden, linear_weight, needs) if any(needs) else None
        for rows in p.chunks(hidden.size(0)):
            logits = p.logits(buffer, hidden[rows], linear_weight, bias)
            loss, stats, divisor = p.loss(logits, rows, SUM)
            total += loss
            if ctx.gradients is not None:
                grad = p.differentiate_(logits, rows, one, stats, divisor, SUM)
                ctx.gradients.add(p, rows, grad, hidden, linear_weight)
        ctx.divisor = p.divisor().to(dtype) if reduction == 1 else None
        return total if ctx.divisor is None else total / ctx.divisor

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        hidden, linear_weight, bias = ctx.saved_tensors
        p = ctx.problem
        if torch.is_grad_enabled():
            saved = (p.target, p.weight, p.sample_weight, *p.options)
            arguments = (hidden, linear_weight, bias, p.logits_shape, saved, grad_loss)
            return (*_differentiable(*arguments), None, None)
        if p.options[0] != 0:
            scale = grad_loss if ctx.divisor is None else grad_loss / ctx.divisor
            if ctx.divisor is not None:
                # Of rows that are all ignored the mean is 0/0, but no row's gradient is.
                scale = torch.where(ctx.divisor == 0, 0.0, scale)
            return (*ctx.gradients.scaled(scale, ctx.dtype), None, None)
        gradients = _Gradients(hidden, linear_weight, ctx.needs)
        buffer = hidden.new_empty((min(p.chunk_rows, hidden.size(0)), linear_weight.size(0)))
        grad_loss = grad_loss.contiguous()
        for rows in p.chunks(hidden.size(0)):
            logits = p.logits(buffer, hidden[rows], linear_weight, bias)
            _, stats, divisor = p.loss(logits, rows, 0)
            grad = p.differentiate_(logits, rows, grad_loss[rows], stats, divisor, 0)
            gradients.add(p, rows, grad, hidden, linear_weight)
        return (*gradients.scaled(None, ctx.dtype), None, None)


class _SmallLinearCrossEntropy(torch.autograd.Function):
    """A small scalar loss on the CPU: one call forms the loss and, for an upstream gradient of 1, everything
    that backward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: tuple[int, int, float, float],
        ops: SimpleNamespace,
    ) -> Tensor:
        call = (hidden, matrix, bias, target, weight, sample_weight, *options, *ctx.needs_input_grad[:3])
        loss, *gradients = ops.linear_cross_entropy_with_grad(*call)
        ctx.save_for_backward(hidden, matrix, bias, target, weight, sample_weight, *gradients)
        ctx.call = options, ops
        ctx.is_fresh = True
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        hidden, matrix, bias, target, weight, sample_weight, *gradients = ctx.saved_tensors
        targets = (target, weight, sample_weight)
        options, ops = ctx.call
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            arguments = (hidden, matrix, bias, matrix.shape[:1], (*targets, *options), grad_loss)
            return (*_differentiable(*arguments), *(None,) * 5)
        gradients = take_written(ctx, tuple(gradients))
        if gradients is None:
            call = (hidden, matrix, bias, *targets, *options, *needs[:3])
            _, *gradients = ops.linear_cross_entropy_with_grad(*call)
        for gradient, needed in zip(gradients, needs, strict=False):
            if needed:
                ops.elementwise_loss_regrade_(gradient, grad_loss)
        return (*(g if needed else None for g, needed in zip(gradients, needs, strict=False)), *(None,) * 5)


def _differentiable(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    logits_shape: torch.Size,
    saved: tuple[Any, ...],
    grad_loss: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, matrix [V, in] and bias that can be differentiated again."""

    def formula(*_: Tensor) -> Tensor:
        return reference.linear_cross_entropy(hidden, matrix.view(*logits_shape, -1), bias, *saved)

    arguments = (hidden, matrix, bias)
    inputs = tuple(t for t in arguments if t is not None and t.requires_grad)
    found = iter(differentiable_gradients(formula, inputs, (grad_loss,)))
    h, w, b = (next(found) if t is not None and t.requires_grad else None for t in arguments)
    return h, w, b


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""``cross_entropy(linear(input, linear_weight, linear_bias), target)`` without holding the logits.

    As :func:`torch.nn.functional.linear_cross_entropy` (torch >= 2.13), always chunked, with float32
    accumulation of every gradient.

    Args:
        input: hidden states, shape (in) or (N, in).
        linear_weight: shape (C, in), or (C, d1, ..., dK, in) for a K-dimensional loss.
        target: class indices, int64, of shape (), (N) or (N, d1, ..., dK); or class probabilities of the
            logits' shape and dtype: (C), (N, C) or (N, C, d1, ..., dK).
        linear_bias: shape of ``linear_weight`` without its last dimension.
        weight, reduction, label_smoothing, z_loss, sample_weight: as in :func:`cross_entropy`.
        ignore_index: class index that does not count; None means -100.
        options: torch's ``LinearCrossEntropyOptions``, for the chunks of torch's own op, which then serves
            the call.
        chunk_size: rows of logits held at a time; None chooses by memory (32 MiB on a CPU).

    Returns:
        Loss in the dtype of ``input`` (float32 under autocast): 0-d, or one per row with ``"none"``.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError: as :func:`cross_entropy`.
    """
    name = "linear_cross_entropy"
    if options is not None:
        if z_loss != 0.0 or sample_weight is not None or chunk_size is not None:
            raise ArgumentError(
                f"{name}: z_loss, sample_weight and chunk_size cannot be combined with options"
            )
        return torch.nn.functional.linear_cross_entropy(
            *(input, linear_weight, target), linear_bias=linear_bias, weight=weight, reduction=reduction,
            ignore_index=ignore_index, label_smoothing=label_smoothing, options=options,
        )  # fmt: skip
    code = reduction_code(name, reduction)
    index = -100 if ignore_index is None else ignore_index
    label_smoothing, z_loss = number(name, "label_smoothing", label_smoothing), number(name, "z_loss", z_loss)
    chunk_size = None if chunk_size is None else integer(name, "chunk_size", chunk_size)
    options = (code, index, label_smoothing, z_loss)
    unusual = weight is not None or sample_weight is not None or chunk_size is not None
    if not unusual and _may_be_small(input, linear_weight, linear_bias, target):
        ops = backends.resolve(input)
        if ops is not None and _is_small(input, linear_weight, options, ops):
            # The op checks what it is given; on a few rows, checking here as well would cost as much as it
            # does. What it refuses is converted, or explained, below.
            with suppress(RuntimeError):
                tensors = (input, linear_weight, linear_bias, target, None, None)
                return apply(_SmallLinearCrossEntropy, *tensors, options, ops)
    _check_linear(name, input, linear_weight, linear_bias)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"{name}: label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    if chunk_size is not None and chunk_size < 1:
        raise ArgumentError(f"{name}: chunk_size must be at least 1, got {chunk_size}")
    check_device(name, "target", target, input)
    logits_shape = linear_weight.shape[:-1]
    full_shape = input.shape[:-1] + logits_shape
    result_dtype = input.dtype
    if autocasts(input) and input.dtype is not torch.float64:
        autocast_dtype = torch.get_autocast_dtype(input.device.type)
        input, linear_weight = input.to(autocast_dtype), linear_weight.to(autocast_dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(autocast_dtype)
        result_dtype = torch.float32
    target = _check_target(name, target, full_shape, input, ignore_index)
    weight = class_weight(name, weight, logits_shape[0], input)
    row_shape = without_class_dim(full_shape)
    if sample_weight is not None:
        sample_weight = row_weights(name, sample_weight, row_shape, input)
    arguments = (input, linear_weight, linear_bias, target, weight, sample_weight, options, chunk_size)
    return _run(*arguments).to(result_dtype).view(row_shape if code == 0 else ())


def _run(
    input: Tensor,
    linear_weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: tuple[int, int, float, float],
    chunk_size: int | None,
) -> Tensor:
    logits_shape = linear_weight.shape[:-1]
    if input.dim() == 1:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        sample_weight = None if sample_weight is None else sample_weight.unsqueeze(0)
    ops = backends.resolve(input)
    rarely_differentiated = (target, weight, sample_weight)
    if ops is None or any(t is not None and t.requires_grad for t in rarely_differentiated):
        arguments = (input, linear_weight, bias, target, weight, sample_weight)
        return reference.linear_cross_entropy(*arguments, *options)
    hidden = input.contiguous()
    matrix = linear_weight.contiguous().view(-1, linear_weight.size(-1))
    bias = None if bias is None else bias.contiguous().view(-1)
    chunk_rows = chunk_size or _chunk_rows(hidden, matrix)
    problem = _Problem(target, weight, sample_weight, logits_shape, options, chunk_rows, ops)
    needs = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, matrix, bias)
    )
    if chunk_size is None and len(logits_shape) == 1 and _is_small(hidden, matrix, options, ops):
        return apply(
            _SmallLinearCrossEntropy, hidden, matrix, bias, target, weight, sample_weight, options, ops
        )
    return apply(_LinearCrossEntropy, hidden, matrix, bias, problem, needs)


def _may_be_small(input: Tensor, linear_weight: Tensor, bias: Tensor | None, target: Tensor) -> bool:
    """The usual call on a CPU, as far as can be told at once: (N, in), (C, in) and (N)."""
    return (
        isinstance(input, Tensor)
        and isinstance(linear_weight, Tensor)
        and isinstance(target, Tensor)
        and input.is_cpu
        and linear_weight.is_cpu
        and target.is_cpu
        and (bias is None or (isinstance(bias, Tensor) and bias.is_cpu))
        and input.dim() == 2
        and linear_weight.dim() == 2
        and target.dim() == 1
        and not torch.is_autocast_enabled("cpu")
    )


def _is_small(
    hidden: Tensor, matrix: Tensor, options: tuple[int, int, float, float], ops: SimpleNamespace
) -> bool:
    """Whether a scalar loss is left to one call that keeps all logits and forms every gradient."""
    return (
        ops.backend == "cpp"
        and options[0] != 0
        and hidden.numel() * matrix.size(0) <= _SMALL_PRODUCT
        and hidden.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    )


def _chunk_rows(hidden: Tensor, matrix: Tensor) -> int:
    row_bytes = max(1, matrix.size(0)) * hidden.element_size()
    return max(_MIN_CHUNK_ROWS, _CHUNK_BYTES.get(hidden.device.type, 32 << 20) // row_bytes)


def _check_linear(name: str, input: Tensor, linear_weight: Tensor, bias: Tensor | None) -> None:
    check_floating(name, "input", input)
    check_floating(name, "linear_weight", linear_weight)
    check_device(name, "linear_weight", linear_weight, input)
    if input.dim() not in (1, 2):
        raise ArgumentError(f"{name}: input must have shape (in) or (N, in), got {tuple(input.shape)}")
    if linear_weight.dim() < 2 or (linear_weight.dim() > 2 and input.dim() == 1):
        raise ArgumentError(
            f"{name}: linear_weight must have shape (C, in), or (C, *d, in) with a batched input; "
            f"got {tuple(linear_weight.shape)} for an input of shape {tuple(input.shape)}"
        )
    if input.size(-1) != linear_weight.size(-1):
        raise ArgumentError(
            f"{name}: input and linear_weight must agree in their last dimension (in), "
            f"got {tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    autocast = autocasts(input)
    if input.dtype is not linear_weight.dtype and not autocast:
        raise DtypeError(
            f"{name}: linear_weight must have the input's dtype {input.dtype}, got {linear_weight.dtype}"
        )
    if bias is not None:
        check_floating(name, "linear_bias", bias)
        check_device(name, "linear_bias", bias, input)
        check_shape(name, "linear_bias", bias, tuple(linear_weight.shape[:-1]), "(C, *d)")
        if bias.dtype is not linear_weight.dtype and not autocast:
            raise DtypeError(f"{name}: linear_bias must have dtype {linear_weight.dtype}, got {bias.dtype}")


def _check_target(
    name: str, target: Tensor, full_shape: torch.Size, input: Tensor, ignore_index: int | None
) -> Tensor:
    if target.shape != full_shape:
        return class_indices(name, target, without_class_dim(full_shape))
    if not target.is_floating_point():
        raise DtypeError(
            f"{name}: Expected floating point type for target with class probabilities, got {target.dtype}"
        )
    if ignore_index is not None:
        raise ArgumentError(
            f"{name}: ignore_index is not supported for class probabilities, got {ignore_index}"
        )
    return target.to(input.dtype).contiguous()
