"""Statistics of a batch, and the normalisation; formulas as in csrc/math/batch_norm.h."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import activate
from .tiles import SIZES, channels_of, locate_parts, locate_program, locate_tile, norm_map, passes, rounded

# Where mean and rstd come from.
OF_BATCH: tl.constexpr = tl.constexpr(0)
GIVEN: tl.constexpr = tl.constexpr(1)
RUNNING: tl.constexpr = tl.constexpr(2)


class Tensors(NamedTuple):
    """What the normalisation reads and writes.

    ``x``, ``weight``, ``bias`` and ``residual``: the op's inputs; ``mean`` and ``rstd``: one number for each
    channel; ``y``: the output; ``mask``: one bit for each element, whether relu's gradient passes.
    """

    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    mean: torch.Tensor
    rstd: torch.Tensor
    y: torch.Tensor
    mask: torch.Tensor | None


@triton.jit(do_not_specialize=["size", *SIZES])
def statistics_kernel(
    x_ptr, partial_ptr, size: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Leaves count, mean and sum of squared deviations of each part, ``size`` elements from each other."""
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = locate_program(strips, slices, BLOCK_W)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    _row, i, exists = locate_tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
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
        _row, i, exists = locate_tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R)
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
def _merged(
    partial_ptr, channel, channels, parts, distance, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Count, mean and sum of squared deviations of channels: first the means, then what is about them."""
    size = parts * channels
    counts = tl.zeros([ROWS, COLUMNS], tl.float64)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = locate_parts(step, channel, channels, parts, distance, ROWS)
        count = tl.load(partial_ptr + place, mask=exists, other=0.0)
        counts += count
        total += count * tl.load(partial_ptr + size + place, mask=exists, other=0.0)
    count = tl.sum(counts, axis=0)
    mean = tl.sum(total, axis=0) / tl.where(count > 0.0, count, 1.0)
    squares = tl.zeros([ROWS, COLUMNS], tl.float64)
    for step in tl.range(0, steps):
        place, exists = locate_parts(step, channel, channels, parts, distance, ROWS)
        apart = tl.load(partial_ptr + size + place, mask=exists, other=0.0) - mean[None, :]
        weight = tl.load(partial_ptr + place, mask=exists, other=0.0)
        squares += tl.load(partial_ptr + 2 * size + place, mask=exists, other=0.0)
        squares += tl.where(exists, weight * apart * apart, 0.0)
    return count, mean, tl.sum(squares, axis=0)


@triton.jit(do_not_specialize=["parts", "steps", "distance"])
def merge_kernel(
    partial_ptr, result_ptr, channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    _count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    tl.store(result_ptr + channel, mean, mask=channel < channels)
    tl.store(result_ptr + channels + channel, m2, mask=channel < channels)


@triton.jit(do_not_specialize=["parts", "steps", "distance"])
def finish_statistics_kernel(
    partial_ptr, statistics_ptr, running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr,
    channels: tl.int64, parts: tl.int64, distance: tl.int64, steps: tl.int64,
    momentum: tl.float64, eps: tl.float64,
    SOURCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    if SOURCE == OF_BATCH:
        count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
        var = m2 / tl.where(count > 0.0, count, 1.0)
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * mean
            tl.store(running_mean_ptr + channel, rounded(new, running_mean_ptr), mask=exists)
        if running_var_ptr is not None:
            old = tl.load(running_var_ptr + channel, mask=exists, other=0.0).to(tl.float64)
            new = (1.0 - momentum) * old + momentum * (m2 / (count - 1.0))
            tl.store(running_var_ptr + channel, rounded(new, running_var_ptr), mask=exists)
    elif SOURCE == GIVEN:
        mean = tl.load(statistics_ptr + channel, mask=exists, other=0.0)
        var = tl.load(statistics_ptr + channels + channel, mask=exists, other=1.0)
    else:
        mean = tl.load(running_mean_ptr + channel, mask=exists, other=0.0).to(tl.float64)
        var = tl.load(running_var_ptr + channel, mask=exists, other=1.0).to(tl.float64)
    rstd = 1.0 / tl.sqrt(tl.where(exists, var, 1.0) + eps)
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(rstd_ptr + channel, rounded(rstd, rstd_ptr), mask=exists)


@triton.jit(do_not_specialize=["mask_bytes", *SIZES])
def normalize_kernel(
    tensors, mask_bytes: tl.int64,
    rows: tl.int64, channels: tl.int64, inner: tl.int64, aligned_stride: tl.int64, aligned_width: tl.int64,
    strips: tl.int64, slices: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr,
    RUNS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Writes y and, unless None, relu's mask, whose rows have ``mask_bytes`` bytes."""
    stride, width = aligned_stride * ALIGN, aligned_width * ALIGN
    channel, strip, slice, column = locate_program(strips, slices, BLOCK_W)
    storage: tl.constexpr = tensors.x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = channels_of(column, channel, inner, width, RUNS)
    center, scale, shift = norm_map(tensors, of_column, inside, acc)
    row, i, exists = locate_tile(0, slices, slice, rows, stride, column, width, channel, BLOCK_R)
    x = tl.load(tensors.x + i, mask=exists, other=0.0).to(acc)
    z = tl.fma(x - center, scale + tl.zeros_like(x), shift + tl.zeros_like(x))
    if tensors.residual is not None:
        z += tl.load(tensors.residual + i, mask=exists, other=0.0).to(acc)
    if tensors.mask is not None:
        bits = (passes(z, storage) & exists).to(tl.int32)
        weights = tl.reshape(bits, [BLOCK_R, BLOCK_W // 8, 8]) << tl.arange(0, 8)[None, None, :]
        byte = strip * (BLOCK_W // 8) + tl.arange(0, BLOCK_W // 8)
        mask_row = row * channels + channel if RUNS else row
        place = mask_row[:, None] * mask_bytes + byte[None, :]
        inside = (row < rows)[:, None] & (byte < mask_bytes)[None, :]
        tl.store(tensors.mask + place, tl.sum(weights, axis=2).to(tl.uint8), mask=inside)
    tl.store(tensors.y + i, activate(z, ACTIVATION, storage).to(storage), mask=exists)
