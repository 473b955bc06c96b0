"""Elementwise losses; formulas as in csrc/math/loss.h."""

from typing import Any

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import MEAN, NONE

from .tools.checks import acc_dtype, check_dense, check_floating, check_reduction
from .tools.elements import block_of_elements, load_elements, store_elements
from .tools.launch import cdiv, launch
from .tools.math import divide, exp, log1p
from .tools.merge import reduce_partials

# The kinds' numbers: those of pyops/kinds.py.
MSE: tl.constexpr = tl.constexpr(0)
L1: tl.constexpr = tl.constexpr(1)
HUBER: tl.constexpr = tl.constexpr(2)
SMOOTH_L1: tl.constexpr = tl.constexpr(3)
BCE_WITH_LOGITS: tl.constexpr = tl.constexpr(4)

# Which entry of a factor belongs to element i: the i-th, the i % count-th, the i // inner % count-th.
_EACH: tl.constexpr = tl.constexpr(0)
_IN_TURN: tl.constexpr = tl.constexpr(1)
_IN_RUNS: tl.constexpr = tl.constexpr(2)


def _block(dtype: torch.dtype) -> int:
    """Elements of one program; more of float64 would spill."""
    return 512 if dtype == torch.float64 else 2048


def _check_factor(factor: torch.Tensor | None, inner: int, op: str, name: str, input: torch.Tensor) -> None:
    if factor is None:
        return
    check_dense(factor, op, name, like=input, dtype=input.dtype)
    if factor.numel() == 0 and input.numel() > 0:
        raise RuntimeError(f"{op}: {name} must not be empty")
    if inner <= 0:
        raise RuntimeError(f"{op}: {name}_inner must be positive, got {inner}")


def _order(factor: torch.Tensor | None, inner: int, input: torch.Tensor) -> int:
    if factor is None or (inner <= 1 and factor.numel() >= input.numel()):
        return _EACH.value
    return _IN_TURN.value if inner <= 1 else _IN_RUNS.value


def _sizes(*factors: tuple[torch.Tensor | None, int]) -> tuple[int, ...]:
    """What kernels get of each factor: how many entries it has, and ``inner``."""
    return tuple(n for factor, inner in factors for n in (0 if factor is None else factor.numel(), inner))


def _check(
    op: str, tensors: tuple[Any, ...], kind: int, parameter: float, reduction: int
) -> dict[str, bool | int | float]:
    """Checks the arguments that the ops have in common; returns the kernels' constants."""
    input, target, weight, weight_inner, pos_weight, pos_weight_inner = tensors
    if not 0 <= kind <= 4:
        raise RuntimeError(f"{op}: kind must be between 0 and 4, got {kind}")
    if kind in (2, 3) and not parameter > 0:
        raise RuntimeError(f"{op}: parameter must be positive, got {parameter}")
    if pos_weight is not None and kind != 4:
        raise RuntimeError(f"{op}: pos_weight is for kind 4 (binary cross-entropy) alone, got kind {kind}")
    check_reduction(reduction, op)
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    check_dense(target, op, "target", like=input, dtype=input.dtype, shape=input.shape)
    _check_factor(weight, weight_inner, op, "weight", input)
    _check_factor(pos_weight, pos_weight_inner, op, "pos_weight", input)
    return {
        "KIND": kind,
        "PARAMETER": float(parameter),
        "WEIGHT_ORDER": _order(weight, weight_inner, input),
        "POS_WEIGHT_ORDER": _order(pos_weight, pos_weight_inner, input),
        "SMALL": input.numel() < 2**31 and max(weight_inner, pos_weight_inner) < 2**31,
        "BLOCK": _block(input.dtype),
        "num_warps": 4,
    }


