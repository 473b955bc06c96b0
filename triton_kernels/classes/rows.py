"""Tiles over rows of classes.

A tensor [outer, classes, inner] holds outer * inner rows; element c of row (n, l) is at
(n * classes + c) * inner + l. One program takes ``block_rows`` rows and walks over their classes in
steps of ``block_classes``. With inner == 1 the classes of a row are neighbours in memory, otherwise the
rows are: the tile is wide in that direction, so that warps read whole cache lines either way.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import triton
import triton.language as tl

from ..tools.launch import cdiv, next_power_of_2


@dataclass(frozen=True)
class RowTiles:
    """How a program's share of the rows of [outer, classes, inner] looks; the same for every batch size.

    ``classes`` and ``inner`` are what the kernel gets: the one that is contiguous in memory is divided
    by ``align``, a power of two, and multiplied again in the kernel. Triton by itself would notice
    only multiples of 16, and read the rows of a [N, 1000] tensor element by element.
    """

    row_major: bool
    block_rows: int
    block_classes: int
    class_blocks: int
    num_warps: int
    classes: int
    inner: int
    align: int

    def programs(self, outer: int) -> int:
        if self.row_major:
            return cdiv(outer, self.block_rows)
        return outer * cdiv(self.inner * self.align, self.block_rows)

    @property
    def meta(self) -> dict[str, Any]:
        """Constants of a kernel that works on these tiles."""
        return {
            "ROW_MAJOR": self.row_major,
            "ALIGN": self.align,
            "STAGES": 1 if self.class_blocks <= 1 else 2,
            "BLOCK_R": self.block_rows,
            "BLOCK_C": self.block_classes,
            "num_warps": self.num_warps,
        }


@cache
def row_tiles(classes: int, inner: int, max_classes: int, tile_size: int = 2048) -> RowTiles:
    """Choose tiles of some ``tile_size`` elements, more for long rows; at most ``max_classes`` classes."""
    row_major = inner == 1
    block_classes = min(next_power_of_2(classes), max_classes)
    if row_major:
        block_rows = max(1, min(tile_size // block_classes, 128))
    else:
        block_rows = min(next_power_of_2(inner), 64)
        if block_rows * block_classes > 2 * tile_size:
            block_classes = tile_size // block_rows
    contiguous = classes if row_major else inner
    align = min(contiguous & -contiguous, 16) or 1
    return RowTiles(
        row_major=row_major,
        block_rows=block_rows,
        block_classes=block_classes,
        class_blocks=cdiv(classes, block_classes),
        # 16 elements a thread: two 16-byte loads of a 16-bit type.
        num_warps=min(16, max(4, next_power_of_2(block_rows * block_classes // 512))),
        classes=classes // align if row_major else classes,
        inner=inner if row_major else inner // align,
        align=align,
    )


@triton.jit
def locate_rows(tile, outer, classes, inner, ROW_MAJOR: tl.constexpr, BLOCK_R: tl.constexpr):
    """Index of each row of a tile, offset of its first element, and whether the row exists."""
    tile = tile.to(tl.int64)
    lane = tl.arange(0, BLOCK_R)
    if ROW_MAJOR:
        row = tile * BLOCK_R + lane
        start = row * classes
        exists = row < outer
    else:
        tiles_per_n = tl.cdiv(inner, BLOCK_R)
        n = tile // tiles_per_n
        column = (tile - n * tiles_per_n) * BLOCK_R + lane
        row = n * inner + column
        start = n * classes * inner + column
        exists = (column < inner) & (n < outer)
    return row, start, exists


@triton.jit
def locate_classes(first, classes, inner, ROW_MAJOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """Index of each class from ``first`` on, its offset within a row, and whether the class exists."""
    lane = tl.arange(0, BLOCK_C)
    c = first + lane
    offset = c if ROW_MAJOR else c.to(tl.int64) * inner
    return c, offset, c < classes
