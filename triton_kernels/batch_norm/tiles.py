"""Tiles of batch normalisation, and what its kernels compute of one.

A tensor [outer, channels, inner] is seen as ``outer`` rows of channels * inner elements. A tile is a piece of
some rows: of one channel (``RUNS``), or of columns whose channels alternate. All kernels get of them:

``rows``, ``channels`` and ``inner``: the tensor's sizes, rows being ``outer``;
``aligned_stride`` and ``aligned_width``: from row to row, and of a channel (or of all, where they alternate),
both divided by ``ALIGN``, a power of two, so that the compiler knows that they are its multiples;
``strips``: tiles that lie beside each other in a row, or in a channel's part of it;
``slices`` and ``steps``: programs that share the rows of a strip, and how many tiles each of them takes;
``BLOCK_R`` and ``BLOCK_W``: rows and columns of a tile.
"""

import triton
import triton.language as tl

# Of the above, what the compiler need not know: ``ALIGN`` tells it what vectors depend on.
SIZES = [
    "rows", "channels", "inner", "aligned_stride", "aligned_width", "strips", "slices", "steps",
]  # fmt: skip


@triton.jit
def locate_program(strips, slices, BLOCK_W: tl.constexpr):
    """This program's channel (0 where channels alternate), number of its strip, slice and its columns."""
    pid = tl.program_id(0).to(tl.int64)
    part = pid // strips
    strip = pid - part * strips
    channel = part // slices
    return channel, strip, part - channel * slices, strip * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def locate_tile(step, slices, slice, rows, stride, column, width, channel, BLOCK_R: tl.constexpr):
    """Rows of the ``step``-th tile of a slice, the places of its elements, and which of them exist."""
    row = (step * slices + slice) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = (row < rows)[:, None] & (column < width)[None, :]
    return row, row[:, None] * stride + (channel * width + column)[None, :], exists


@triton.jit
def channels_of(column, channel, inner, width, RUNS: tl.constexpr):
    """The channel of each column, and whether it exists."""
    exists = column < width
    if RUNS:
        return tl.where(exists, channel, 0), exists
    else:
        return tl.where(exists, column // inner, 0), exists


@triton.jit
def _vector(ptr, channel, exists, acc: tl.constexpr, default: tl.constexpr):
    """Numbers of channels, those of an absent vector being ``default``."""
    if ptr is None:
        return tl.zeros_like(channel).to(acc) + default
    else:
        return tl.load(ptr + channel, mask=exists, other=0.0).to(acc)


@triton.jit
def norm_map(tensors, channel, exists, acc: tl.constexpr):
    """Center, scale and shift of each column; the mean's part beyond the center is in the shift."""
    mean = tl.load(tensors.mean + channel, mask=exists, other=0.0)
    rstd = tl.load(tensors.rstd + channel, mask=exists, other=0.0)
    scale = rstd * _vector(tensors.weight, channel, exists, acc, 1.0)
    bias = _vector(tensors.bias, channel, exists, acc, 0.0)
    center = mean.to(acc)
    rest = mean - center.to(tl.float64)
    shift = (bias.to(tl.float64) - rest * scale.to(tl.float64)).to(acc)
    return center[None, :], scale[None, :], shift[None, :]


@triton.jit
def passes(z, storage: tl.constexpr):
    """Whether relu's gradient passes: unless what is stored is 0 or less."""
    if storage == tl.float16:
        return ~(z <= 2.98023223876953125e-8)  # 2^-25
    elif storage == tl.bfloat16:
        return ~(z <= 4.591774807899560578e-41)  # 2^-134
    else:
        return ~(z <= 0.0)


@triton.jit
def locate_parts(step, channel, channels, parts, distance, ROWS: tl.constexpr):
    """Places of partial results of ``channel``s, and which of them exist."""
    k = step * ROWS + tl.arange(0, ROWS).to(tl.int64)
    block = k // distance
    place = (block * channels * distance + (k - block * distance))[:, None] + channel[None, :] * distance
    return place, (k < parts)[:, None] & (channel < channels)[None, :]


@triton.jit
def rounded(x, ptr):
    """A float64 as what ``ptr`` points to; the way to 16 bits leads over float32."""
    if ptr.dtype.element_ty == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(ptr.dtype.element_ty)
