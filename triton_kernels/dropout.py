"""Dropout, and bias + activation + dropout + residual; formulas as in csrc/math/dropout.h.

The mask is that of csrc/common/philox.h: one evaluation of Philox serves eight neighbouring elements. Tiles
are made of such groups; where a tensor's rows are not, each element evaluates it for itself.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import Activation
from pyops.reference.dropout import rate

from .tools.activation import (
    NO_ACTIVATION,
    activate,
    check_activation,
    derive_from_input,
    derive_from_output,
)
from .tools.checks import acc_dtype, check_dense, check_floating
from .tools.elements import block_of_elements, load_elements, store_elements
from .tools.launch import cdiv, launch, next_power_of_2
from .tools.math import divide
from .tools.merge import merge_parts
from .tools.philox import GROUP, element_is_below, group_is_below

_BLOCK = 1024
_NUM_WARPS = 4

# The channels of a group of elements: no bias, one channel after the other, one channel, anything.
_NO_BIAS: tl.constexpr = tl.constexpr(0)
_NEIGHBOURS: tl.constexpr = tl.constexpr(1)
_SHARED: tl.constexpr = tl.constexpr(2)
_ANY: tl.constexpr = tl.constexpr(3)


@triton.jit
def _drop(x, dropped, scale):
    # Times 0, not instead of it: NaN and infinity pass, as in torch.
    return x * tl.where(dropped, 0.0, tl.full([], scale, x.dtype))


# --------------------------------------------------------------------------------- blocks of elements


@triton.jit
def _add_bias(x, bias_ptr, i, group, channels, inner, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """x + bias for the elements ``i`` [BLOCK] of the groups ``group`` [BLOCK / 8]."""
    if BIAS == _NO_BIAS:
        return x
    elif BIAS == _ANY:
        return x + tl.load(bias_ptr + (i // inner) % channels).to(x.dtype)
    else:
        # One division for eight elements.
        first = group * GROUP
        channel = first % channels if BIAS == _NEIGHBOURS else (first // inner) % channels
        step = tl.arange(0, GROUP) if BIAS == _NEIGHBOURS else tl.zeros([GROUP], tl.int32)
        bias = tl.load(bias_ptr + tl.reshape(channel[:, None] + step[None, :], [BLOCK]))
        return x + bias.to(x.dtype)


@triton.jit(do_not_specialize=["n", "threshold"])
def _forward_kernel(
    x_ptr, bias_ptr, residual_ptr, seed_ptr, y_ptr,
    n: tl.int64, channels: tl.int64, inner: tl.int64, threshold: tl.int64, scale: tl.float64,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, full = block_of_elements(n, BLOCK)
    group = tl.program_id(0).to(tl.int64) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    x = load_elements(x_ptr, i, n, full)
    x = _add_bias(x, bias_ptr, i, group, channels, inner, BIAS, BLOCK)
    x = activate(x, ACTIVATION, x_ptr.dtype.element_ty)
    if seed_ptr is not None:
        x = _drop(x, group_is_below(seed_ptr, group, threshold, [BLOCK]), scale)
    if residual_ptr is not None:
        x += load_elements(residual_ptr, i, n, full)
    store_elements(y_ptr, i, n, full, x)


@triton.jit
def _differentiate(
    grad, saved, scale, ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    DROPS: tl.constexpr, storage: tl.constexpr,
):  # fmt: skip
    """The gradient of the activation's input. ``saved`` is that input or the op's output.

    A dropped output is 0, and its gradient too, whatever the activation's output was.
    """
    if FROM_OUTPUT:
        if DROPS:
            keep = divide(tl.full([], 1.0, saved.dtype), tl.full([], scale, saved.dtype))
            saved = saved * tl.where(scale > 0.0, keep, 0.0)
        return derive_from_output(saved, grad, ACTIVATION)
    else:
        return derive_from_input(saved, grad, ACTIVATION, storage)


@triton.jit(do_not_specialize=["n", "threshold"])
def _backward_kernel(
    grad_ptr, saved_ptr, bias_ptr, seed_ptr, dx_ptr,
    n: tl.int64, channels: tl.int64, inner: tl.int64, threshold: tl.int64, scale: tl.float64,
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i, full = block_of_elements(n, BLOCK)
    group = tl.program_id(0).to(tl.int64) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    grad = load_elements(grad_ptr, i, n, full)
    if seed_ptr is not None:
        grad = _drop(grad, group_is_below(seed_ptr, group, threshold, [BLOCK]), scale)
    if saved_ptr is not None:
        saved = load_elements(saved_ptr, i, n, full)
        saved = _add_bias(saved, bias_ptr, i, group, channels, inner, BIAS, BLOCK)
        drops: tl.constexpr = seed_ptr is not None
        storage: tl.constexpr = grad_ptr.dtype.element_ty
        grad = _differentiate(grad, saved, scale, ACTIVATION, FROM_OUTPUT, drops, storage)
    store_elements(dx_ptr, i, n, full, grad)


# ------------------------------------------------------------------- backward with the bias's gradient
# A program adds up its part of a channel's elements; partial sums [parts, channels] are merged in order.


@triton.jit
def _gradient_tile(
    grad_ptr, saved_ptr, seed_ptr, dx_ptr, bias, i, group, mask, threshold, scale,
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, GROUPS: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Writes and returns the gradient of elements ``i``; ``GROUPS``: they are those of ``group``."""
    storage: tl.constexpr = grad_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    grad = tl.load(grad_ptr + i, mask=mask, other=0.0).to(acc)
    if seed_ptr is not None:
        if GROUPS:
            dropped = group_is_below(seed_ptr, group, threshold, SHAPE)
        else:
            dropped = element_is_below(seed_ptr, i, threshold)
        grad = _drop(grad, dropped, scale)
    if saved_ptr is not None:
        saved = tl.load(saved_ptr + i, mask=mask, other=0.0).to(acc)
        if bias is not None:
            saved += bias
        drops: tl.constexpr = seed_ptr is not None
        grad = _differentiate(grad, saved, scale, ACTIVATION, FROM_OUTPUT, drops, storage)
    tl.store(dx_ptr + i, grad.to(storage), mask=mask)
    return tl.where(mask, grad, 0.0)


