"""PReLU; formulas as in csrc/math/prelu.h.

Backward writes the input's gradient and sums the slopes' gradients in one pass. Where many elements of one
channel are neighbours, a program takes a piece of such a run and leaves one sum. Otherwise the tensor is seen
as rows of whole periods of slopes (a period is channels * inner elements), and a program keeps its columns.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pyops._library import implement

from .tools.checks import acc_dtype, check_dense, check_floating
from .tools.launch import cdiv, launch, next_power_of_2

_LONG_RUN = 256
_MAX_PIECE = 4096  # elements of a run that one program takes
_COLUMNS = 1024
_ROWS_PER_SUM = 16  # at least, so that the sums are few beside the elements
_FINISH_TILE = (64, 32)  # sums of one channel, and channels, that a program adds up at once


class _Shape(NamedTuple):
    """The input as [``outer``, ``channels``, ``inner``]; with one slope, all is outer."""

    outer: int
    channels: int
    inner: int

    @property
    def numel(self) -> int:
        return self.outer * self.channels * self.inner


class _Columns(NamedTuple):
    """Rows of ``width`` slopes, whole periods; program p sums ``steps`` rows: p, p + ``slices``, ..."""

    width: int
    slices: int
    steps: int

    @staticmethod
    def of(s: _Shape) -> "_Columns":
        period = s.channels * s.inner
        repeats = max(1, _COLUMNS // period)
        aligned = 16 // min(16, period & -period)  # repeats of which make rows of a multiple of 16
        width = period * cdiv(repeats, aligned) * aligned
        rows = cdiv(s.numel, width)
        slices = max(1, min(rows // _ROWS_PER_SUM, 4096 // cdiv(width, _COLUMNS)))
        return _Columns(width, slices, cdiv(rows, slices))


def _check(input: torch.Tensor, weight: torch.Tensor, dim: int, op: str) -> _Shape:
    check_floating(input, op, "input")
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    check_dense(weight, op, "weight", like=input, dtype=input.dtype)
    if weight.dim() > 1:
        raise RuntimeError(f"{op}: weight must have at most 1 dimension, got {weight.dim()}")
    if weight.numel() == 1:
        return _Shape(input.numel(), 1, 1)
    if not 0 <= dim < input.dim():
        raise RuntimeError(f"{op}: dim must be in [0, {input.dim() - 1}], got {dim}")
    if input.shape[dim] != weight.numel():
        raise RuntimeError(f"{op}: weight must have 1 or {input.shape[dim]} elements, got {weight.numel()}")
    return _Shape(input.shape[:dim].numel(), input.shape[dim], input.shape[dim + 1 :].numel())


def _run(
    s: _Shape, grad: torch.Tensor | None, input: torch.Tensor, weight: torch.Tensor, output: torch.Tensor
) -> tuple[torch.Tensor | None, _Shape]:
    """Write ``output`` (or the input's gradient); returns the slopes' sums, over all but their channels."""
    acc = acc_dtype(input.dtype)
    device = input.device
    kernel: Any
    if s.inner >= _LONG_RUN:
        piece = min(next_power_of_2(s.inner), _MAX_PIECE)
        pieces = cdiv(s.inner, piece)
        sums_shape = _Shape(s.outer, s.channels, pieces)
        kernel, programs = _runs_kernel, s.outer * s.channels * pieces
        sizes: tuple[int, ...] = (s.channels, s.inner, pieces)
        block = piece
    else:
        columns = _Columns.of(s)
        strips = cdiv(columns.width, _COLUMNS)
        sums_shape = _Shape(columns.slices * columns.width // (s.channels * s.inner), s.channels, s.inner)
        kernel, programs = _columns_kernel, columns.slices * strips
        sizes = (s.channels, s.inner, s.numel, columns.width, columns.slices, columns.steps, strips)
        block = _COLUMNS
    sums = None if grad is None else torch.empty(sums_shape, dtype=acc, device=device)
    launch(
        kernel, programs, device, grad, input, weight, output, sums, *sizes,
        BLOCK=block, num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return sums, sums_shape


@implement("pyops_triton", "prelu_forward")
def prelu_forward(input: torch.Tensor, weight: torch.Tensor, dim: int) -> torch.Tensor:
    """``input`` above 0, times its channel's element of ``weight`` below; channels lie along ``dim``."""
    shape = _check(input, weight, dim, "prelu_forward")
    output = torch.empty_like(input)
    if shape.numel > 0:
        _run(shape, None, input, weight, output)
    return output


@implement("pyops_triton", "prelu_backward")
def prelu_backward(
    grad_output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``input`` and ``weight``."""
    op = "prelu_backward"
    shape = _check(input, weight, dim, op)
    check_dense(grad_output, op, "grad_output", like=input, dtype=input.dtype, shape=input.shape)
    grad_input = torch.empty_like(input)
    if shape.numel == 0:
        return grad_input, torch.zeros_like(weight)
    sums, (outer, channels, inner) = _run(shape, grad_output, input, weight, grad_input)
    grad_weight = torch.empty_like(weight)
    rows, columns = _FINISH_TILE
    launch(
        _finish_kernel, cdiv(channels, columns), input.device, sums, grad_weight, outer, channels, inner,
        cdiv(outer * inner, rows), ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return grad_input, grad_weight


@triton.jit
def _runs_kernel(
    grad_ptr, x_ptr, weight_ptr, y_ptr, sums_ptr,
    channels: tl.int64, inner: tl.int64, pieces: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row = pid // pieces
    place = (pid - row * pieces) * BLOCK + tl.arange(0, BLOCK)
    exists = place < inner
    i = row * inner + place
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    slope = tl.load(weight_ptr + row % channels).to(acc)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    if grad_ptr is None:
        y = tl.where(x > 0.0, x, x * slope)
    else:
        grad = tl.load(grad_ptr + i, mask=exists, other=0.0).to(acc)
        y = tl.where(x > 0.0, grad, grad * slope)
        tl.store(sums_ptr + pid, tl.sum(tl.where(x > 0.0, 0.0, x * grad), axis=0))
    tl.store(y_ptr + i, y.to(storage), mask=exists)


@triton.jit
def _load(pointer, i, inside, n, full):
    """Elements of a row, which is ``full`` but for the last one: only there a mask splits accesses."""
    acc: tl.constexpr = tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
    if full:
        x = tl.load(pointer + i, mask=inside, other=0.0)
    else:
        x = tl.load(pointer + i, mask=inside & (i < n), other=0.0)
    return x.to(acc)


@triton.jit(do_not_specialize=["n", "slices", "steps"])
def _columns_kernel(
    grad_ptr, x_ptr, weight_ptr, y_ptr, sums_ptr,
    channels: tl.int64, inner: tl.int64, n: tl.int64, width: tl.int64, slices: tl.int64, steps: tl.int64,
    strips: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    slice = pid // strips
    column = (pid - slice * strips) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    slope = tl.load(weight_ptr + column // inner % channels, mask=inside, other=0.0).to(acc)
    total = tl.zeros([BLOCK], acc)
    for step in tl.range(0, steps):
        row = step * slices + slice
        i = row * width + column
        full = (row + 1) * width <= n
        x = _load(x_ptr, i, inside, n, full)
        if grad_ptr is None:
            y = tl.where(x > 0.0, x, x * slope)
        else:
            grad = _load(grad_ptr, i, inside, n, full)
            y = tl.where(x > 0.0, grad, grad * slope)
            total += tl.where(x > 0.0, 0.0, x * grad)
        y = y.to(storage)
        if full:
            tl.store(y_ptr + i, y, mask=inside)
        else:
            tl.store(y_ptr + i, y, mask=inside & (i < n))
    if grad_ptr is not None:
        tl.store(sums_ptr + slice * width + column, total, mask=inside)


@triton.jit(do_not_specialize=["outer", "steps"])
def _finish_kernel(
    sums_ptr, grad_weight_ptr, outer: tl.int64, channels: tl.int64, inner: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    total = tl.zeros([ROWS, COLUMNS], sums_ptr.dtype.element_ty)
    for step in tl.range(0, steps):
        i = step * ROWS + tl.arange(0, ROWS).to(tl.int64)
        block = i // inner
        row = block * channels * inner + (i - block * inner)
        place = row[:, None] + channel[None, :] * inner
        total += tl.load(sums_ptr + place, mask=(block < outer)[:, None] & exists[None, :], other=0.0)
    grad_weight = tl.sum(total, axis=0).to(grad_weight_ptr.dtype.element_ty)
    tl.store(grad_weight_ptr + channel, grad_weight, mask=exists)
