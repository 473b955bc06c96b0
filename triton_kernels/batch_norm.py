"""Batch normalisation; formulas as in csrc/math/batch_norm.h.

A tensor [outer, channels, inner] is seen as ``outer`` rows of channels * inner elements. Where inner is
large, a program's tile is a piece of one channel's part of some rows; otherwise it is some columns, whose
channels alternate. Either way neighbouring threads read neighbouring elements. Statistics are summed about a
shift from among the values by many programs, each of which leaves its moments in float64; one kernel merges
them in a fixed order, and another pass writes.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pyops._library import implement

from ._common import acc_dtype, cdiv, check_dense, check_floating, launch, next_power_of_2
from .activation import IDENTITY, RELU, activate, check_kind, derive_from_input

_LONG_RUN = 16  # as in csrc/binding/batch_norm.h: the mask's rows depend on it
_TILE = 2048
_PROGRAMS = 1024  # that sum, where there is so much to do: some for each multiprocessor
_FINISH_TILE = (64, 32)  # partial results of one channel, and channels, that a program merges at once

# Where mean and rstd come from.
_OF_BATCH: tl.constexpr = tl.constexpr(0)
_GIVEN: tl.constexpr = tl.constexpr(1)
_RUNNING: tl.constexpr = tl.constexpr(2)


class _Shape(NamedTuple):
    outer: int
    channels: int
    inner: int

    @staticmethod
    def of(input: torch.Tensor, dim: int, op: str) -> "_Shape":
        check_floating(input, op, "input")
        check_dense(input, op, "input", like=input, dtype=input.dtype)
        if not 0 <= dim < input.dim():
            raise RuntimeError(f"{op}: dim must be in [0, {input.dim() - 1}], got {dim}")
        shape = input.shape
        return _Shape(shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel())

    @property
    def runs(self) -> bool:
        return self.inner >= _LONG_RUN

    @property
    def numel(self) -> int:
        return self.outer * self.channels * self.inner

    @property
    def mask(self) -> tuple[int, int]:
        rows, width = self.outer, self.channels * self.inner
        if self.runs:
            rows, width = self.outer * self.channels, self.inner
        return rows, cdiv(width, 8)


class _Tiles(NamedTuple):
    """How the rows are shared out: ``groups`` (channels of runs) x ``strips`` of columns x slices of rows."""

    shape: _Shape
    groups: int
    width: int
    block_rows: int
    block_width: int
    align: int

    @staticmethod
    def of(s: _Shape) -> "_Tiles":
        groups, width = (s.channels, s.inner) if s.runs else (1, s.channels * s.inner)
        block_width = max(8, min(next_power_of_2(width), 1024 if s.runs else 128))
        block_rows = max(1, min(_TILE // block_width, next_power_of_2(s.outer)))
        return _Tiles(s, groups, width, block_rows, block_width, min(width & -width, 16))

    @property
    def strips(self) -> int:
        return cdiv(self.width, self.block_width)

    @property
    def row_blocks(self) -> int:
        return cdiv(self.shape.outer, self.block_rows)

    @property
    def slices(self) -> int:
        """Programs that share the rows of a strip where they are summed."""
        return max(1, min(self.row_blocks, _PROGRAMS // (self.groups * self.strips)))

    @property
    def parts(self) -> tuple[int, int]:
        """Partial results of a channel, and their distance: they lie as [..., channels, distance]."""
        inner = self.shape.inner
        return (self.strips * self.slices, 1) if self.shape.runs else (self.slices * inner, inner)

    def launch(self, kernel: Any, slices: int, device: torch.device, *args: Any, **meta: Any) -> None:
        s = self.shape
        launch(
            kernel, self.groups * self.strips * slices, device, *args,
            s.outer, s.channels, s.inner, s.channels * s.inner // self.align, self.width // self.align,
            self.strips, slices, cdiv(self.row_blocks, slices),
            RUNS=s.runs, ALIGN=self.align, BLOCK_R=self.block_rows, BLOCK_W=self.block_width,
            num_warps=4, **meta,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- checks


def _check_vector(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor, s: _Shape) -> None:
    if t is not None:
        dtype = t.dtype if t.dtype == input.dtype else acc_dtype(input.dtype)
        check_dense(t, op, name, like=input, dtype=dtype, shape=(s.channels,))


def _check_image(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor) -> None:
    if t is not None:
        check_dense(t, op, name, like=input, dtype=input.dtype, shape=input.shape)


def _check_pair(t: torch.Tensor | None, op: str, name: str, input: torch.Tensor, s: _Shape) -> None:
    if t is not None:
        check_dense(t, op, name, like=input, dtype=torch.float64, shape=(2, s.channels))


def _check_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dim: int,
    kind: int,
    a: float,
    op: str,
) -> _Shape:
    s = _Shape.of(input, dim, op)
    check_kind(kind, a, op)
    _check_image(grad_output, op, "grad_output", input)
    _check_vector(weight, op, "weight", input, s)
    _check_vector(bias, op, "bias", input, s)
    _check_image(residual, op, "residual", input)
    check_dense(mean, op, "mean", like=input, dtype=torch.float64, shape=(s.channels,))
    check_dense(rstd, op, "rstd", like=input, dtype=acc_dtype(input.dtype), shape=(s.channels,))
    if mask is not None:
        check_dense(mask, op, "mask", like=input, dtype=torch.uint8, shape=s.mask)
        if kind != 1:
            raise RuntimeError(f"{op}: a mask is for relu, got kind {kind}")
    return s


# ---------------------------------------------------------------------------------------------- launchers


def _partial_moments(input: torch.Tensor, tiles: _Tiles) -> torch.Tensor:
    """Count, mean and sum of squared deviations of every part of every channel."""
    parts, _ = tiles.parts
    shape = (3, parts, tiles.shape.channels)
    partial = torch.empty(shape, dtype=torch.float64, device=input.device)
    size = parts * tiles.shape.channels
    tiles.launch(_statistics_kernel, tiles.slices, input.device, input, partial, size)
    return partial


@implement("pyops_triton", "batch_norm_forward")
def batch_norm_forward(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    statistics: torch.Tensor | None,
    dim: int,
    training: bool,
    momentum: float,
    eps: float,
    kind: int,
    a: float,
    b: float,
    save_mask: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, mean, 1 / deviation and relu's mask of one bit per element."""
    op = "batch_norm_forward"
    s = _Shape.of(input, dim, op)
    check_kind(kind, a, op)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        _check_vector(vector, op, name, input, s)
    _check_image(residual, op, "residual", input)
    _check_pair(statistics, op, "statistics", input, s)
    if not training and statistics is None and (running_mean is None or running_var is None):
        raise RuntimeError(f"{op}: running_mean and running_var must be given unless training")
    if save_mask and kind != 1:
        raise RuntimeError(f"{op}: save_mask is for relu, got kind {kind}")
    output, device = torch.empty_like(input), input.device
    mean = torch.empty(s.channels, dtype=torch.float64, device=device)
    rstd = torch.empty(s.channels, dtype=acc_dtype(input.dtype), device=device)
    mask = torch.empty(s.mask if save_mask else (0, 0), dtype=torch.uint8, device=device)
    if s.numel == 0:
        return output, mean.zero_(), rstd.fill_(1.0), mask.zero_()
    tiles = _Tiles.of(s)
    source, partial = _RUNNING, None
    if statistics is not None:
        source = _GIVEN
    elif training:
        source, partial = _OF_BATCH, _partial_moments(input, tiles)
    parts, distance = tiles.parts
    rows, columns = _FINISH_TILE
    launch(
        _finish_statistics_kernel, cdiv(s.channels, columns), device, partial, statistics, running_mean,
        running_var, mean, rstd, s.channels, parts, distance, cdiv(parts, rows), momentum, eps,
        SOURCE=source, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    tiles.launch(
        _normalize_kernel, tiles.row_blocks, device, input, weight, bias, residual, mean, rstd, output,
        mask if save_mask else None, s.mask[1], KIND=kind, A=float(a), B=float(b),
    )  # fmt: skip
    return output, mean, rstd, mask


@implement("pyops_triton", "batch_norm_statistics")
def batch_norm_statistics(input: torch.Tensor, dim: int) -> torch.Tensor:
    """Mean and sum of squared deviations of each channel."""
    s = _Shape.of(input, dim, "batch_norm_statistics")
    if s.numel == 0:
        return torch.zeros((2, s.channels), dtype=torch.float64, device=input.device)
    result = torch.empty((2, s.channels), dtype=torch.float64, device=input.device)
    tiles = _Tiles.of(s)
    parts, distance = tiles.parts
    rows, columns = _FINISH_TILE
    launch(
        _merge_kernel, cdiv(s.channels, columns), input.device, _partial_moments(input, tiles), result,
        s.channels, parts, distance, cdiv(parts, rows), ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return result


def _gradient_sums(tensors: tuple[Any, ...], s: _Shape, kind: int, a: float, b: float) -> torch.Tensor:
    """Of the gradient g of the normalised value: its sum and that of g (x - mean), of each channel."""
    grad_output, mask = tensors[0], tensors[5]
    device = grad_output.device
    result = torch.empty((2, s.channels), dtype=torch.float64, device=device)
    tiles = _Tiles.of(s)
    parts, distance = tiles.parts
    partial = torch.empty((2, parts, s.channels), dtype=torch.float64, device=device)
    tiles.launch(
        _gradient_sums_kernel, tiles.slices, device, *tensors, partial, parts * s.channels, s.mask[1],
        KIND=kind, A=float(a), B=float(b), MASKED=mask is not None,
    )  # fmt: skip
    rows, columns = _FINISH_TILE
    launch(
        _add_kernel, cdiv(s.channels, columns), device, partial, result, s.channels, parts, distance,
        cdiv(parts, rows), ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return result


@implement("pyops_triton", "batch_norm_backward")
def batch_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    mean_gradients: torch.Tensor | None,
    dim: int,
    training: bool,
    kind: int,
    a: float,
    b: float,
    needs_input: bool,
    needs_affine: bool,
    needs_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight, bias and residual."""
    op = "batch_norm_backward"
    tensors = (grad_output, input, weight, bias, residual, mask, mean, rstd)
    s = _check_backward(*tensors, dim, kind, a, op)
    _check_pair(mean_gradients, op, "mean_gradients", input, s)
    grad_input = torch.empty_like(input) if needs_input else input.new_empty(0)
    grad_residual = torch.empty_like(input) if needs_residual else input.new_empty(0)
    like = next(t for t in (weight, bias, rstd) if t is not None)
    size = (s.channels if needs_affine else 0,)
    if s.numel == 0:
        return grad_input, like.new_zeros(size), like.new_zeros(size), grad_residual
    grad_weight, grad_bias = like.new_empty(size), like.new_empty(size)
    sums, through = None, needs_input and training
    if needs_affine or (through and mean_gradients is None):
        sums = _gradient_sums(tensors, s, kind, a, b)
    if needs_affine:
        columns = _FINISH_TILE[1]
        launch(
            _affine_gradients_kernel, cdiv(s.channels, columns), input.device, sums, rstd, grad_weight,
            grad_bias, s.channels, COLUMNS=columns, num_warps=1,
        )  # fmt: skip
    if needs_input or needs_residual:
        means, count = (sums, s.outer * s.inner) if mean_gradients is None else (mean_gradients, 1)
        tiles = _Tiles.of(s)
        tiles.launch(
            _input_gradient_kernel, tiles.row_blocks, input.device, *tensors, means if through else None,
            grad_input if needs_input else None, grad_residual if needs_residual else None, count, s.mask[1],
            KIND=kind, A=float(a), B=float(b), MASKED=mask is not None,
        )  # fmt: skip
    return grad_input, grad_weight, grad_bias, grad_residual


@implement("pyops_triton", "batch_norm_backward_sums")
def batch_norm_backward_sums(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dim: int,
    kind: int,
    a: float,
    b: float,
) -> torch.Tensor:
    """The sums over each channel of the gradient g in front of the activation, and of g (x - mean)."""
    tensors = (grad_output, input, weight, bias, residual, mask, mean, rstd)
    s = _check_backward(*tensors, dim, kind, a, "batch_norm_backward_sums")
    if s.numel == 0:
        return torch.zeros((2, s.channels), dtype=torch.float64, device=input.device)
    return _gradient_sums(tensors, s, kind, a, b)


# ------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _share(strips, slices, BLOCK_W: tl.constexpr):
    """This program's channel (0 where channels alternate), number of its strip, slice and its columns."""
    pid = tl.program_id(0).to(tl.int64)
    part = pid // strips
    strip = pid - part * strips
    channel = part // slices
    return channel, strip, part - channel * slices, strip * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R: tl.constexpr):
    """Rows of the ``step``-th tile of a slice, the places of its elements, and which of them exist."""
    row = (step * slices + slice) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = (row < rows)[:, None] & (column < width)[None, :]
    return row, row[:, None] * stride + (channel * width + column)[None, :], exists


@triton.jit
def _statistics_kernel(
    x_ptr, partial_ptr, size: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    _row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    # The mean of the first tile: of a column, or of all where they are one channel's.
    number = tl.sum(exists.to(acc), axis=0)
    shift = tl.sum(x, axis=0)
    if RUNS:
        number, shift = tl.sum(number, axis=0), tl.sum(shift, axis=0)
    shift = shift / tl.where(number > 0.0, number, 1.0)
    shifts = tl.zeros([1, BLOCK_W], acc) + shift
    total = tl.zeros([BLOCK_R, BLOCK_W], acc)
    squares = tl.zeros([BLOCK_R, BLOCK_W], acc)
    counts = tl.zeros([BLOCK_R, BLOCK_W], tl.int32)
    for step in tl.range(0, steps):
        _row, i, exists = _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
        x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
        d = tl.where(exists, x - shifts, 0.0)
        total += d
        squares += d * d
        counts += exists.to(tl.int32)
    count = tl.sum(counts.to(tl.float64), axis=0)
    sum = tl.sum(total.to(tl.float64), axis=0)
    square = tl.sum(squares.to(tl.float64), axis=0)
    if RUNS:
        count, sum, square = tl.sum(count, axis=0), tl.sum(sum, axis=0), tl.sum(square, axis=0)
    offset = sum / tl.where(count > 0.0, count, 1.0)
    m2 = square - sum * offset
    m2 = tl.where(m2 < 0.0, 0.0, m2)
    mean = shift.to(tl.float64) + offset
    if RUNS:
        place = (slice * strips + strip) * channels + channel
        inside = channel < channels
    else:
        place = slice * width + column
        inside = column < width
    tl.store(partial_ptr + place, count, mask=inside)
    tl.store(partial_ptr + size + place, mean, mask=inside)
    tl.store(partial_ptr + 2 * size + place, m2, mask=inside)


@triton.jit
def _parts(step, channel, channels, parts, distance, ROWS: tl.constexpr):
    """Places of partial results of ``channel``s, and which of them exist."""
    k = step * ROWS + tl.arange(0, ROWS).to(tl.int64)
    block = k // distance
    place = (block * channels * distance + (k - block * distance))[:, None] + channel[None, :] * distance
    return place, (k < parts)[:, None] & (channel < channels)[None, :]


@triton.jit
def _merged(
    partial_ptr, channel, channels, parts, distance, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Count, mean and sum of squared deviations of channels: the means first, then what is about them."""
    size = parts * channels
    counts = tl.zeros([ROWS, COLUMNS], tl.float64)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        count = tl.load(partial_ptr + place, mask=exists, other=0.0)
        counts += count
        total += count * tl.load(partial_ptr + size + place, mask=exists, other=0.0)
    count = tl.sum(counts, axis=0)
    mean = tl.sum(total, axis=0) / tl.where(count > 0.0, count, 1.0)
    squares = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        apart = tl.load(partial_ptr + size + place, mask=exists, other=0.0) - mean[None, :]
        weight = tl.load(partial_ptr + place, mask=exists, other=0.0)
        squares += tl.load(partial_ptr + 2 * size + place, mask=exists, other=0.0)
        squares += tl.where(exists, weight * apart * apart, 0.0)
    return count, mean, tl.sum(squares, axis=0)


@triton.jit
def _rounded(x, ptr):
    """A float64 as what ``ptr`` points to; there is no way to 16 bits but over float32."""
    if ptr.dtype.element_ty == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(ptr.dtype.element_ty)


@triton.jit
def _merge_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    _count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    tl.store(result_ptr + channel, mean, mask=channel < channels)
    tl.store(result_ptr + channels + channel, m2, mask=channel < channels)


@triton.jit
def _finish_statistics_kernel(
    partial_ptr, statistics_ptr, running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr,
    channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64, momentum, eps,
    SOURCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    if SOURCE == _OF_BATCH:
        count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
        var = m2 / tl.where(count > 0.0, count, 1.0)
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * mean
            tl.store(running_mean_ptr + channel, _rounded(new, running_mean_ptr), mask=exists)
        if running_var_ptr is not None:
            old = tl.load(running_var_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * (m2 / (count - 1.0))
            tl.store(running_var_ptr + channel, _rounded(new, running_var_ptr), mask=exists)
    elif SOURCE == _GIVEN:
        mean = tl.load(statistics_ptr + channel, mask=exists, other=0.0)
        var = tl.load(statistics_ptr + channels + channel, mask=exists, other=1.0)
    else:
        mean = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
        var = tl.load(running_var_ptr + channel, mask=exists, other=1.0).to(tl.float64)
    rstd = 1.0 / tl.sqrt(tl.where(exists, var, 1.0) + eps)
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(rstd_ptr + channel, _rounded(rstd, rstd_ptr), mask=exists)


@triton.jit
def _vector(ptr, channel, exists, acc: tl.constexpr, default: tl.constexpr):
    """Numbers of channels, those of an absent vector being ``default``."""
    if ptr is None:
        return tl.zeros_like(channel).to(acc) + default
    else:
        return tl.load(ptr + channel, mask=exists, other=0.0).to(acc)


@triton.jit
def _channels_of(column, channel, inner, width, RUNS: tl.constexpr):
    """The channel of each column, and whether it exists."""
    exists = column < width
    if RUNS:
        return tl.where(exists, channel, 0), exists
    else:
        return tl.where(exists, column // inner, 0), exists


@triton.jit
def _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, channel, exists, acc: tl.constexpr):
    """Center, scale and shift of each column; the mean's part beyond the center is in the shift."""
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0)
    scale = tl.load(rstd_ptr + channel, mask=exists, other=0.0) * _vector(
        weight_ptr, channel, exists, acc, 1.0
    )
    bias = _vector(bias_ptr, channel, exists, acc, 0.0)
    center = mean.to(acc)
    rest = mean - center.to(tl.float64)
    shift = (bias.to(tl.float64) - rest * scale.to(tl.float64)).to(acc)
    return center[None, :], scale[None, :], shift[None, :]


@triton.jit
def _passes(z, storage: tl.constexpr):
    """Whether relu's gradient passes: unless what is stored is 0 or less."""
    if storage == tl.float16:
        return ~(z <= 2.98023223876953125e-8)  # 2^-25
    elif storage == tl.bfloat16:
        return ~(z <= 4.591774807899560578e-41)  # 2^-134
    else:
        return ~(z <= 0.0)


@triton.jit
def _normalize_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, y_ptr, mask_ptr, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    z = tl.fma(x - center, scale + tl.zeros_like(x), shift + tl.zeros_like(x))
    if residual_ptr is not None:
        z += tl.load(residual_ptr + i, mask=exists, other=0.0).to(acc)
    if mask_ptr is not None:
        bits = (_passes(z, storage) & exists).to(tl.int32)
        weights = tl.reshape(bits, [BLOCK_R, BLOCK_W // 8, 8]) << tl.arange(0, 8)[None, None, :]
        byte = strip * (BLOCK_W // 8) + tl.arange(0, BLOCK_W // 8)
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + byte[None, :]
        inside = (row < rows)[:, None] & (byte < mask_bytes)[None, :]
        tl.store(mask_ptr + place, tl.sum(weights, axis=2).to(tl.uint8), mask=inside)
    tl.store(y_ptr + i, activate(z, KIND, A, B, storage).to(storage), mask=exists)


@triton.jit
def _gradient(
    grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
    center, scale, shift,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """The gradient in front of the activation, and x - center."""
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    g = tl.load(grad_ptr + i, mask=exists, other=0.0).to(acc)
    d = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc) - center
    if MASKED:
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + (column // 8)[None, :]
        bits = (
            tl.load(mask_ptr + place, mask=exists, other=0).to(tl.int32) >> (column % 8).to(tl.int32)[None, :]
        )
        g = tl.where((bits & 1) != 0, g, 0.0)
    elif KIND != IDENTITY:
        z = tl.fma(d, scale + tl.zeros_like(d), shift + tl.zeros_like(d))
        if residual_ptr is not None:
            z += tl.load(residual_ptr + i, mask=exists, other=0.0).to(acc)
        if KIND == RELU:
            g = tl.where(_passes(z, storage), g, 0.0)
        else:
            g = derive_from_input(z, g, KIND, A, B, storage)
    return tl.where(exists, g, 0.0), tl.where(exists, d, 0.0)


@triton.jit
def _gradient_sums_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, rstd_ptr, partial_ptr,
    size: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = _share(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    total = tl.zeros([BLOCK_R, BLOCK_W], acc)
    products = tl.zeros([BLOCK_R, BLOCK_W], acc)
    for step in tl.range(0, steps):
        row, i, exists = _tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
        g, d = _gradient(
            grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
            center, scale, shift, KIND, A, B, MASKED, RUNS,
        )  # fmt: skip
        total += g
        products += g * d
    sum = tl.sum(total.to(tl.float64), axis=0)
    # Of products with x - mean; center is the mean rounded.
    mean = tl.load(mean_ptr + of_column, mask=inside, other=0.0)
    product = tl.sum(products.to(tl.float64), axis=0) - (mean - mean.to(acc).to(tl.float64)) * sum
    if RUNS:
        sum, product = tl.sum(sum, axis=0), tl.sum(product, axis=0)
        place = (slice * strips + strip) * channels + channel
        inside = channel < channels
    else:
        place = slice * width + column
    tl.store(partial_ptr + place, sum, mask=inside)
    tl.store(partial_ptr + size + place, product, mask=inside)


@triton.jit
def _add_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    products = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = _parts(step, channel, channels, parts, distance, ROWS)
        sums += tl.load(partial_ptr + place, mask=exists, other=0.0)
        products += tl.load(partial_ptr + parts * channels + place, mask=exists, other=0.0)
    tl.store(result_ptr + channel, tl.sum(sums, axis=0), mask=channel < channels)
    tl.store(result_ptr + channels + channel, tl.sum(products, axis=0), mask=channel < channels)


@triton.jit
def _affine_gradients_kernel(
    sums_ptr, rstd_ptr, grad_weight_ptr, grad_bias_ptr, channels: tl.int64, COLUMNS: tl.constexpr
):
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    sum = tl.load(sums_ptr + channel, mask=exists, other=0.0)
    product = tl.load(sums_ptr + channels + channel, mask=exists, other=0.0)
    rstd = tl.load(rstd_ptr + channel, mask=exists, other=0.0).to(tl.float64)
    tl.store(grad_weight_ptr + channel, _rounded(product * rstd, grad_weight_ptr), mask=exists)
    tl.store(grad_bias_ptr + channel, _rounded(sum, grad_bias_ptr), mask=exists)


@triton.jit
def _input_gradient_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, rstd_ptr, means_ptr, dx_ptr,
    dresidual_ptr, count: tl.int64, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, _strip, slice, column = _share(strips, slices, BLOCK_W)
    storage: tl.constexpr = x_ptr.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = _channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = _norm_map(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, of_column, inside, acc)
    row, i, exists = _tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    g, d = _gradient(
        grad_ptr, x_ptr, residual_ptr, mask_ptr, i, exists, row, column, channel, channels, mask_bytes,
        center, scale, shift, KIND, A, B, MASKED, RUNS,
    )  # fmt: skip
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + i, g.to(storage), mask=exists)
    if dx_ptr is not None:
        dx = g * scale
        if means_ptr is not None:  # what goes through the batch's mean and variance
            mean_grad = tl.load(means_ptr + of_column, mask=inside, other=0.0) / count
            mean_product = tl.load(means_ptr + channels + of_column, mask=inside, other=0.0) / count
            mean = tl.load(mean_ptr + of_column, mask=inside, other=0.0)
            rstd = tl.load(rstd_ptr + of_column, mask=inside, other=0.0).to(tl.float64)
            factor = tl.reshape(scale, [BLOCK_W]).to(tl.float64)
            slope = -factor * rstd * rstd * mean_product
            offset = -factor * mean_grad - slope * (mean - mean.to(acc).to(tl.float64))
            dx += d * slope.to(acc)[None, :] + offset.to(acc)[None, :]
        tl.store(dx_ptr + i, dx.to(storage), mask=exists)
