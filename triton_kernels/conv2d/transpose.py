"""Images and weights in channels_last order, in which the products load 16 bytes at a time."""

import torch
import triton
import triton.language as tl

from pyops.layouts import is_channels_last

from ..tools.launch import cdiv, launch, next_power_of_2, vector_alignment
from .geometry import Shape
from .tiles import load_where_positive

# A group with fewer channels than this has taps and channels as one index, in any order.
FEW_CHANNELS = 16


def channels_innermost(
    image: torch.Tensor, relu_output: torch.Tensor | None = None, wide: bool = False
) -> torch.Tensor:
    """A channels_last copy of the dense ``image``, or weight; 0 where ``relu_output`` is not positive.

    ``image`` itself where neighbouring channels are next to each other. ``wide``: offsets take 64 bits.
    """
    images, channels, height, width = image.shape
    pixels = height * width
    if relu_output is None and (pixels == 1 or channels == 1 or is_channels_last(image)):
        return image
    packed = torch.empty_like(image, memory_format=torch.channels_last)
    block_p = min(next_power_of_2(pixels), 64)
    block_c = min(next_power_of_2(channels), 64)
    align_c, align_p = (vector_alignment(size, image.element_size()) for size in (channels, pixels))
    launch(
        _transpose_kernel, images * cdiv(channels, block_c) * cdiv(pixels, block_p), image.device,
        image, relu_output, packed, channels // align_c, pixels // align_p,
        ALIGN_C=align_c, ALIGN_P=align_p, WIDE=wide, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return packed


def staged(image: torch.Tensor, shape: Shape, relu_output: torch.Tensor | None = None) -> torch.Tensor:
    """A channels_last copy of an operand whose elements a product would load one by one; else ``image``.

    The copy is 0 where ``relu_output`` is not positive.

    That is what becomes of 16-bit elements in NCHW order: asynchronous copies take 4 bytes at least, and a
    tap moves the rows of a tile off the vectors that they begin at.
    """
    if (
        image.element_size() != 2
        or is_channels_last(image)
        or min(shape.in_group, shape.out_group) < FEW_CHANNELS
    ):
        return image
    if shape.is_pointwise and vector_alignment(shape.sides(True)[0].width, 2) == 8:
        return image
    return channels_innermost(image, relu_output, shape.is_wide)


@triton.jit(do_not_specialize=["aligned_channels", "aligned_pixels"])
def _transpose_kernel(
    source, relu_output, packed, aligned_channels, aligned_pixels,
    ALIGN_C: tl.constexpr, ALIGN_P: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Copies a tile of ``source`` [images, channels, pixels] to ``packed`` [images, pixels, channels]."""
    channels, pixels = aligned_channels * ALIGN_C, aligned_pixels * ALIGN_P
    pid = tl.program_id(0).to(tl.int64 if WIDE else tl.int32)
    pixel_tiles = tl.cdiv(pixels, BLOCK_P)
    rest = pid // pixel_tiles
    pixel = ((pid - rest * pixel_tiles) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    image = rest // channel_tiles
    channel = ((rest - image * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    first = image * channels * pixels
    exists = (channel < channels) & (pixel < pixels)
    value = load_where_positive(source, relu_output, first + channel * pixels + pixel, exists)
    tl.store(packed + first + pixel * channels + channel, value, mask=exists)
