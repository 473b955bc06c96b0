"""Tiles of pixels x channels, and what the convolution kernels do with them.

Tensors are NCHW or channels_last alike: kernels get strides. Tiles are pixels x channels for a channels_last
tensor and channels x pixels otherwise, so that neighbouring threads read neighbouring elements; ``PIXELS``
and ``CHANNELS`` are the numbers of these axes, and a value for each pixel gets the axis of the channels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pyops.layouts import is_channels_last
from pyops.precision import conv2d_allows_tf32

from ..tools.launch import cdiv, next_power_of_2
from ..tools.product import Product
from .geometry import Strides

# Tiles that keep a large GPU busy; a number of the problem's, so that all GPUs add up in the same order.
ENOUGH_TILES = 264
# The same for light programs, of which several share a multiprocessor.
MANY_TILES = 8 * ENOUGH_TILES


class Layout(NamedTuple):
    """How a kernel's tiles lie, a constant.

    ``per_image``: each tile's pixels are of one image; ``pixels``: the axis of pixels, 0 or 1; ``wide``:
    offsets take 64 bits.
    """

    per_image: bool
    pixels: int
    wide: bool

    @staticmethod
    def of(blocks: "PixelTiles", pixels_last: bool, wide: bool) -> "Layout":
        return Layout(blocks.per_image, 1 if pixels_last else 0, wide)


class Formats(NamedTuple):
    """Which tensors are channels_last, a constant: ``source``, ``target`` and ``weight``."""

    source: bool
    target: bool
    weight: bool

    @staticmethod
    def of(*tensors: torch.Tensor) -> "Formats":
        return Formats(*map(is_channels_last, tensors))


class Block(NamedTuple):
    """The sizes of a tile, a constant: ``pixels`` and ``channels``, and ``depth``, the terms that one step of
    a matrix product adds up."""

    pixels: int
    channels: int
    depth: int = 0


def conv_product(dtype: torch.dtype) -> Product:
    """As torch's convolutions, whose switches are cuDNN's."""
    return Product.of(dtype, tf32=conv2d_allows_tf32())


class Taps(NamedTuple):
    """The taps of an axis, or of one phase of it.

    ``count``: how many; ``first_tap`` and ``tap_step``: which elements of the kernel they are;
    ``source_step`` and ``first``: target j begins at source element j * source_step + first; ``shift``: from
    one tap's source element to the next one's.
    """

    count: Any
    first_tap: Any
    tap_step: Any
    source_step: Any
    first: Any
    shift: Any


@dataclass(frozen=True)
class PixelTiles:
    """Blocks of BLOCK pixels: of one image each where that wastes little, of the whole batch otherwise.

    Within an image, a kernel's compiler sees that pixels are neighbours in memory.
    """

    count: int
    per_image: bool

    @staticmethod
    def of(images: int, pixels: int, block: int) -> "PixelTiles":
        per_image = cdiv(pixels, block)
        if per_image * block <= pixels + pixels // 8:
            return PixelTiles(images * per_image, True)
        return PixelTiles(cdiv(images * pixels, block), False)


def light_block(pixels: int, channels: int, pixels_last: bool) -> Block:
    """A tile without a matrix product, long in the direction of neighbours."""
    elements = 2048  # 16 a thread
    if pixels_last:
        block_p = min(max(next_power_of_2(pixels), 32), 512)
        return Block(block_p, min(elements // block_p, next_power_of_2(channels)))
    block_c = min(next_power_of_2(channels), 128)
    return Block(elements // block_c, block_c)


@triton.jit
def locate_pixels(tile, images, height, width, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Of a tile's ``BLOCK`` pixels: image, number in the image, row and column, and whether it exists."""
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    lane = tl.arange(0, BLOCK)
    # A size may be a constant: to the interpreter, and to the compiler where it is 1.
    pixels = tl.full([], height, index) * width
    if LAYOUT.per_image:
        tiles = tl.cdiv(pixels, BLOCK)
        image = tile // tiles
        pixel = (tile - image * tiles) * BLOCK + lane
        exists = pixel < pixels
    else:
        number = tile * BLOCK + lane
        image = number // pixels
        pixel = number - image * pixels
        exists = image < images
    row = pixel // width
    return image, pixel, row, pixel - row * width, exists


@triton.jit
def image_strides(channels, sides, LAST: tl.constexpr, WIDE: tl.constexpr):
    """Strides of a dense image, or weight, of ``channels`` and ``sides``; ``LAST``: in channels_last order.

    Made here so that the compiler sees which of them is 1, and that others are multiples of ``channels``.
    """
    width = tl.full([], sides.width, tl.int64 if WIDE else tl.int32)
    pixels = width * sides.height
    if LAST:
        return Strides(pixels * channels, 1, width * channels, channels)
    else:
        return Strides(pixels * channels, pixels, width, 1)


@triton.jit
def full_tile(BLOCK: tl.constexpr, LAYOUT: tl.constexpr, value, dtype: tl.constexpr):
    """A tile of one value."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    return tl.full([CHANNELS, PIXELS] if LAYOUT.pixels == 1 else [PIXELS, CHANNELS], value, dtype)


# Forward and data gradient are both a correlation: target j of an axis is a sum over taps t of source element
# j * source_step + first + t * shift, times the weight's element first_tap + t * tap_step. In the data
# gradient the target has as many phases as the stride (every stride-th element), each with taps of its own:
# no multiplication by the zeros that would lie between strided elements is ever made.


@triton.jit
def axis_taps(phase, steps, KERNEL: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr):
    """The taps of an axis or, in the data gradient, of one phase of it; ``steps`` are PhaseSteps."""
    zero = tl.full([], 0, tl.int64 if WIDE else tl.int32)
    if GRADIENT:
        stride, common = steps.stride, steps.common
        # The taps k for which stride divides phase + padding - k * dilation.
        distance = phase + steps.padding
        step = (zero + stride) // common
        first_tap = distance // common * steps.inverse % step
        taps = tl.where(distance % common == 0, (KERNEL - first_tap + step - 1) // step, 0)
        first = (distance - first_tap * steps.dilation) // stride  # exact where there are taps
        return Taps(taps, first_tap, step, zero + 1, first, zero - steps.dilation // common)
    else:
        return Taps(
            zero + KERNEL, zero, zero + 1, zero + steps.stride, zero - steps.padding, zero + steps.dilation
        )


@triton.jit
def load_where_positive(source, relu_output, offset, mask):
    """Elements of ``source``; 0 outside the mask, and where ``relu_output``, unless None, is not positive."""
    x = tl.load(source + offset, mask=mask, other=0.0)
    if relu_output is not None:
        y = tl.load(relu_output + offset, mask=mask, other=0.0)
        acc: tl.constexpr = tl.float64 if y.dtype == tl.float64 else tl.float32
        x = tl.where(y.to(acc) <= 0.0, 0.0, x)  # passes where y is NaN, as in torch
    return x
