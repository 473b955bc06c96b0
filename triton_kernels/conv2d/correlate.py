"""conv2d's output and its data gradient: one implicit matrix product over taps and channels.

A program makes a tile of pixels x channels. The sum over taps and channels is one loop, so that loads run
ahead across taps. Where channels are few, taps and channels are one index (``DEPTH``), whose blocks are full.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pyops._library import triton_is_interpreted
from pyops.layouts import is_channels_last

from ..tools.activation import activate
from ..tools.launch import capability, cdiv, launch, next_power_of_2
from ..tools.tuning import fastest
from .geometry import Shape, image_strides, precision
from .tiles import PixelTiles, axis_taps, load_gated, locate_pixels, multiply_add

# Below so many channels in a group, taps and channels are one index.
_FEW_CHANNELS = 16
# Tiles that keep a large GPU busy; a number of the problem's, so that all GPUs add up in the same order.
ENOUGH_TILES = 264


@dataclass(frozen=True)
class Tile:
    pixels: int
    channels: int
    depth: int
    num_warps: int
    num_stages: int


def _tiles(
    dtype: torch.dtype, precision: str, pixels: int, width: int, depth: int, heavy: bool, cc: tuple[int, int]
) -> list[Tile]:
    """Candidates, the best guess first. All have the same ``depth``: they add up in the same order.

    The limits are registers, of which nothing may spill, and the 99 KiB of shared memory that all GPUs since
    8.0 have. ``heavy`` tiles need more registers for what is loaded: a gate, or single 16-bit elements.
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
    """Whether taps and channels are one index, and how many terms a block need not exceed."""
    if channels >= _FEW_CHANNELS:
        return False, channels
    return True, min(channels * taps, 32)  # addresses of single elements take registers


