"""Maxima of a convolution's output (conv2d_max_pool2d.py), in one pass with it or in a second one.

Tiles are pooled pixels x channels, laid out as in tiles.py. Values are compared in the order of
csrc/math/pooling.h.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyops.kinds import Activation
from pyops.layouts import is_channels_last

from ..tools.activation import RELU, activate
from ..tools.launch import capability, cdiv, launch, next_power_of_2, vector_alignment
from ..tools.math import INFINITY
from ..tools.tuning import run_fastest
from .correlate import Tile, split_depth, sum_terms, weight_strides_of
from .geometry import Channels, Shape, Sides
from .pool_windows import NO_GRADIENT, Pool
from .tiles import (
    Formats,
    Layout,
    PixelTiles,
    axis_taps,
    conv_product,
    full_tile,
    image_strides,
    light_block,
    locate_pixels,
)
from .transpose import channels_innermost, staged


class FusedTensors(NamedTuple):
    """Tensors of the convolution that is pooled at once.

    ``input``, ``weight`` and ``bias``, unless None: the op's inputs; ``output``: maxima; ``argmax``: their
    positions in their windows, unless None.
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor
    argmax: torch.Tensor | None


class PoolTensors(NamedTuple):
    """Tensors of the second pass.

    ``sums``: the convolution's output, not yet activated; ``output``: maxima; ``argmax``: their positions in
    their windows, unless None; ``saved``: the sums at the maxima, unless None.
    """

    sums: torch.Tensor
    output: torch.Tensor
    argmax: torch.Tensor | None
    saved: torch.Tensor | None


def _fused_tiles(
    dtype: torch.dtype, precision: str, width: int, depth: int, cc: tuple[int, int]
) -> list[Tile]:
    """Candidates, the best guess first; a tile has its sums, maxima and positions in registers."""
    channels = min(max(next_power_of_2(width), 16), 64)
    if dtype == torch.float64:
        return [Tile(64, min(channels, 32), 16, 4, 2)]
    if dtype == torch.float32 and precision == "ieee":
        return [Tile(64, channels, 16, 4, 3)]
    # On 8.x, whose operands are in registers, more of them would spill.
    most = 64 if dtype.itemsize == 2 and cc[0] > 8 else 32
    depth = min(max(next_power_of_2(depth), 16), most)
    return [Tile(128, channels, depth, 8, 3), Tile(64, channels, depth, 4, 3)]


