"""What the pooling kernels share: checks, geometry and tiles; formulas as in csrc/math/pooling.h.

A contiguous tensor is pooled as [outer, height, width, inner]: inner is 1 in NCHW order and the number of
channels in channels_last order. A program makes a tile of BLOCK_R rows, each of BLOCK_C neighbouring
elements of width * inner, so that warps access whole cache lines in either order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ..tools.checks import check_dense
from ..tools.launch import cdiv, next_power_of_2

_INT_MAX = 2**31 - 1
_TILE = 1024


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
    def elements(self) -> int:
        return self.outer * self.height * self.width * self.inner


def check_pair(values: Sequence[int], op: str, name: str, low: int, high: int = _INT_MAX) -> None:
    if len(values) != 2 or not all(low <= value <= high for value in values):
        raise RuntimeError(f"{op}: {name} must be two integers in [{low}, {high}], got {list(values)}")


@dataclass(frozen=True)
class Axis:
    """A sliding window along an axis: ``args`` are what a kernel gets of it."""

    size: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def args(self) -> tuple[int, ...]:
        return (self.size, self.out, self.kernel, self.stride, self.padding, self.dilation)


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


def tiles(image: Image) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Number of programs that make ``image``, and the sizes and constants its kernel gets."""
    columns = image.width * image.inner
    block_c = min(next_power_of_2(columns), _TILE)
    block_r = max(1, min(_TILE // block_c, 64))
    rows = image.outer * image.height
    programs = cdiv(rows, block_r) * cdiv(columns, block_c)
    meta = {"ONE_CHANNEL": image.inner == 1, "BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": 4}
    return programs, (rows, image.height, columns, image.inner), meta


@triton.jit
def locate(
    rows, height, columns, inner, ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Of a tile's elements: image and row [R, 1], column and channel [1, C], offset and existence [R, C]."""
    pid = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(columns, BLOCK_C)
    row_tile = pid // column_tiles
    row = (row_tile * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    lane = (pid - row_tile * column_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    image = row // height
    if ONE_CHANNEL:
        column = lane
        channel = tl.zeros_like(lane)
    else:
        column = lane // inner
        channel = lane - column * inner
    return image, row - image * height, column, channel, row * columns + lane, (row < rows) & (lane < columns)


@triton.jit
def first_tap(start, dilation):
    """The first tap that is not before the image."""
    return tl.where(start >= 0, 0, (-start + dilation - 1) // dilation)


@triton.jit
def first_window(element, stride, reach):
    """The first window that spans an element; ``reach`` is (kernel - 1) * dilation - padding."""
    start = element - reach
    return tl.where(start <= 0, 0, (start + stride - 1) // stride)