@implement("pyops_triton", "elementwise_loss_forward")
def elementwise_loss_forward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    weight_inner: int,
    pos_weight: torch.Tensor | None,
    pos_weight_inner: int,
    kind: int,
    parameter: float,
    reduction: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (0-d, or of the input's shape and dtype for reduction 0) and what a mean divides by."""
    tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
    meta = _check("elementwise_loss_forward", tensors, kind, parameter, reduction)
    acc, n = acc_dtype(input.dtype), input.numel()
    loss = torch.empty_like(input) if reduction == NONE else input.new_empty((), dtype=acc)
    divisor = input.new_empty((), dtype=acc)
    blocks = cdiv(n, _block(input.dtype))
    partials = input.new_empty((2, 0 if reduction == NONE else blocks), dtype=acc)
    if n > 0:
        launch(
            _forward_kernel, blocks, input.device, input, target, weight, pos_weight,
            loss if reduction == NONE else None, None if reduction == NONE else partials, n,
            *_sizes((weight, weight_inner), (pos_weight, pos_weight_inner)),
            DIVIDES_BY_WEIGHT=weight is not None and kind in (0, 1), **meta,
        )  # fmt: skip
    reduce_partials(partials, None if reduction == NONE else loss, divisor, mean=reduction == MEAN)
    return loss, divisor


@implement("pyops_triton", "elementwise_loss_backward")
def elementwise_loss_backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    weight_inner: int,
    pos_weight: torch.Tensor | None,
    pos_weight_inner: int,
    divisor: torch.Tensor,
    kind: int,
    parameter: float,
    reduction: int,
    both: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the input and, if ``both``, its negative, the gradient of the target."""
    op = "elementwise_loss_backward"
    tensors = (input, target, weight, weight_inner, pos_weight, pos_weight_inner)
    meta = _check(op, tensors, kind, parameter, reduction)
    if both and kind == 4:
        raise RuntimeError(f"{op}: the target's gradient is that of a difference, of kinds 0 to 3 alone")
    per_element, acc = reduction == NONE, acc_dtype(input.dtype)
    dtype, shape = (input.dtype, input.shape) if per_element else (acc, ())
    check_dense(grad_loss, op, "grad_loss", like=input, dtype=dtype, shape=shape)
    check_dense(divisor, op, "divisor", like=input, dtype=acc, shape=())
    grad_input = torch.empty_like(input)
    grad_target = torch.empty_like(input) if both else input.new_empty((0,))
    n = input.numel()
    if n > 0:
        launch(
            _backward_kernel, cdiv(n, _block(input.dtype)), input.device, grad_loss, input, target, weight,
            pos_weight, divisor if reduction == MEAN else None, grad_input, grad_target if both else None, n,
            *_sizes((weight, weight_inner), (pos_weight, pos_weight_inner)),
            PER_ELEMENT=per_element, **meta,
        )  # fmt: skip
    return grad_input, grad_target


@triton.jit
def _clamp_magnitude(d, LIMIT: tl.constexpr):
    """d within [-LIMIT, LIMIT]; NaN stays."""
    capped = tl.where(d > LIMIT, LIMIT, d)
    return tl.where(capped < -LIMIT, -LIMIT, capped)


@triton.jit
def _loss_terms(x, y, p, KIND: tl.constexpr, PARAMETER: tl.constexpr, storage: tl.constexpr):
    """Losses of elements, and their derivatives by x; p is the positive weight."""
    if KIND == BCE_WITH_LOGITS:
        e = exp(-tl.abs(x), storage)
        log_sigmoid = tl.where(x > 0.0, 0.0, x) - log1p(e)
        sigmoid = divide(tl.where(x < 0.0, e, 1.0), e + 1.0)
        positive = p * y
        log_weight = (p - 1.0) * y + 1.0
        return (1.0 - y) * x - log_weight * log_sigmoid, (positive + 1.0 - y) * sigmoid - positive
    else:
        d = x - y
        if KIND == MSE:
            return d * d, d + d
        elif KIND == L1:
            return tl.abs(d), tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0)).to(d.dtype)
        else:
            c = _clamp_magnitude(d, PARAMETER)
            if KIND == HUBER:
                return c * (d - c * 0.5), c
            else:
                slope = divide(c, tl.zeros_like(c) + PARAMETER)
                return slope * (d - c * 0.5), slope


@triton.jit
def _load_factor(factor, i, n, full, count, inner, ORDER: tl.constexpr, SMALL: tl.constexpr):
    """The entries of elements ``i``."""
    if ORDER == _EACH:
        return load_elements(factor, i, n, full)
    else:
        # 64-bit divisions are slow. count and inner come in as small as they are.
        index = i.to(tl.int32) if SMALL else i
        entry = index % count if ORDER == _IN_TURN else index // inner % count
        acc: tl.constexpr = tl.float64 if factor.dtype.element_ty == tl.float64 else tl.float32
        return tl.load(factor + entry, mask=i < n, other=0.0).to(acc)


@triton.jit
def _weighted_terms(
    input, target, weight, pos_weight, i, n, full, count, inner, pos_count, pos_inner,
    KIND: tl.constexpr, PARAMETER: tl.constexpr, WEIGHT_ORDER: tl.constexpr,
    POS_WEIGHT_ORDER: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """Losses and derivatives of elements i times their weights, and the weights."""
    x = load_elements(input, i, n, full)
    y = load_elements(target, i, n, full)
    if pos_weight is not None:
        p = _load_factor(pos_weight, i, n, full, pos_count, pos_inner, POS_WEIGHT_ORDER, SMALL)
    else:
        p = tl.full(x.shape, 1.0, x.dtype)
    value, slope = _loss_terms(x, y, p, KIND, PARAMETER, input.dtype.element_ty)
    if weight is not None:
        w = _load_factor(weight, i, n, full, count, inner, WEIGHT_ORDER, SMALL)
        return value * w, slope * w, w
    else:
        return value, slope, tl.full(x.shape, 1.0, x.dtype)


@triton.jit(do_not_specialize=["n", "count", "inner", "pos_count", "pos_inner"])
def _forward_kernel(
    input, target, weight, pos_weight, loss, partials, n: tl.int64,
    count, inner, pos_count, pos_inner,
    KIND: tl.constexpr, PARAMETER: tl.constexpr, WEIGHT_ORDER: tl.constexpr,
    POS_WEIGHT_ORDER: tl.constexpr, SMALL: tl.constexpr, DIVIDES_BY_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes losses to ``loss``, and a program's sums of losses and of weights to ``partials``, unless None.

    ``weight`` has ``count`` entries, each for ``inner`` neighbours, in the order ``WEIGHT_ORDER``;
    ``pos_weight`` has ``pos_count``, each for ``pos_inner``, in the order ``POS_WEIGHT_ORDER``.
    """
    i, full = block_of_elements(n, BLOCK)
    value, _slope, w = _weighted_terms(
        input, target, weight, pos_weight, i, n, full, count, inner, pos_count, pos_inner,
        KIND, PARAMETER, WEIGHT_ORDER, POS_WEIGHT_ORDER, SMALL,
    )  # fmt: skip
    if loss is not None:
        store_elements(loss, i, n, full, value)
    if partials is not None:
        exists = i < n
        if not DIVIDES_BY_WEIGHT:
            w = tl.full(w.shape, 1.0, w.dtype)
        # A loss of the zeros behind the last element need not be 0.
        tl.store(partials + tl.program_id(0), tl.sum(tl.where(exists, value, 0.0), axis=0))
        tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(exists, w, 0.0), axis=0))