def correlate_and_pool(
    output: torch.Tensor,
    argmax: torch.Tensor | None,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Shape,
    pool: Pool,
    activation: Activation,
) -> None:
    """Overwrite ``output`` and ``argmax`` with the maxima of windows of convolved tiles."""
    if output.numel() == 0:
        return
    channels = Channels(shape.in_group, shape.out_group)
    align = channels.alignment(input.element_size())
    flat, terms = split_depth(channels.inputs, shape.taps)
    if not flat:
        weight = channels_innermost(weight, wide=shape.is_wide)
    input = staged(input, shape)
    product = conv_product(input.dtype)
    formats = Formats.of(input, output, weight)
    pixels_last = not (formats.source if shape.in_channels > 1 else formats.target)
    wide = shape.is_wide or pool.is_wide(shape.images, shape.out_channels)

    def run(tile: Tile) -> None:
        blocks = PixelTiles.of(shape.images, pool.height.out * pool.width.out, tile.pixels)
        channel_tiles = cdiv(channels.outputs, tile.channels)
        launch(
            _correlate_and_pool_kernel, shape.groups * blocks.count * channel_tiles, input.device,
            FusedTensors(input, weight, bias, output, argmax), shape.images, shape.groups,
            *channels.over(align),
            Sides(*output.shape[2:]), Sides(*shape.output[2:]), Sides(*input.shape[2:]),
            shape.height.steps, shape.width.steps, *pool.windows, blocks.count, channel_tiles,
            ALIGN=align, FORMATS=formats, KERNEL=Sides(shape.height.kernel, shape.width.kernel),
            DEPTH=channels.inputs if flat else 0,
            LAYOUT=Layout.of(blocks, pixels_last, wide), ACTIVATION=activation, PRODUCT=product,
            BLOCK=tile.block, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = (
        "pool", input.dtype, product.precision, shape.key, pool, pixels_last, activation.kind, argmax is None
    )  # fmt: skip
    candidates = _fused_tiles(
        input.dtype, product.precision, channels.outputs, terms, capability(input.device)
    )
    run_fastest(key, candidates, run, input.device)


def pool_sums(
    output: torch.Tensor,
    argmax: torch.Tensor | None,
    saved: torch.Tensor | None,
    sums: torch.Tensor,
    pool: Pool,
    activation: Activation,
) -> None:
    """Overwrite ``output``, ``argmax`` and ``saved`` with the maxima of the activation of ``sums``."""
    if output.numel() == 0:
        return
    images, channels = output.shape[:2]
    pixels_last = not is_channels_last(output)
    align = vector_alignment(channels, output.element_size())
    pixels = pool.height.out * pool.width.out
    block = light_block(pixels, channels, pixels_last)
    blocks = PixelTiles.of(images, pixels, block.pixels)
    channel_tiles = cdiv(channels, block.channels)
    launch(
        _pool_kernel, blocks.count * channel_tiles, output.device,
        PoolTensors(sums, output, argmax, saved), images, channels // align,
        Sides(*output.shape[2:]), Sides(*sums.shape[2:]), *pool.windows, channel_tiles,
        ALIGN=align, LAYOUT=Layout.of(blocks, pixels_last, pool.is_wide(images, channels)),
        ACTIVATION=activation, BLOCK=block, num_warps=4,
    )  # fmt: skip


@triton.jit
def _is_larger(value, valid, maximum, position):
    """Whether to take a value: the first, a larger one or NaN."""
    return valid & ((value > maximum) | (value != value) | (position == NO_GRADIENT))


@triton.jit
def _store_maximum(tensors, offset, mask, maximum, position, ACTIVATION: tl.constexpr):
    """Writes output and argmax, which says where ReLU lets no gradient through."""
    tl.store(tensors.output + offset, maximum.to(tensors.output.dtype.element_ty), mask=mask)
    if tensors.argmax is not None:
        if ACTIVATION.kind == RELU:
            position = tl.where(maximum <= 0.0, NO_GRADIENT, position)
        tl.store(tensors.argmax + offset, position.to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=["images", "aligned_inputs", "aligned_outputs", "pixel_tiles", "channel_tiles"])
def _correlate_and_pool_kernel(
    tensors, images, groups, aligned_inputs, aligned_outputs, pooled, conv, source, down, across,
    rows, columns, pixel_tiles, channel_tiles,
    ALIGN: tl.constexpr, FORMATS: tl.constexpr, KERNEL: tl.constexpr, DEPTH: tl.constexpr,
    LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of maxima: the convolution's tile is made once for each element of a window.

    ``aligned_inputs`` and ``aligned_outputs``: channels of a group, divided by ``ALIGN``. ``pooled``,
    ``conv``, ``source``: sides of the output, of the convolution's output and of the input. ``down`` and
    ``across``: the convolution's Steps. ``rows`` and ``columns``: the pooling's Windows. ``FORMATS``: of
    input, output and weight. ``KERNEL``: the sides of the weight. ``DEPTH``: the input's channels where taps
    and channels are one index, otherwise 0.
    """
    inputs, outputs = aligned_inputs * ALIGN.inputs, aligned_outputs * ALIGN.outputs
    input_strides = image_strides(groups * inputs, source, FORMATS.source, LAYOUT.wide)
    weight_strides = weight_strides_of(inputs, outputs, False, KERNEL, FORMATS.weight, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    acc: tl.constexpr = tl.float64 if tensors.input.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = channel < outputs
    group = rest // pixel_tiles
    image, pixel, row, column, exists = locate_pixels(
        rest - group * pixel_tiles, images, pooled.height, pooled.width, LAYOUT, BLOCK.pixels
    )
    out_channel = tl.expand_dims(group * outputs + channel, PIXELS)
    channel_mask = tl.expand_dims(channel_exists, PIXELS)
    taps_y = axis_taps(0, down, KERNEL.height, False, LAYOUT.wide)
    taps_x = axis_taps(0, across, KERNEL.width, False, LAYOUT.wide)
    weight_tile = tl.expand_dims(channel * weight_strides.output + group * weight_strides.group, PIXELS)
    maximum = full_tile(BLOCK, LAYOUT, -INFINITY, acc)
    position = full_tile(BLOCK, LAYOUT, NO_GRADIENT, tl.int32)
    for which in tl.range(0, rows.size * columns.size):
        tap_y = which // columns.size
        conv_y = row * rows.stride - rows.padding + tap_y * rows.dilation
        conv_x = column * columns.stride - columns.padding + (which - tap_y * columns.size) * columns.dilation
        valid = exists & (conv_y >= 0) & (conv_y < conv.height) & (conv_x >= 0) & (conv_x < conv.width)
        y = conv_y * taps_y.source_step + taps_y.first
        x = conv_x * taps_x.source_step + taps_x.first
        place = image * input_strides.n + y * input_strides.y + x * input_strides.x
        place += group * inputs * input_strides.c
        total = sum_terms(
            tensors.input, None, tensors.weight, tl.expand_dims(place, CHANNELS), weight_tile,
            y, x, valid, channel_exists, taps_y, taps_x, inputs, source, input_strides, weight_strides,
            False, DEPTH, LAYOUT, PRODUCT, BLOCK,
        )  # fmt: skip
        if tensors.bias is not None:
            total += tl.load(tensors.bias + out_channel, mask=channel_mask, other=0.0).to(acc)
        total = activate(total, ACTIVATION, tensors.output.dtype.element_ty)
        larger = _is_larger(total, tl.expand_dims(valid, CHANNELS), maximum, position)
        maximum = tl.where(larger, total, maximum)
        position = tl.where(larger, which, position)
    output_strides = image_strides(groups * outputs, pooled, FORMATS.target, LAYOUT.wide)
    place = image * output_strides.n + pixel * output_strides.x
    _store_maximum(
        tensors, tl.expand_dims(place, CHANNELS) + out_channel * output_strides.c,
        tl.expand_dims(exists, CHANNELS) & channel_mask, maximum, position, ACTIVATION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["images", "aligned_channels", "channel_tiles"])
def _pool_kernel(
    tensors, images, aligned_channels, pooled, conv, rows, columns, channel_tiles,
    ALIGN: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of maxima of activated ``sums``.

    ``aligned_channels``: divided by ``ALIGN``. ``pooled`` and ``conv``: sides of the output and of the sums.
    ``rows`` and ``columns``: the Windows.
    """
    channels = aligned_channels * ALIGN
    sums_strides = image_strides(channels, conv, LAYOUT.pixels == 0, LAYOUT.wide)
    output_strides = image_strides(channels, pooled, LAYOUT.pixels == 0, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    acc: tl.constexpr = tl.float64 if tensors.sums.dtype.element_ty == tl.float64 else tl.float32
    pid = tl.program_id(0).to(tl.int64 if LAYOUT.wide else tl.int32)
    tile = pid // channel_tiles
    channel = tl.expand_dims((pid - tile * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C), PIXELS)
    image, pixel, row, column, exists = locate_pixels(
        tile, images, pooled.height, pooled.width, LAYOUT, BLOCK.pixels
    )
    maximum = full_tile(BLOCK, LAYOUT, -INFINITY, acc)
    before = maximum  # the activation's input at the maximum
    position = full_tile(BLOCK, LAYOUT, NO_GRADIENT, tl.int32)
    for which in tl.range(0, rows.size * columns.size):
        tap_y = which // columns.size
        conv_y = row * rows.stride - rows.padding + tap_y * rows.dilation
        conv_x = column * columns.stride - columns.padding + (which - tap_y * columns.size) * columns.dilation
        valid = exists & (conv_y >= 0) & (conv_y < conv.height) & (conv_x >= 0) & (conv_x < conv.width)
        valid = tl.expand_dims(valid, CHANNELS) & (channel < channels)
        place = image * sums_strides.n + conv_y * sums_strides.y + conv_x * sums_strides.x
        place = tensors.sums + tl.expand_dims(place, CHANNELS) + channel * sums_strides.c
        value = tl.load(place, mask=valid, other=0.0).to(acc)
        activated = activate(value, ACTIVATION, tensors.sums.dtype.element_ty)
        larger = _is_larger(activated, valid, maximum, position)
        maximum = tl.where(larger, activated, maximum)
        position = tl.where(larger, which, position)
        if tensors.saved is not None:
            before = tl.where(larger, value, before)
    offset = tl.expand_dims(image * output_strides.n + pixel * output_strides.x, CHANNELS)
    offset += channel * output_strides.c
    mask = tl.expand_dims(exists, CHANNELS) & (channel < channels)
    _store_maximum(tensors, offset, mask, maximum, position, ACTIVATION)
    if tensors.saved is not None:
        tl.store(tensors.saved + offset, before.to(tensors.saved.dtype.element_ty), mask=mask)