def correlate(
    target: torch.Tensor,
    source: torch.Tensor,
    weight: torch.Tensor,
    shape: Shape,
    *,
    gradient: bool,
    gate: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    saved: torch.Tensor | None = None,
    activation: tuple[int, float, float] = (0, 0.0, 0.0),
) -> None:
    """Overwrite ``target`` with the output for the input ``source``, or with ``gradient`` the other way.

    ``source`` counts as 0 where ``gate`` is not positive. ``saved`` gets what the activation is applied to,
    the sum of product, ``bias`` and ``residual``.
    """
    if target.numel() == 0:
        return
    axes = (shape.height, shape.width)
    phases = [axis.stride if gradient else 1 for axis in axes]
    # Pixels of one phase: rows and columns, at most.
    counts = [cdiv(target.shape[2 + i], phases[i]) for i in range(2)]
    width, depth = (shape.in_group, shape.out_group) if gradient else (shape.out_group, shape.in_group)
    flat, terms = split_depth(depth, cdiv(shape.taps, phases[0] * phases[1]))
    if not flat:
        weight = channels_innermost(weight)
    filter_stride, *strides = image_strides(weight)
    channel_stride, depth_stride = (strides[0], filter_stride) if gradient else (filter_stride, strides[0])
    how = precision(source.dtype)
    kind, first, second = activation
    pixels_last = not is_channels_last(source if source.shape[1] > 1 else target)
    heavy = gate is not None or (source.dtype.itemsize == 2 and (pixels_last or flat))
    pixels = shape.images * counts[0] * counts[1]
    candidates = _tiles(source.dtype, how, pixels, width, terms, heavy, capability(source.device))

    def run(tile: Tile) -> None:
        blocks = PixelTiles.of(shape.images, counts[0] * counts[1], tile.pixels)
        channel_tiles = cdiv(width, tile.channels)
        launch(
            _correlation_kernel, shape.groups * blocks.count * phases[0] * phases[1] * channel_tiles,
            source.device, source, gate, weight, bias, residual, target, saved,
            shape.images, depth, width, *counts, *target.shape[2:], *source.shape[2:],
            *shape.height.args, *shape.width.args, *image_strides(source), *image_strides(target),
            filter_stride * shape.out_group, depth_stride, channel_stride, *strides[1:],
            blocks.count, channel_tiles,
            KERNEL_H=shape.height.kernel, KERNEL_W=shape.width.kernel, GRADIENT=gradient,
            ONE_PHASE=phases == [1, 1], POINTWISE=shape.is_pointwise,
            DEPTH=depth if flat else 0, PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0,
            WIDE=shape.is_wide, KIND=kind, FIRST=float(first), SECOND=float(second), PRECISION=how,
            WIDEN=triton_is_interpreted(), BLOCK_P=tile.pixels, BLOCK_C=tile.channels, BLOCK_D=tile.depth,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = ("correlation", source.dtype, how, gradient, shape.key, pixels_last, kind, gate is None)
    run(fastest(key, candidates, run, source.device))


def channels_innermost(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [K, C, R, S] with neighbouring channels next to each other: itself, or a copy."""
    channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
    if taps == 1 or channels == 1 or weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    packed = torch.empty_like(weight, memory_format=torch.channels_last)
    launch(
        _pack_kernel, cdiv(weight.numel(), 1024), weight.device,
        weight, packed, weight.numel(), channels, taps, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return packed


@triton.jit
def _pack_kernel(source, packed, n: tl.int64, channels, taps, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = i // channels
    filter = row // taps
    element = (filter * channels + (i - row * channels)) * taps + (row - filter * taps)
    tl.store(packed + i, tl.load(source + element, mask=i < n), mask=i < n)


@triton.jit
def _correlation_kernel(
    source, gate, weight, bias, residual, target, saved,
    images, depth, width, count_h, count_w, target_h, target_w, source_h, source_w,
    stride_h, padding_h, dilation_h, common_h, inverse_h,
    stride_w, padding_w, dilation_w, common_w, inverse_w,
    source_n, source_c, source_y, source_x, target_n, target_c, target_y, target_x,
    weight_g, weight_d, weight_c, weight_y, weight_x, pixel_tiles, channel_tiles,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, GRADIENT: tl.constexpr, ONE_PHASE: tl.constexpr,
    POINTWISE: tl.constexpr, DEPTH: tl.constexpr, PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr,
    WIDE: tl.constexpr, KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = channel < width
    phase_y = tl.zeros([], index)
    phase_x = tl.zeros([], index)
    if not ONE_PHASE:
        phase_x = rest % stride_w
        rest = rest // stride_w
        phase_y = rest % stride_h
        rest = rest // stride_h
    group = rest // pixel_tiles
    image, pixel, row, column, exists = locate_pixels(
        rest - group * pixel_tiles, images, count_h, count_w, PER_IMAGE, WIDE, BLOCK_P
    )
    taps_y, kernel_y, kernel_step_y, step_y, first_y, shift_y = axis_taps(
        phase_y, stride_h, padding_h, dilation_h, common_h, inverse_h, KERNEL_H, GRADIENT, WIDE
    )
    taps_x, kernel_x, kernel_step_x, step_x, first_x, shift_x = axis_taps(
        phase_x, stride_w, padding_w, dilation_w, common_w, inverse_w, KERNEL_W, GRADIENT, WIDE
    )
    y = row * step_y + first_y
    x = column * step_x + first_x
    if POINTWISE:
        place = image * source_n + pixel * source_x
    else:
        place = image * source_n + y * source_y + x * source_x
    source_tile = tl.expand_dims(place + group * depth * source_c, CHANNELS)
    weight_tile = tl.expand_dims(
        channel * weight_c + group * weight_g + kernel_y * weight_y + kernel_x * weight_x, PIXELS
    )
    total = sum_terms(
        source, gate, weight, source_tile, weight_tile, y, x, exists, channel_exists,
        taps_y, taps_x, shift_y, shift_x, depth, source_h, source_w, source_c, source_y, source_x,
        weight_d, kernel_step_y * weight_y, kernel_step_x * weight_x,
        POINTWISE, DEPTH, PIXELS, PRECISION, WIDEN, BLOCK_P, BLOCK_C, BLOCK_D,
    )  # fmt: skip

    if ONE_PHASE:
        place = image * target_n + pixel * target_x
    else:
        out_y = row * stride_h + phase_y
        out_x = column * stride_w + phase_x
        exists = exists & (out_y < target_h) & (out_x < target_w)
        place = image * target_n + out_y * target_y + out_x * target_x
    out_channel = group * width + channel
    finish(
        total, tl.expand_dims(place, CHANNELS) + tl.expand_dims(out_channel * target_c, PIXELS),
        tl.expand_dims(exists, CHANNELS) & tl.expand_dims(channel_exists, PIXELS),
        tl.expand_dims(out_channel, PIXELS), tl.expand_dims(channel_exists, PIXELS),
        bias, residual, saved, target, KIND, FIRST, SECOND,
    )  # fmt: skip


@triton.jit
def sum_terms(
    source, gate, weight, source_tile, weight_tile, y, x, exists, channel_exists,
    taps_y, taps_x, shift_y, shift_x, depth, source_h, source_w, source_c, source_y, source_x,
    weight_d, weight_y, weight_x,
    POINTWISE: tl.constexpr, DEPTH: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The products of a tile, added up over taps and channels.

    ``source_tile`` and ``weight_tile`` are the offsets of the first tap and channel, ``y`` and ``x`` each
    pixel's position there. Where the stride is 1, taps are constants, and no division is left in the loop.
    """
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if source.dtype.element_ty == tl.float64 else tl.float32
    taps = taps_y * taps_x
    lane = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], acc)
    steps = tl.cdiv(taps * DEPTH, BLOCK_D) if DEPTH else taps * tl.cdiv(depth, BLOCK_D)
    for step in tl.range(0, steps):
        if DEPTH:
            term = tl.full([], step * BLOCK_D, y.dtype) + lane
            tap = term // DEPTH
            element = term - tap * DEPTH
            tap_y = tap // taps_x
            tap_x = tap - tap_y * taps_x
            has_element = tap < taps
            at_y = tl.expand_dims(y, CHANNELS) + tl.expand_dims(tap_y * shift_y, PIXELS)
            at_x = tl.expand_dims(x, CHANNELS) + tl.expand_dims(tap_x * shift_x, PIXELS)
            inside = tl.expand_dims(exists, CHANNELS)
            inside = inside & (at_y >= 0) & (at_y < source_h) & (at_x >= 0) & (at_x < source_w)
        else:
            block = step // taps
            tap = step - block * taps
            element = block * BLOCK_D + lane
            tap_y = tap // taps_x
            tap_x = tap - tap_y * taps_x
            has_element = element < depth
            at_y = y + tap_y * shift_y
            at_x = x + tap_x * shift_x
            inside = exists
            if not POINTWISE:
                inside = inside & (at_y >= 0) & (at_y < source_h) & (at_x >= 0) & (at_x < source_w)
            inside = tl.expand_dims(inside, CHANNELS)
        source_step = element * source_c
        source_step += tap_y * shift_y * source_y + tap_x * shift_x * source_x
        weight_step = element * weight_d + tap_y * weight_y + tap_x * weight_x
        a = load_gated(
            source, gate, source_tile + tl.expand_dims(source_step, PIXELS),
            inside & tl.expand_dims(has_element, PIXELS),
        )  # fmt: skip
        # The weight's elements lie along the other axis of its tile.
        b = tl.load(
            weight + weight_tile + tl.expand_dims(weight_step, CHANNELS),
            mask=tl.expand_dims(has_element, CHANNELS) & tl.expand_dims(channel_exists, PIXELS), other=0.0,
        )  # fmt: skip
        if PIXELS == 1:
            total = multiply_add(b, a, total, PRECISION, WIDEN)
        else:
            total = multiply_add(a, b, total, PRECISION, WIDEN)
    return total


@triton.jit
def finish(
    total, offset, mask, channel, channel_exists, bias, residual, saved, target,
    KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """What follows the sum: bias, residual, what backward wants of it, activation, one rounding."""
    storage: tl.constexpr = target.dtype.element_ty
    if bias is not None:
        total += tl.load(bias + channel, mask=channel_exists, other=0.0).to(total.dtype)
    if residual is not None:
        total += tl.load(residual + offset, mask=mask, other=0.0).to(total.dtype)
    if saved is not None:
        tl.store(saved + offset, total.to(storage), mask=mask)
    total = activate(total, KIND, FIRST, SECOND, storage)
    tl.store(target + offset, total.to(storage), mask=mask)
