"""Tiles of pixels x channels, and what the convolution kernels do with them.

Tensors are NCHW or channels_last alike: kernels get strides. Tiles are pixels x channels for a channels_last
tensor and channels x pixels otherwise, so that neighbouring threads read neighbouring elements; ``PIXELS``
and ``CHANNELS`` are the numbers of these axes, and a value for each pixel gets the axis of the channels.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from ..tools.launch import cdiv, next_power_of_2


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


def light_tile(pixels: int, channels: int, pixels_last: bool) -> tuple[int, int]:
    """Pixels and channels of a tile without a matrix product, long in the direction of neighbours."""
    elements = 2048  # 16 a thread
    if pixels_last:
        block_p = min(max(next_power_of_2(pixels), 32), 512)
        return block_p, min(elements // block_p, next_power_of_2(channels))
    block_c = min(next_power_of_2(channels), 128)
    return elements // block_c, block_c


@triton.jit
def locate_pixels(
    tile, images, height, width, PER_IMAGE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Of a tile's pixels: image, number in the image, row and column, and whether it exists."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    lane = tl.arange(0, BLOCK)
    # A size may be a constant: to the interpreter, and to the compiler where it is 1.
    pixels = tl.full([], height, index) * width
    if PER_IMAGE:
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


# ----------------------------------------------------------------------------------------------- taps
# Forward and data gradient are both a correlation: target j of an axis is a sum over taps t of source element
# j * source_step + first + t * shift, times the weight's element first_tap + t * tap_step. In the data
# gradient the target has as many phases as the stride (every stride-th element), each with taps of its own:
# no multiplication by the zeros that would lie between strided elements is ever made.


@triton.jit
def axis_taps(
    phase, stride, padding, dilation, common, inverse,
    KERNEL: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``taps, first_tap, tap_step, source_step, first, shift`` of an axis, or of one phase of it."""
    zero = tl.full([], 0, tl.int64 if WIDE else tl.int32)
    if GRADIENT:
        # The taps k for which stride divides phase + padding - k * dilation.
        distance = phase + padding
        step = (zero + stride) // common
        first_tap = distance // common * inverse % step
        taps = tl.where(distance % common == 0, (KERNEL - first_tap + step - 1) // step, 0)
        first = (distance - first_tap * dilation) // stride  # exact where there are taps
        return taps, first_tap, step, zero + 1, first, zero - dilation // common
    else:
        return zero + KERNEL, zero, zero + 1, zero + stride, zero - padding, zero + dilation


# ----------------------------------------------------------------------------------------- arithmetic


@triton.jit
def load_gated(source, gate, offset, mask):
    """Elements of a gradient, 0 where the mask or ReLU, whose output is ``gate``, is closed."""
    x = tl.load(source + offset, mask=mask, other=0.0)
    if gate is not None:
        y = tl.load(gate + offset, mask=mask, other=0.0)
        acc: tl.constexpr = tl.float64 if y.dtype == tl.float64 else tl.float32
        x = tl.where(y.to(acc) <= 0.0, 0.0, x)  # passes where y is NaN, as in torch
    return x


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + a @ b."""
    if WIDEN:  # exact; the interpreter would multiply the bits of bfloat16 as integers
        a, b = a.to(total.dtype), b.to(total.dtype)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
