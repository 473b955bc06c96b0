"""conv2d's output and its data gradient: one implicit matrix product over taps and channels.

A program makes a tile of pixels x channels. The sum over taps and channels is one loop, so that loads run
ahead across taps. Where channels are few, taps and channels are one index (``DEPTH``), whose blocks are full.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pyops.kinds import Activation
from pyops.layouts import is_channels_last

from ..tools.activation import NO_ACTIVATION
from ..tools.launch import capability, cdiv, launch, next_power_of_2
from ..tools.product import multiply_add
from ..tools.tuning import run_fastest
from .epilogue import Operands, finish
from .geometry import Channels, Shape, Sides
from .tiles import (
    ENOUGH_TILES,
    Block,
    Formats,
    Layout,
    PixelTiles,
    axis_taps,
    conv_product,
    full_tile,
    image_strides,
    load_where_positive,
    locate_pixels,
)
from .transpose import FEW_CHANNELS, channels_innermost


class Tile(NamedTuple):
    """A tile of ``pixels`` x ``channels``, ``depth`` terms at a time
    (with Triton's ``num_warps`` and ``num_stages``)."""

    pixels: int
    channels: int
    depth: int
    num_warps: int
    num_stages: int

    @property
    def block(self) -> Block:
        return Block(self.pixels, self.channels, self.depth)


class WeightStrides(NamedTuple):
    """Distances in the weight, in elements, between neighbours.

    ``group``: groups; ``input``: channels of the source; ``output``: channels of the target; ``y`` and ``x``:
    taps.
    """

    group: Any
    input: Any
    output: Any
    y: Any
    x: Any


def _tiles(
    dtype: torch.dtype, precision: str, pixels: int, width: int, depth: int, heavy: bool, cc: tuple[int, int]
) -> list[Tile]:
    """Candidates, the best guess first. All have the same ``depth``: they add up in the same order.

    The limits are registers, of which nothing may spill, and the 99 KiB of shared memory that all GPUs since
    8.0 have. ``heavy`` tiles need more registers for what is loaded: ReLU's output, or single 16-bit
    elements.
    """
    channels = min(max(next_power_of_2(width), 16), 128)
    few = cdiv(pixels, 128) * cdiv(width, channels) < ENOUGH_TILES
    depth = min(max(next_power_of_2(depth), 16), 64)
    if dtype == torch.float64:
        return [Tile(64, min(channels, 64), 16, 4, 2)]
    if dtype == torch.float32 and precision == "ieee":  # no tensor cores
        channels = min(channels, 64)
        large, small = Tile(128, channels, 16, 8, 3), Tile(64, channels, 16, 4, 3)
        return [small, large] if few else [large, small]
    depth = min(depth, 32) if dtype == torch.float32 else depth
    small = Tile(64, min(channels, 64), depth, 4, 4)
    medium = Tile(128, min(channels, 64), depth, 8 if heavy else 4, 3)
    large = Tile(128, channels, depth, 8 if heavy or channels > 64 else 4, 3)
    found = [small, medium, large] if few else [large, medium, small]
    if not few and not heavy and channels == 128 and dtype.itemsize == 2 and cc[0] in (9, 10):
        # 144 KiB of shared memory, which data-centre GPUs have.
        found.insert(1, Tile(256, 128, depth, 8, 3))
    return list(dict.fromkeys(found))


def split_depth(channels: int, taps: int) -> tuple[bool, int]:
    """Whether taps and channels are one index, and how many terms a block has at most."""
    if channels >= FEW_CHANNELS:
        return False, channels
    return True, min(channels * taps, 32)  # addresses of single elements take registers


def correlate(
    target: torch.Tensor,
    source: torch.Tensor,
    weight: torch.Tensor,
    shape: Shape,
    *,
    gradient: bool,
    relu_output: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    saved: torch.Tensor | None = None,
    activation: Activation = NO_ACTIVATION,
) -> None:
    """Overwrite ``target`` with the output for the input ``source``, or with ``gradient`` the other way.

    ``source`` counts as 0 where ``relu_output`` is not positive. ``saved`` gets the activation's input, the
    sum of product, ``bias`` and ``residual``.
    """
    if target.numel() == 0:
        return
    axes = (shape.height, shape.width)
    phases = [axis.stride if gradient else 1 for axis in axes]
    pixels_last = not is_channels_last(source if source.shape[1] > 1 else target)
    sides = shape.sides(pixels_last)
    channels = Channels(shape.in_group, shape.out_group)
    if gradient:
        sides, channels = sides[::-1], Channels(*reversed(channels))
    # Pixels of one phase: rows and columns, at most.
    counts = Sides(*(cdiv(size, phase) for size, phase in zip(sides[1], phases, strict=True)))
    flat, terms = split_depth(channels.inputs, cdiv(shape.taps, phases[0] * phases[1]))
    if not flat:
        weight = channels_innermost(weight, wide=shape.is_wide)
    formats = Formats.of(source, target, weight)
    itemsize = source.element_size()
    align = channels.alignment(itemsize)
    product = conv_product(source.dtype)
    single = pixels_last or flat or min(align) == 1
    heavy = relu_output is not None or (itemsize == 2 and single)
    pixels = shape.images * counts.height * counts.width
    cc = capability(source.device)
    candidates = _tiles(source.dtype, product.precision, pixels, channels.outputs, terms, heavy, cc)
    operands = Operands(source, relu_output, weight, bias, residual, target, saved)

    def run(tile: Tile) -> None:
        blocks = PixelTiles.of(shape.images, counts.height * counts.width, tile.pixels)
        channel_tiles = cdiv(channels.outputs, tile.channels)
        launch(
            _correlate_kernel, shape.groups * blocks.count * phases[0] * phases[1] * channel_tiles,
            source.device, operands, shape.images, shape.groups, *channels.over(align), counts, *sides,
            shape.height.phase_steps, shape.width.phase_steps, blocks.count, channel_tiles,
            ALIGN=align, FORMATS=formats,
            KERNEL=Sides(*(axis.kernel for axis in axes)), GRADIENT=gradient,
            ONE_PHASE=phases == [1, 1], POINTWISE=shape.is_pointwise, DEPTH=channels.inputs if flat else 0,
            LAYOUT=Layout.of(blocks, pixels_last, shape.is_wide), ACTIVATION=activation, PRODUCT=product,
            BLOCK=tile.block, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = (
        "correlate", source.dtype, product.precision, gradient, shape.key, pixels_last, activation.kind,
        relu_output is None,
    )  # fmt: skip
    run_fastest(key, candidates, run, source.device)


@triton.jit
def weight_strides_of(
    inputs, outputs, GRADIENT: tl.constexpr, KERNEL: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr
):
    """WeightStrides for so many channels in a group, of the source and of the target."""
    if GRADIENT:
        strides = image_strides(outputs, KERNEL, LAST, WIDE)
        return WeightStrides(strides.n * inputs, strides.n, strides.c, strides.y, strides.x)
    else:
        strides = image_strides(inputs, KERNEL, LAST, WIDE)
        return WeightStrides(strides.n * outputs, strides.c, strides.n, strides.y, strides.x)


@triton.jit(do_not_specialize=["images", "aligned_inputs", "aligned_outputs", "pixel_tiles", "channel_tiles"])
def _correlate_kernel(
    operands, images, groups, aligned_inputs, aligned_outputs, counts, source, target, down, across,
    pixel_tiles, channel_tiles,
    ALIGN: tl.constexpr, FORMATS: tl.constexpr, KERNEL: tl.constexpr, GRADIENT: tl.constexpr,
    ONE_PHASE: tl.constexpr, POINTWISE: tl.constexpr, DEPTH: tl.constexpr, LAYOUT: tl.constexpr,
    ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of the target.

    ``aligned_inputs`` and ``aligned_outputs``: channels of a group of source and target, divided by
    ``ALIGN``. ``counts``, ``source``, ``target``: sides of one phase of the target, of the source and of the
    target. ``down`` and ``across``: PhaseSteps of the axes. ``FORMATS``: of source, target and weight.
    ``KERNEL``: the sides of the weight. ``ONE_PHASE``: the target has but one, as without ``GRADIENT``.
    ``POINTWISE``: pixel i of the target is made of pixel i of the source. ``DEPTH``: the source's channels
    where taps and channels are one index, otherwise 0.
    """
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    inputs, outputs = aligned_inputs * ALIGN.inputs, aligned_outputs * ALIGN.outputs
    source_strides = image_strides(groups * inputs, source, FORMATS.source, LAYOUT.wide)
    target_strides = image_strides(groups * outputs, target, FORMATS.target, LAYOUT.wide)
    weight_strides = weight_strides_of(inputs, outputs, GRADIENT, KERNEL, FORMATS.weight, LAYOUT.wide)
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = channel < outputs
    phase_y = tl.zeros([], index)
    phase_x = tl.zeros([], index)
    if not ONE_PHASE:
        phase_x = rest % across.stride
        rest = rest // across.stride
        phase_y = rest % down.stride
        rest = rest // down.stride
    group = rest // pixel_tiles
    image, pixel, row, column, exists = locate_pixels(
        rest - group * pixel_tiles, images, counts.height, counts.width, LAYOUT, BLOCK.pixels
    )
    taps_y = axis_taps(phase_y, down, KERNEL.height, GRADIENT, LAYOUT.wide)
    taps_x = axis_taps(phase_x, across, KERNEL.width, GRADIENT, LAYOUT.wide)
    y = row * taps_y.source_step + taps_y.first
    x = column * taps_x.source_step + taps_x.first
    if POINTWISE:
        place = image * source_strides.n + pixel * source_strides.x
    else:
        place = image * source_strides.n + y * source_strides.y + x * source_strides.x
    source_tile = tl.expand_dims(place + group * inputs * source_strides.c, CHANNELS)
    weight_tile = tl.expand_dims(
        channel * weight_strides.output
        + group * weight_strides.group
        + taps_y.first_tap * weight_strides.y
        + taps_x.first_tap * weight_strides.x,
        PIXELS,
    )
    total = sum_terms(
        operands.source, operands.relu_output, operands.weight, source_tile, weight_tile,
        y, x, exists, channel_exists, taps_y, taps_x, inputs, source, source_strides, weight_strides,
        POINTWISE, DEPTH, LAYOUT, PRODUCT, BLOCK,
    )  # fmt: skip

    if ONE_PHASE:
        place = image * target_strides.n + pixel * target_strides.x
    else:
        out_y = row * down.stride + phase_y
        out_x = column * across.stride + phase_x
        exists = exists & (out_y < target.height) & (out_x < target.width)
        place = image * target_strides.n + out_y * target_strides.y + out_x * target_strides.x
    out_channel = group * outputs + channel
    finish(
        operands, total,
        tl.expand_dims(place, CHANNELS) + tl.expand_dims(out_channel * target_strides.c, PIXELS),
        tl.expand_dims(exists, CHANNELS) & tl.expand_dims(channel_exists, PIXELS),
        tl.expand_dims(out_channel, PIXELS), tl.expand_dims(channel_exists, PIXELS), ACTIVATION,
    )  # fmt: skip


@triton.jit
def sum_terms(
    source, relu_output, weight, source_tile, weight_tile, y, x, exists, channel_exists, taps_y, taps_x,
    inputs, sides, source_strides, weight_strides,
    POINTWISE: tl.constexpr, DEPTH: tl.constexpr, LAYOUT: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The products of a tile, added up over taps and channels.

    ``source_tile`` and ``weight_tile`` are the offsets of the first tap and channel, ``y`` and ``x`` each
    pixel's position there, ``sides`` those of the source. Where the stride is 1, taps are constants, and no
    division is left in the loop.
    """
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_D: tl.constexpr = BLOCK.depth
    acc: tl.constexpr = tl.float64 if source.dtype.element_ty == tl.float64 else tl.float32
    weight_y = taps_y.tap_step * weight_strides.y
    weight_x = taps_x.tap_step * weight_strides.x
    shift_y, shift_x = taps_y.shift, taps_x.shift
    taps = taps_y.count * taps_x.count
    lane = tl.arange(0, BLOCK_D)
    total = full_tile(BLOCK, LAYOUT, 0.0, acc)
    steps = tl.cdiv(taps * DEPTH, BLOCK_D) if DEPTH else taps * tl.cdiv(inputs, BLOCK_D)
    for step in tl.range(0, steps):
        if DEPTH:
            term = tl.full([], step * BLOCK_D, y.dtype) + lane
            tap = term // DEPTH
            element = term - tap * DEPTH
            tap_y = tap // taps_x.count
            tap_x = tap - tap_y * taps_x.count
            has_element = tap < taps
            at_y = tl.expand_dims(y, CHANNELS) + tl.expand_dims(tap_y * shift_y, PIXELS)
            at_x = tl.expand_dims(x, CHANNELS) + tl.expand_dims(tap_x * shift_x, PIXELS)
            inside = tl.expand_dims(exists, CHANNELS)
            inside = inside & (at_y >= 0) & (at_y < sides.height) & (at_x >= 0) & (at_x < sides.width)
        else:
            block = step // taps
            tap = step - block * taps
            element = block * BLOCK_D + lane
            tap_y = tap // taps_x.count
            tap_x = tap - tap_y * taps_x.count
            has_element = element < inputs
            at_y = y + tap_y * shift_y
            at_x = x + tap_x * shift_x
            inside = exists
            if not POINTWISE:
                inside = inside & (at_y >= 0) & (at_y < sides.height) & (at_x >= 0) & (at_x < sides.width)
            inside = tl.expand_dims(inside, CHANNELS)
        source_step = element * source_strides.c
        source_step += tap_y * shift_y * source_strides.y + tap_x * shift_x * source_strides.x
        weight_step = element * weight_strides.input + tap_y * weight_y + tap_x * weight_x
        a = load_where_positive(
            source, relu_output, source_tile + tl.expand_dims(source_step, PIXELS),
            inside & tl.expand_dims(has_element, PIXELS),
        )  # fmt: skip
        # The weight's elements lie along the other axis of its tile.
        b = tl.load(
            weight + weight_tile + tl.expand_dims(weight_step, CHANNELS),
            mask=tl.expand_dims(has_element, CHANNELS) & tl.expand_dims(channel_exists, PIXELS), other=0.0,
        )  # fmt: skip
        total = multiply_add(b, a, total, PRODUCT) if PIXELS == 1 else multiply_add(a, b, total, PRODUCT)
    return total
