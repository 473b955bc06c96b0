"""Where the gradients of a pooled convolution's maxima belong.

Tiles are pixels of the convolution x channels, laid out as in tiles.py. Windows are visited in the order of
csrc/math/pooling.h.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyops.kinds import Activation
from pyops.layouts import is_channels_last

from ..pooling.windows import first_window
from ..tools.activation import IDENTITY, RELU, derive_from_input, derive_from_output
from ..tools.launch import cdiv, launch, vector_alignment
from .geometry import Sides
from .parts import Parts, Sums
from .pool_windows import NO_GRADIENT, Pool
from .tiles import (
    MANY_TILES,
    Layout,
    PixelTiles,
    full_tile,
    image_strides,
    light_block,
    locate_pixels,
)


class PoolGradientTensors(NamedTuple):
    """Tensors of the gradient.

    ``grad``: of the maxima; ``argmax``: their positions in their windows; ``saved``: output or input of the
    activation at the maxima, unless it needs none; ``grad_conv``: the convolution's gradient; ``bias_sums``:
    its parts' sums, unless None.
    """

    grad: torch.Tensor
    argmax: torch.Tensor
    saved: torch.Tensor | None
    grad_conv: torch.Tensor
    bias_sums: torch.Tensor | None


def pool_gradient(
    grad_conv: torch.Tensor,
    grad_bias: torch.Tensor | None,
    grad: torch.Tensor,
    argmax: torch.Tensor,
    saved: torch.Tensor | None,
    pool: Pool,
    activation: Activation,
    saved_is_output: bool,
) -> None:
    """Overwrite ``grad_conv`` with what its elements get from windows, and ``grad_bias`` with its sums."""
    images, channels, height, width = grad_conv.shape
    pixels_last = not is_channels_last(grad_conv)
    align = vector_alignment(channels, grad.element_size())
    block = light_block(height * width, channels, pixels_last)
    blocks = PixelTiles.of(images, height * width, block.pixels)
    channel_tiles = cdiv(channels, block.channels)
    parts = Parts.of(blocks, channel_tiles, MANY_TILES)
    if grad_bias is None:  # nothing to add up over blocks
        parts = Parts(blocks, blocks.count, 1)
    sums = Sums(grad_bias, parts.count)
    # Windows that span an element, at most.
    axes = (pool.height, pool.width)
    spans = Sides(*((axis.kernel - 1) * axis.dilation // axis.stride + 1 for axis in axes))
    if parts.count * channel_tiles > 0:
        launch(
            _pool_gradient_kernel, parts.count * channel_tiles, grad.device,
            PoolGradientTensors(grad, argmax, saved, grad_conv, sums.target), images, channels // align,
            Sides(height, width), Sides(*grad.shape[2:]), *pool.windows, spans,
            blocks.count, parts.steps, channel_tiles,
            ALIGN=align, LAYOUT=Layout.of(blocks, pixels_last, pool.is_wide(images, channels)),
            ACTIVATION=activation, FROM_OUTPUT=saved_is_output, BLOCK=block, num_warps=4,
        )  # fmt: skip
    sums.finish()


@triton.jit(do_not_specialize=["images", "aligned_channels", "blocks", "steps", "channel_tiles"])
def _pool_gradient_kernel(
    tensors, images, aligned_channels, conv, pooled, rows, columns, spans, blocks, steps, channel_tiles,
    ALIGN: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one part's ``steps`` of the ``blocks`` of pixels: the convolution's gradient, and the bias's sums.

    ``aligned_channels``: divided by ``ALIGN``. ``conv`` and ``pooled``: sides of the convolution's output and
    of the maxima. ``rows`` and ``columns``: the Windows. ``spans``: how many of them hold an element, at
    most. ``FROM_OUTPUT``: ``saved`` is the activation's output.
    """
    channels = aligned_channels * ALIGN
    conv_strides = image_strides(channels, conv, LAYOUT.pixels == 0, LAYOUT.wide)
    pooled_strides = image_strides(channels, pooled, LAYOUT.pixels == 0, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    acc: tl.constexpr = tl.float64 if tensors.grad.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    pid = tl.program_id(0).to(index)
    part = pid // channel_tiles
    lanes = (pid - part * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.expand_dims(lanes, PIXELS)
    bias = full_tile(BLOCK, LAYOUT, 0.0, acc)
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, row, column, exists = locate_pixels(
            tl.full([], step, index), images, conv.height, conv.width, LAYOUT, BLOCK.pixels
        )
        top = first_window(row, rows.stride, (rows.size - 1) * rows.dilation - rows.padding)
        left = first_window(column, columns.stride, (columns.size - 1) * columns.dilation - columns.padding)
        total = full_tile(BLOCK, LAYOUT, 0.0, acc)
        for span in tl.range(0, spans.height * spans.width):
            down = span // spans.width
            y = top + down
            x = left + (span - down * spans.width)
            distance_y = row + rows.padding - y * rows.stride
            distance_x = column + columns.padding - x * columns.stride
            tap_y = distance_y // rows.dilation
            tap_x = distance_x // columns.dilation
            holds = exists & (y < pooled.height) & (distance_y >= 0) & (tap_y * rows.dilation == distance_y)
            holds &= (x < pooled.width) & (distance_x >= 0) & (tap_x * columns.dilation == distance_x)
            place = image * pooled_strides.n + y * pooled_strides.y + x * pooled_strides.x
            place = tl.expand_dims(place, CHANNELS) + channel * pooled_strides.c
            mask = tl.expand_dims(holds, CHANNELS) & (channel < channels)
            position = tl.load(tensors.argmax + place, mask=mask, other=NO_GRADIENT)
            mask &= position == tl.expand_dims(tap_y * columns.size + tap_x, CHANNELS)
            g = tl.load(tensors.grad + place, mask=mask, other=0.0).to(acc)
            if ACTIVATION.kind != IDENTITY and ACTIVATION.kind != RELU:
                at = tl.load(tensors.saved + place, mask=mask, other=0.0).to(acc)
                if FROM_OUTPUT:
                    g = derive_from_output(at, g, ACTIVATION)
                else:
                    g = derive_from_input(at, g, ACTIVATION, tensors.grad.dtype.element_ty)
                g = tl.where(mask, g, 0.0)
            total += g
        mask = tl.expand_dims(exists, CHANNELS) & (channel < channels)
        place = tl.expand_dims(image * conv_strides.n + pixel * conv_strides.x, CHANNELS)
        place += channel * conv_strides.c
        tl.store(tensors.grad_conv + place, total.to(tensors.grad_conv.dtype.element_ty), mask=mask)
        if tensors.bias_sums is not None:
            bias += total
    if tensors.bias_sums is not None:
        sums = tl.sum(bias, axis=PIXELS).to(tensors.bias_sums.dtype.element_ty)
        tl.store(tensors.bias_sums + part * channels + lanes, sums, mask=lanes < channels)
