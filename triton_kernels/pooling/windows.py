"""What the pooling kernels share: checks, geometry and tiles; formulas as in csrc/math/pooling.h.

A contiguous tensor is pooled as [outer, height, width, inner]: inner is 1 in NCHW order and the number of
channels in channels_last order. A program makes a tile of BLOCK_R rows, each of BLOCK_C neighbouring
elements of width * inner, so that warps access whole cache lines in either order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.checks import check_dense
from ..tools.launch import cdiv, next_power_of_2, vector_alignment

_INT_MAX = 2**31 - 1
_TILE = 1024
# Offsets below it are computed in 32 bits; tiles may reach beyond tensors.
NARROW_ELEMENTS = 2**30


@dataclass(frozen=True)
class Image:
    """A tensor's shape in memory order."""

    outer: int
    height: int
    width: int
    inner: int
    shape: tuple[int, ...]
    channels_last: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, channels_last: bool, op: str, name: str) -> "Image":
        check_dense(tensor, op, name, like=tensor, dtype=tensor.dtype)
        rank = tensor.dim()
        if rank != 4 and (rank != 3 or channels_last):
            raise RuntimeError(
                f"{op}: {name} must have 3 dimensions, or 4 if channels_last, got {tuple(tensor.shape)}"
            )
        shape = tuple(tensor.shape)
        if channels_last:
            return cls(shape[0], shape[1], shape[2], shape[3], shape, True)
        outer = shape[0] if rank == 3 else shape[0] * shape[1]
        return cls(outer, shape[-2], shape[-1], 1, shape, False)

    def resized(self, height: int, width: int) -> "Image":
        if self.channels_last:
            shape = (self.shape[0], height, width, self.shape[3])
        else:
            shape = (*self.shape[:-2], height, width)
        return Image(self.outer, height, width, self.inner, shape, self.channels_last)

    @property
    def sides(self) -> "Sides":
        return Sides(self.height, self.width)

    @property
    def elements(self) -> int:
        return self.outer * self.height * self.width * self.inner


def check_pair(values: Sequence[int], op: str, name: str, low: int, high: int = _INT_MAX) -> None:
    if len(values) != 2 or not all(low <= value <= high for value in values):
        raise RuntimeError(f"{op}: {name} must be two integers in [{low}, {high}], got {list(values)}")


class Window(NamedTuple):
    """How windows lie along an axis, a constant, so that no division by it is left in a kernel.

    ``kernel`` elements, ``dilation`` apart, the first window's ``padding`` before the input, the next one's
    ``stride`` further.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int


class Tiling(NamedTuple):
    """How a kernel's tiles lie, a constant.

    ``one_channel``: neighbours in memory are columns, otherwise channels; ``align``: what divides the number
    of columns, or of channels; ``wide``: offsets take 64 bits; ``rows`` and ``columns``: a tile's.
    """

    one_channel: bool
    align: int
    wide: bool
    rows: int
    columns: int


class Sides(NamedTuple):
    """``height`` and ``width`` of an image."""

    height: int
    width: int


@dataclass(frozen=True)
class Axis:
    """A sliding window along an axis."""

    size: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    most: int = 0  # what else is computed of positions

    @property
    def reach(self) -> int:
        """No position along the axis, nor a step to one, is larger."""
        return max(self.size + 2 * self.padding + self.stride, self.kernel * self.dilation, self.most)

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride, self.padding, self.dilation)


def windows(
    op: str,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Axis, Axis]:
    """The geometry of both axes, height first, after checks."""
    check_pair(input_size, op, "input_size", 1, 2**60)
    check_pair(kernel, op, "kernel", 1)
    check_pair(stride, op, "stride", 1)
    check_pair(padding, op, "padding", 0)
    check_pair(dilation, op, "dilation", 1)
    if kernel[0] * kernel[1] > _INT_MAX:
        raise RuntimeError(f"{op}: kernel must have less than 2^31 positions, got {list(kernel)}")
    axes = []
    for size, k, s, p, d in zip(input_size, kernel, stride, padding, dilation, strict=True):
        if p > k // 2:
            raise RuntimeError(f"{op}: padding must be at most half of kernel {k}, got {p}")
        room = size + 2 * p - d * (k - 1) - 1
        out = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (out - 1) * s >= size + p:
            out -= 1
        if out < 1:
            raise RuntimeError(f"{op}: no window of kernel {k} and dilation {d} fits into size {size}")
        axes.append(Axis(size, out, k, s, p, d))
    return axes[0], axes[1]


def check_size(image: Image, height: int, width: int, op: str, name: str) -> None:
    if (image.height, image.width) != (height, width):
        raise RuntimeError(
            f"{op}: {name} must have height and width {(height, width)}, got shape {image.shape}"
        )


def tiles(
    image: Image, axes: tuple[Axis, Axis], itemsize: int
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Number of programs that make ``image``, and the sizes and constants its kernel gets.

    ``axes``: those of the pooling, of which ``image`` is the input or the output.
    """
    columns = image.width * image.inner
    block_c = min(next_power_of_2(columns), _TILE)
    block_r = max(1, min(_TILE // block_c, 64))
    rows = image.outer * image.height
    programs = cdiv(rows, block_r) * cdiv(columns, block_c)
    one_channel = image.inner == 1
    align = vector_alignment(image.width if one_channel else image.inner, itemsize)
    sides = [max(axis.size, axis.out) for axis in axes]
    elements = image.outer * image.inner * sides[0] * sides[1]
    wide = max(elements, *(axis.reach for axis in axes)) >= NARROW_ELEMENTS
    aligned = (image.width // align, 1) if one_channel else (image.width, image.inner // align)
    tiling = Tiling(one_channel, align, wide, block_r, block_c)
    return programs, (rows, image.height, *aligned), {"TILING": tiling, "num_warps": 4}


@triton.jit
def locate(rows, height, aligned_width, aligned_inner, TILING: tl.constexpr):
    """Of a tile's elements: image and row [R, 1], column and channel [1, C], offset and existence [R, C]."""
    BLOCK_R: tl.constexpr = TILING.rows
    BLOCK_C: tl.constexpr = TILING.columns
    pid = tl.program_id(0).to(tl.int64 if TILING.wide else tl.int32)
    inner = inner_of(aligned_inner, TILING)
    columns = aligned_width * TILING.align if TILING.one_channel else aligned_width * inner
    column_tiles = tl.cdiv(columns, BLOCK_C)
    row_tile = pid // column_tiles
    row = (row_tile * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    lane = (pid - row_tile * column_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    image = row // height
    if TILING.one_channel:
        column = lane
        channel = tl.zeros_like(lane)
    else:
        column = lane // inner
        channel = lane - column * inner
    return image, row - image * height, column, channel, row * columns + lane, (row < rows) & (lane < columns)


@triton.jit
def inner_of(aligned_inner, TILING: tl.constexpr):
    """Channels that alternate in memory."""
    if TILING.one_channel:
        return 1
    else:
        return aligned_inner * TILING.align


@triton.jit
def first_tap(start, dilation):
    """The first tap that is not before the image."""
    return tl.where(start >= 0, 0, (-start + dilation - 1) // dilation)


@triton.jit
def first_window(element, stride, reach):
    """The first window that spans an element; ``reach`` is (kernel - 1) * dilation - padding."""
    start = element - reach
    return tl.where(start <= 0, 0, (start + stride - 1) // stride)
