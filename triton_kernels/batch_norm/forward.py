"""Statistics of a batch, and the normalisation; formulas as in csrc/math/batch_norm.h."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import activate
from .tiles import (
    SIZES,
    at_most,
    broadcastable,
    channels_of,
    first_row,
    load_map,
    locate_parts,
    locate_program,
    locate_tile,
    mask_bytes_of,
    norm_map,
    passes,
    rounded,
    store_map,
)

# Where mean and rstd come from.
OF_BATCH: tl.constexpr = tl.constexpr(0)
GIVEN: tl.constexpr = tl.constexpr(1)
RUNNING: tl.constexpr = tl.constexpr(2)


class Tensors(NamedTuple):
    """What the normalisation reads and writes.

    ``x`` and ``residual``: the op's inputs; ``norm_map``: center, scale and shift of each channel; ``y``: the
    output; ``mask``: one bit for each element, whether relu's gradient passes.
    """

    x: torch.Tensor
    residual: torch.Tensor | None
    norm_map: torch.Tensor
    y: torch.Tensor
    mask: torch.Tensor | None


@triton.jit(do_not_specialize=["size", *SIZES])
def statistics_kernel(
    x_ptr, partial_ptr, size: tl.int64,
    rows, channels, inner, aligned_stride, aligned_width, strips, slices, steps, TILING: tl.constexpr,
):  # fmt: skip
    """Leaves count, mean and sum of squared deviations of each part, ``size`` elements from each other."""
    stride, width = aligned_stride * TILING.align, aligned_width * TILING.align
    channel, strip, slice, column = locate_program(strips, slices, TILING)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    first = first_row(0, slices, slice, TILING)
    _row, i, exists = locate_tile(first, rows, stride, column, width, channel, TILING)
    x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
    # The mean of the first tile: of a column, or of all where they are one channel's.
    number, in_row = at_most(rows, first, TILING.height), 1
    shift = tl.sum(x, axis=0)
    if TILING.runs:
        in_row = at_most(width, strip * TILING.width, TILING.width)
        shift = tl.sum(shift, axis=0)
    shift = shift / tl.maximum(number * in_row, 1).to(acc)
    total = tl.full([TILING.height, TILING.width], 0.0, acc)
    squares = tl.full([TILING.height, TILING.width], 0.0, acc)
    number = tl.zeros_like(number)
    for step in tl.range(0, steps):
        first = first_row(step, slices, slice, TILING)
        _row, i, exists = locate_tile(first, rows, stride, column, width, channel, TILING)
        x = tl.load(x_ptr + i, mask=exists, other=0.0).to(acc)
        d = tl.where(exists, x - broadcastable(shift, TILING), 0.0)
        total += d
        squares += d * d
        number += tl.maximum(at_most(rows, first, TILING.height), 0)
    count = (number * in_row).to(tl.float64)
    sum = tl.sum(total.to(tl.float64), axis=0)
    square = tl.sum(squares.to(tl.float64), axis=0)
    if TILING.runs:
        sum, square = tl.sum(sum, axis=0), tl.sum(square, axis=0)
        place = ((slice * strips + strip) * channels + channel).to(tl.int64)
        inside = channel < channels
    else:
        place = (slice * width + column).to(tl.int64)
        inside = column < width
        count = tl.where(inside, count, 0.0)
    offset = sum / tl.where(count > 0.0, count, 1.0)
    m2 = square - sum * offset
    m2 = tl.where(m2 < 0.0, 0.0, m2)
    tl.store(partial_ptr + place, count, mask=inside)
    tl.store(partial_ptr + size + place, shift.to(tl.float64) + offset, mask=inside)
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
    partial_ptr, result_ptr, channels: tl.int64, parts, distance, steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    _count, mean, m2 = _merged(partial_ptr, channel, channels, parts, distance, steps, ROWS, COLUMNS)
    tl.store(result_ptr + channel, mean, mask=channel < channels)
    tl.store(result_ptr + channels + channel, m2, mask=channel < channels)


@triton.jit(do_not_specialize=["parts", "steps", "distance"])
def finish_statistics_kernel(
    momentum: tl.float64, eps: tl.float64,
    partial_ptr, statistics_ptr, running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr,
    mean_ptr, rstd_ptr, map_ptr, channels: tl.int64, parts, distance, steps,
    SOURCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of each channel, and the normalisation that follows.

    ``map_ptr``: center, scale and shift [3, channels], so that the pass over the elements, which has each
    channel many times, computes nothing of them in float64. ``SOURCE``: where the statistics come from.
    """
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
    rstd = rounded(rstd, rstd_ptr)
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(rstd_ptr + channel, rstd, mask=exists)
    center, scale, shift = norm_map(mean, rstd, weight_ptr, bias_ptr, channel, exists)
    store_map(map_ptr, 0, channel, channels, center)
    store_map(map_ptr, 1, channel, channels, scale)
    store_map(map_ptr, 2, channel, channels, shift)


@triton.jit(do_not_specialize=["mask_bytes", *SIZES])
def normalize_kernel(
    tensors, mask_bytes, rows, channels, inner, aligned_stride, aligned_width, strips, slices, steps,
    ACTIVATION: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Writes y and, unless None, relu's mask, whose rows have ``mask_bytes`` bytes."""
    stride, width = aligned_stride * TILING.align, aligned_width * TILING.align
    channel, strip, slice, column = locate_program(strips, slices, TILING)
    storage: tl.constexpr = tensors.x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    of_column, inside = channels_of(column, channel, channels, inner, width, TILING)
    center = load_map(tensors.norm_map, 0, of_column, channels, inside, TILING)
    scale = load_map(tensors.norm_map, 1, of_column, channels, inside, TILING)
    shift = load_map(tensors.norm_map, 2, of_column, channels, inside, TILING)
    first = first_row(0, slices, slice, TILING)
    row, i, exists = locate_tile(first, rows, stride, column, width, channel, TILING)
    x = tl.load(tensors.x + i, mask=exists, other=0.0).to(acc)
    z = tl.fma(x - center, scale + tl.zeros_like(x), shift + tl.zeros_like(x))
    if tensors.residual is not None:
        z += tl.load(tensors.residual + i, mask=exists, other=0.0).to(acc)
    if tensors.mask is not None:
        bits = (passes(z, storage) & exists).to(tl.int32)
        weights = tl.reshape(bits, [TILING.height, TILING.width // 8, 8]) << tl.arange(0, 8)[None, None, :]
        place, _bit, inside = mask_bytes_of(row, rows, channel, channels, strip, mask_bytes, 8, TILING)
        tl.store(tensors.mask + place, tl.sum(weights, axis=2).to(tl.uint8), mask=inside)
    tl.store(tensors.y + i, activate(z, ACTIVATION, storage).to(storage), mask=exists)