@triton.jit(do_not_specialize=["rows", "threshold", "steps"])
def _column_kernel(
    grad_ptr, saved_ptr, bias_ptr, seed_ptr, dx_ptr, partial_ptr,
    rows: tl.int64, channels: tl.int64, tiles: tl.int64, threshold: tl.int64, scale: tl.float64,
    steps: tl.int32,
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Element i has channel i % channels. A program takes one of the ``tiles`` of channels, and of ``rows``
    one part, ``steps`` blocks of them: their sums go to ``partial_ptr``, the gradient of x to ``dx_ptr``.
    """
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    part = program // tiles
    left = (program - part * tiles) * BLOCK_C
    column = left + tl.arange(0, BLOCK_C)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(acc)[None, :]
    sums = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for step in tl.range(0, steps):
        row = (part * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)
        i = row[:, None] * channels + column[None, :]
        group = (row * channels + left)[:, None] // GROUP + tl.arange(0, BLOCK_C // GROUP)[None, :]
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        sums += _gradient_tile(
            grad_ptr, saved_ptr, seed_ptr, dx_ptr, bias, i, group, mask, threshold, scale,
            ACTIVATION, FROM_OUTPUT, GROUPS, [BLOCK_R, BLOCK_C],
        )  # fmt: skip
    tl.store(partial_ptr + part * channels + column, tl.sum(sums, axis=0), mask=column < channels)


@triton.jit(do_not_specialize=["outer", "threshold", "steps"])
def _row_kernel(
    grad_ptr, saved_ptr, bias_ptr, seed_ptr, dx_ptr, partial_ptr,
    outer: tl.int64, channels: tl.int64, inner: tl.int64, threshold: tl.int64, scale: tl.float64,
    steps: tl.int32,
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Element i has channel i // inner % channels. The elements of a channel are counted from 0."""
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    part = program // channels
    channel = program - part * channels
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(acc)
    sums = tl.zeros([BLOCK], acc)
    for step in tl.range(0, steps):
        first = (part * steps + step) * BLOCK
        j = first + tl.arange(0, BLOCK)
        i = j + (j // inner * (channels - 1) + channel) * inner
        # Without groups these numbers mean nothing and are not used.
        start = first + tl.arange(0, BLOCK // GROUP) * GROUP
        group = (start + (start // inner * (channels - 1) + channel) * inner) // GROUP
        sums += _gradient_tile(
            grad_ptr, saved_ptr, seed_ptr, dx_ptr, bias, i, group, j < outer * inner, threshold, scale,
            ACTIVATION, FROM_OUTPUT, GROUPS, [BLOCK],
        )  # fmt: skip
    tl.store(partial_ptr + part * channels + channel, tl.sum(sums, axis=0))


# ------------------------------------------------------------------------------------------- launchers


def check_mask(seed: torch.Tensor | None, p: float, op: str, like: torch.Tensor) -> None:
    if not 0.0 <= p <= 1.0:
        raise RuntimeError(f"{op}: p must be in [0, 1], got {p}")
    if seed is not None:
        check_dense(seed, op, "seed", like=like, dtype=torch.int64, shape=(2,))


def _bias_shape(tensor: torch.Tensor, has_bias: bool, dim: int, op: str) -> tuple[int, int, int]:
    """The elements as [outer, channels, inner]; one channel without a bias."""
    if not has_bias:
        return tensor.numel(), 1, 1
    shape = tuple(tensor.shape) or (1,)
    if not -len(shape) <= dim < len(shape):
        raise RuntimeError(f"{op}: dim must be in [{-len(shape)}, {len(shape) - 1}], got {dim}")
    dim %= len(shape)
    outer = inner = 1
    for size in shape[:dim]:
        outer *= size
    for size in shape[dim + 1 :]:
        inner *= size
    return outer, shape[dim], inner


def _bias_mode(bias: torch.Tensor | None, channels: int, inner: int) -> int:
    if bias is None:
        return _NO_BIAS.value
    if inner == 1 and channels % GROUP.value == 0:
        return _NEIGHBOURS.value
    return _SHARED.value if inner % GROUP.value == 0 else _ANY.value


def _check_companions(
    like: torch.Tensor, channels: int, bias: torch.Tensor | None, op: str, **others: torch.Tensor | None
) -> None:
    if bias is not None:
        check_dense(bias, op, "bias", like=like, dtype=like.dtype, shape=(channels,))
    for name, tensor in others.items():
        if tensor is not None:
            check_dense(tensor, op, name, like=like, dtype=like.dtype, shape=like.shape)


def _forward(
    input: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
    seed: torch.Tensor | None, p: float, activation: Activation, channels: int, inner: int,
) -> None:  # fmt: skip
    n = input.numel()
    if n == 0:
        return
    launch(
        _forward_kernel, cdiv(n, _BLOCK), input.device,
        input, bias, residual, seed, output, n, channels, inner, *rate(p),
        ACTIVATION=activation, BIAS=_bias_mode(bias, channels, inner),
        BLOCK=_BLOCK, num_warps=_NUM_WARPS,
    )  # fmt: skip


@implement("pyops_triton", "dropout")
def dropout(input: torch.Tensor, seed: torch.Tensor, p: float) -> torch.Tensor:
    """A contiguous ``input`` times the mask of ``seed``, int64 of shape (2,)."""
    output = torch.empty_like(input)
    _plain("dropout", input, output, seed, p)
    return output


@implement("pyops_triton", "dropout_")
def dropout_(input: torch.Tensor, seed: torch.Tensor, p: float) -> None:
    """The same, in place."""
    _plain("dropout_", input, input, seed, p)


def _plain(op: str, input: torch.Tensor, output: torch.Tensor, seed: torch.Tensor, p: float) -> None:
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    check_mask(seed, p, op, input)
    _forward(input, output, None, None, seed, p, NO_ACTIVATION, 1, 1)


@implement("pyops_triton", "bias_activation_dropout_forward")
def bias_activation_dropout_forward(
    input: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, seed: torch.Tensor | None,
    p: float, kind: int, alpha: float, beta: float, dim: int,
) -> torch.Tensor:  # fmt: skip
    """residual + dropout(activation(input + bias)) of contiguous tensors, the bias along ``dim``."""
    op = "bias_activation_dropout_forward"
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    check_mask(seed, p, op, input)
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op)
    _, channels, inner = _bias_shape(input, bias is not None, dim, op)
    _check_companions(input, channels, bias, op, residual=residual)
    output = torch.empty_like(input)
    _forward(input, output, bias, residual, seed, p, activation, channels, inner)
    return output


@implement("pyops_triton", "bias_activation_dropout_backward")
def bias_activation_dropout_backward(
    grad_output: torch.Tensor, saved: torch.Tensor | None, bias: torch.Tensor | None,
    seed: torch.Tensor | None, p: float, kind: int, alpha: float, beta: float, dim: int,
    saved_is_output: bool, needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of input and bias (empty unless it is needed); ``saved`` is the output or the input."""
    op = "bias_activation_dropout_backward"
    check_floating(grad_output, op, "grad_output")
    check_dense(grad_output, op, "grad_output", like=grad_output, dtype=grad_output.dtype)
    check_mask(seed, p, op, grad_output)
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op, saved_is_output and saved is not None)
    if saved is None and kind != 0:
        raise RuntimeError(f"{op}: saved must be given unless the activation is the identity")
    shape = _bias_shape(grad_output, needs_bias or bias is not None, dim, op)
    _check_companions(grad_output, shape[1], bias, op, saved=saved)
    grad_input = torch.empty_like(grad_output)
    grad_bias = grad_output.new_zeros((shape[1] if needs_bias else 0,))
    n = grad_output.numel()
    if n == 0:
        return grad_input, grad_bias
    if saved is None or saved_is_output:
        bias = None
    meta = {"ACTIVATION": activation, "FROM_OUTPUT": saved_is_output}
    tensors = (grad_output, saved, bias, seed, grad_input)
    if needs_bias:
        _backward_with_bias(tensors, shape, p, grad_bias, meta)
    else:
        launch(
            _backward_kernel, cdiv(n, _BLOCK), grad_output.device,
            *tensors, n, *shape[1:], *rate(p),
            BIAS=_bias_mode(bias, *shape[1:]), BLOCK=_BLOCK, num_warps=_NUM_WARPS,
            **meta,
        )  # fmt: skip
    return grad_input, grad_bias


def _backward_with_bias(
    tensors: tuple[torch.Tensor | None, ...], shape: tuple[int, int, int], p: float,
    grad_bias: torch.Tensor, meta: dict[str, Any],
) -> None:  # fmt: skip
    outer, channels, inner = shape
    device, acc = grad_bias.device, acc_dtype(grad_bias.dtype)
    meta = {**meta, "num_warps": _NUM_WARPS}
    if inner == 1:
        block_c = min(max(next_power_of_2(channels), GROUP.value), 256)
        block_r = _BLOCK // block_c
        tiles = cdiv(channels, block_c)
        steps, parts = _parts(cdiv(outer, block_r), 1024 // tiles)
        partial = torch.empty((parts, channels), dtype=acc, device=device)
        launch(
            _column_kernel, tiles * parts, device,
            *tensors, partial, outer, channels, tiles, *rate(p), steps,
            GROUPS=channels % GROUP.value == 0, BLOCK_R=block_r, BLOCK_C=block_c, **meta,
        )  # fmt: skip
    else:
        steps, parts = _parts(cdiv(outer * inner, _BLOCK), 1024 // channels)
        partial = torch.empty((parts, channels), dtype=acc, device=device)
        launch(
            _row_kernel, channels * parts, device,
            *tensors, partial, outer, channels, inner, *rate(p), steps,
            GROUPS=inner % GROUP.value == 0, BLOCK=_BLOCK, **meta,
        )  # fmt: skip
    merge_parts(partial, grad_bias)


def _parts(blocks: int, most: int) -> tuple[int, int]:
    """How many blocks each part has, and how many parts there are."""
    steps = cdiv(blocks, max(1, min(most, blocks)))
    return steps, cdiv(blocks, steps)