@triton.jit(do_not_specialize=["n", "count", "inner", "pos_count", "pos_inner"])
def _backward_kernel(
    grad_loss, input, target, weight, pos_weight, divisor, grad_input, grad_target, n: tl.int64,
    count, inner, pos_count, pos_inner,
    PER_ELEMENT: tl.constexpr, KIND: tl.constexpr, PARAMETER: tl.constexpr,
    WEIGHT_ORDER: tl.constexpr, POS_WEIGHT_ORDER: tl.constexpr, SMALL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes ``grad_input`` and, unless None, its negative to ``grad_target``.

    ``weight`` has ``count`` entries, each for ``inner`` neighbours, in the order ``WEIGHT_ORDER``;
    ``pos_weight`` has ``pos_count``, each for ``pos_inner``, in the order ``POS_WEIGHT_ORDER``.
    """
    i, full = block_of_elements(n, BLOCK)
    _value, slope, _w = _weighted_terms(
        input, target, weight, pos_weight, i, n, full, count, inner, pos_count, pos_inner,
        KIND, PARAMETER, WEIGHT_ORDER, POS_WEIGHT_ORDER, SMALL,
    )  # fmt: skip
    if PER_ELEMENT:
        grad = load_elements(grad_loss, i, n, full)
    else:
        grad = tl.load(grad_loss)
        if divisor is not None:
            grad = divide(grad, tl.load(divisor))
    gradient = slope * grad
    store_elements(grad_input, i, n, full, gradient)
    if grad_target is not None:
        store_elements(grad_target, i, n, full, -gradient)
