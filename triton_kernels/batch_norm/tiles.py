"""Tiles of batch normalisation, and what its kernels compute of one.

A tensor [outer, channels, inner] is seen as ``outer`` rows of channels * inner elements. A tile is a piece of
some rows: of one channel (``TILING.runs``), or of columns whose channels alternate. All kernels get of them:

``rows``, ``channels`` and ``inner``: the tensor's sizes, rows being ``outer``;
``aligned_stride`` and ``aligned_width``: from row to row, and of a channel (or of all, where they alternate),
both divided by ``TILING.align``, so that the compiler knows that they are its multiples;
``strips``: tiles that lie beside each other in a row, or in a channel's part of it;
``slices`` and ``steps``: programs that share the rows of a strip, and how many tiles each of them takes.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Of the above, what the compiler need not know: ``TILING.align`` tells it what vectors depend on.
SIZES = [
    "rows", "channels", "inner", "aligned_stride", "aligned_width", "strips", "slices", "steps",
]  # fmt: skip

# What divides the rows of a map of channels to numbers, in memory.
MAP_ALIGN: tl.constexpr = tl.constexpr(16)


class Tiling(NamedTuple):
    """How a kernel's tiles lie, a constant.

    ``runs``: a tile is of one channel; ``single``: channels are single columns (``inner`` is 1); ``align``: a
    power of two that divides the width of a channel, or of all; ``wide``: offsets take 64 bits; ``height``
    and ``width``: rows and columns of a tile.
    """

    runs: bool
    single: bool
    align: int
    wide: bool
    height: int
    width: int


@triton.jit
def locate_program(strips, slices, TILING: tl.constexpr):
    """This program's channel (0 where channels alternate), number of its strip, slice and its columns."""
    pid = tl.program_id(0).to(tl.int64 if TILING.wide else tl.int32)
    part = pid // strips
    strip = pid - part * strips
    channel = part // slices
    return channel, strip, part - channel * slices, strip * TILING.width + tl.arange(0, TILING.width)


@triton.jit
def first_row(step, slices, slice, TILING: tl.constexpr):
    """The first row of the ``step``-th tile of a slice."""
    return (tl.full([], step, slice.dtype) * slices + slice) * TILING.height


@triton.jit
def locate_tile(first, rows, stride, column, width, channel, TILING: tl.constexpr):
    """Rows of the tile that begins with row ``first``, its elements' places, and which of them exist."""
    row = first + tl.arange(0, TILING.height)
    exists = (row < rows)[:, None] & (column < width)[None, :]
    return row, row[:, None] * stride + (channel * width + column)[None, :], exists


@triton.jit
def at_most(size, first, BLOCK: tl.constexpr):
    """How many of ``BLOCK`` elements from ``first`` on are within ``size``."""
    return tl.minimum(tl.full([], size, first.dtype) - first, BLOCK)


@triton.jit
def channels_of(column, channel, channels, inner, width, TILING: tl.constexpr):
    """The channel of each column, or the one of all, and whether it exists."""
    if TILING.runs:
        return channel, channel < channels
    elif TILING.single:
        return column, column < width
    else:
        return column // inner, column < width


@triton.jit
def broadcastable(x, TILING: tl.constexpr):
    """Numbers of the columns, or one of all, as they meet a tile."""
    if TILING.runs:
        return x
    else:
        return x[None, :]


@triton.jit
def store_map(ptr, index: tl.constexpr, channel, channels, value):
    """Numbers of ``channel``s as row ``index`` of a map, for :func:`load_map`."""
    tl.store(ptr + index * _map_row(channels) + channel, value, mask=channel < channels)


@triton.jit
def load_map(ptr, index: tl.constexpr, of_column, channels, exists, TILING: tl.constexpr):
    """Row ``index`` of a map for the channel of each column of a tile."""
    row = ptr + index * _map_row(channels)
    return broadcastable(tl.load(row + of_column, mask=exists, other=0.0), TILING)


@triton.jit
def _map_row(channels):
    """Numbers in a row of a map: rows begin where vectors may."""
    return tl.cdiv(channels, MAP_ALIGN) * MAP_ALIGN


@triton.jit
def _vector(ptr, channel, exists, acc: tl.constexpr, default: tl.constexpr):
    """Numbers of channels, those of an absent vector being ``default``."""
    if ptr is None:
        return tl.zeros_like(channel).to(acc) + default
    else:
        return tl.load(ptr + channel, mask=exists, other=0.0).to(acc)


@triton.jit
def norm_map(mean, rstd, weight_ptr, bias_ptr, channel, exists):
    """Center, scale and shift of ``channel``s; the mean's part beyond the center is in the shift."""
    acc: tl.constexpr = rstd.dtype
    scale = rstd * _vector(weight_ptr, channel, exists, acc, 1.0)
    bias = _vector(bias_ptr, channel, exists, acc, 0.0)
    center = mean.to(acc)
    rest = mean - center.to(tl.float64)
    return center, scale, (bias.to(tl.float64) - rest * scale.to(tl.float64)).to(acc)


@triton.jit
def norm_map_of_columns(tensors, of_column, exists, TILING: tl.constexpr):
    """The same of a tile's columns."""
    mean = tl.load(tensors.mean + of_column, mask=exists, other=0.0)
    rstd = tl.load(tensors.rstd + of_column, mask=exists, other=0.0)
    center, scale, shift = norm_map(mean, rstd, tensors.weight, tensors.bias, of_column, exists)
    return (
        broadcastable(center, TILING), broadcastable(scale, TILING), broadcastable(shift, TILING),
    )  # fmt: skip


@triton.jit
def mask_bytes_of(
    row, rows, channel, channels, strip, mask_bytes, VECTOR: tl.constexpr, TILING: tl.constexpr
):
    """Of relu's mask, a bit for each column: which byte each ``VECTOR`` columns of a tile begin in, the bit
    they begin with, and whether they exist."""
    column = strip * TILING.width + tl.arange(0, TILING.width // VECTOR) * VECTOR
    mask_row = row * channels + channel if TILING.runs else row
    place = mask_row[:, None] * mask_bytes + (column // 8)[None, :]
    return place, (column % 8)[None, :], (row < rows)[:, None] & (column // 8 < mask_bytes)[None, :]


@triton.jit
def passes(z, storage: tl.constexpr):
    """Whether relu's gradient passes: unless what is stored is 0 or less."""
    if storage == tl.float16:
        return ~(z <= 2.98023223876953125e-8)  # 2^-25
    elif storage == tl.bfloat16:
        # 2^-134; by itself it would be a float64, as no normal float32 is as small.
        return ~(z <= tl.full([], 4.591774807899560578e-41, z.dtype))
    else:
        return ~(z <= 0.0)


@triton.jit
def locate_parts(step, channel, channels, parts, distance, ROWS: tl.constexpr):
    """Places of partial results of ``channel``s, and which of them exist."""
    k = tl.full([], step, tl.int32) * ROWS + tl.arange(0, ROWS)
    block = k // distance
    place = (block.to(tl.int64) * channels * distance + (k - block * distance))[:, None]
    place += channel[None, :] * distance
    return place, (k < parts)[:, None] & (channel < channels)[None, :]


@triton.jit
def rounded(x, ptr):
    """A float64 as what ``ptr`` points to; the way to 16 bits leads over float32."""
    if ptr.dtype.element_ty == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(ptr.dtype.element_ty)
