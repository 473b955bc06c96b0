"""Kernels of the convolution that is pooled (conv2d_max_pool2d.py): maxima, and where their gradients belong.

Tiles are pooled pixels x channels going forward and pixels of the convolution x channels going back, laid out
as in tiles.py. Both compare and gather in the order of csrc/math/pooling.h.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pyops._library import triton_is_interpreted
from pyops.layouts import is_channels_last

from ..pooling.windows import Axis, first_window
from ..tools.activation import IDENTITY, RELU, activate, derive_from_input, derive_from_output
from ..tools.launch import cdiv, launch, next_power_of_2
from ..tools.math import INFINITY
from ..tools.tuning import fastest
from . import geometry
from .correlate import Tile, channels_innermost, split_depth, sum_terms
from .geometry import Shape, image_strides, precision
from .tiles import PixelTiles, axis_taps, light_tile, locate_pixels
from .weight import MANY_TILES, Parts, Sums

NO_GRADIENT: tl.constexpr = tl.constexpr(255)


@dataclass(frozen=True)
class Pool:
    """The windows over the convolution's output."""

    height: Axis
    width: Axis

    @property
    def args(self) -> tuple[int, ...]:
        """What a kernel gets of them: kernel, stride, padding and dilation of each axis."""
        return (*self.height.args[2:], *self.width.args[2:])

    def is_wide(self, images: int, channels: int) -> bool:
        axes = (self.height, self.width)
        sizes = [max(axis.size, axis.out) + 2 * axis.padding for axis in axes]
        steps = [value for axis in axes for value in (axis.stride, axis.dilation)]
        return max(images * channels * sizes[0] * sizes[1], max(steps) ** 2) >= geometry.NARROW_ELEMENTS


# ------------------------------------------------------------------------------------------- launchers


def _fused_tiles(dtype: torch.dtype, precision: str, width: int, depth: int) -> list[Tile]:
    """Candidates, the best guess first; a tile has its sums, maxima and positions in registers."""
    channels = min(max(next_power_of_2(width), 16), 64)
    if dtype == torch.float64:
        return [Tile(64, min(channels, 32), 16, 4, 2)]
    if dtype == torch.float32 and precision == "ieee":
        return [Tile(64, channels, 16, 4, 3)]
    depth = min(max(next_power_of_2(depth), 16), 64 if dtype.itemsize == 2 else 32)
    return [Tile(128, channels, depth, 8, 3), Tile(64, channels, depth, 4, 3)]


def correlate_and_pool(
    output: torch.Tensor,
    argmax: torch.Tensor | None,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Shape,
    pool: Pool,
    activation: tuple[int, float, float],
) -> None:
    """Overwrite ``output`` and ``argmax`` with the maxima of windows of convolved tiles."""
    if output.numel() == 0:
        return
    width, depth = shape.out_group, shape.in_group
    flat, terms = split_depth(depth, shape.taps)
    if not flat:
        weight = channels_innermost(weight)
    how = precision(input.dtype)
    pixels_last = not is_channels_last(input if shape.in_channels > 1 else output)
    filter_stride, depth_stride, *tap_strides = image_strides(weight)
    kind, first, second = activation

    def run(tile: Tile) -> None:
        blocks = PixelTiles.of(shape.images, pool.height.out * pool.width.out, tile.pixels)
        channel_tiles = cdiv(width, tile.channels)
        launch(
            _fused_kernel, shape.groups * blocks.count * channel_tiles, input.device,
            input, weight, bias, output, argmax, shape.images, depth, width,
            *output.shape[2:], *shape.output[2:], *input.shape[2:],
            *shape.height.args[:3], *shape.width.args[:3], *pool.args,
            *image_strides(input), *image_strides(output),
            filter_stride * width, depth_stride, filter_stride, *tap_strides, blocks.count, channel_tiles,
            KERNEL_H=shape.height.kernel, KERNEL_W=shape.width.kernel, DEPTH=depth if flat else 0,
            PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0,
            WIDE=shape.is_wide or pool.is_wide(shape.images, shape.out_channels),
            KIND=kind, FIRST=float(first), SECOND=float(second), PRECISION=how,
            WIDEN=triton_is_interpreted(), BLOCK_P=tile.pixels, BLOCK_C=tile.channels, BLOCK_D=tile.depth,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = ("pool", input.dtype, how, shape.key, pool, pixels_last, kind, argmax is None)
    run(fastest(key, _fused_tiles(input.dtype, how, width, terms), run, input.device))


def pool_sums(
    output: torch.Tensor,
    argmax: torch.Tensor | None,
    saved: torch.Tensor | None,
    sums: torch.Tensor,
    pool: Pool,
    activation: tuple[int, float, float],
) -> None:
    """Overwrite ``output``, ``argmax`` and ``saved`` with the maxima of the activation of ``sums``."""
    if output.numel() == 0:
        return
    images, channels = output.shape[:2]
    pixels_last = not is_channels_last(output)
    block_p, block_c = light_tile(pool.height.out * pool.width.out, channels, pixels_last)
    blocks = PixelTiles.of(images, pool.height.out * pool.width.out, block_p)
    channel_tiles = cdiv(channels, block_c)
    kind, first, second = activation
    launch(
        _pool_kernel, blocks.count * channel_tiles, output.device,
        sums, output, argmax, saved, images, channels, *output.shape[2:], *sums.shape[2:], *pool.args,
        *image_strides(sums), *image_strides(output), channel_tiles,
        PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0, WIDE=pool.is_wide(images, channels),
        KIND=kind, FIRST=float(first), SECOND=float(second), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def gather(
    grad_conv: torch.Tensor,
    grad_bias: torch.Tensor | None,
    grad: torch.Tensor,
    argmax: torch.Tensor,
    saved: torch.Tensor | None,
    pool: Pool,
    activation: tuple[int, float, float],
    saved_is_output: bool,
) -> None:
    """Overwrite ``grad_conv`` with what its elements get from windows, and ``grad_bias`` with its sums."""
    images, channels, height, width = grad_conv.shape
    pixels_last = not is_channels_last(grad_conv)
    block_p, block_c = light_tile(height * width, channels, pixels_last)
    blocks = PixelTiles.of(images, height * width, block_p)
    channel_tiles = cdiv(channels, block_c)
    parts = Parts.of(blocks, channel_tiles, MANY_TILES)
    if grad_bias is None:  # nothing to add up over blocks
        parts = Parts(blocks, blocks.count, 1)
    sums = Sums(grad_bias, parts.count)
    # Windows that span an element, at most.
    spans = ((axis.kernel - 1) * axis.dilation // axis.stride + 1 for axis in (pool.height, pool.width))
    kind, first, second = activation
    if parts.count * channel_tiles > 0:
        launch(
            _gather_kernel, parts.count * channel_tiles, grad.device,
            grad, argmax, saved, grad_conv, sums.target,
            images, channels, height, width, *grad.shape[2:], *pool.args, *spans,
            *image_strides(argmax), *image_strides(grad_conv),
            blocks.count, parts.steps, channel_tiles,
            PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0,
            WIDE=pool.is_wide(images, channels), KIND=kind, FIRST=float(first), SECOND=float(second),
            FROM_OUTPUT=saved_is_output, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    sums.finish()


# --------------------------------------------------------------------------------------------- kernels


@triton.jit
def _is_larger(value, valid, maximum, position):
    """Whether to take a value: the first, a larger one or NaN."""
    return valid & ((value > maximum) | (value != value) | (position == NO_GRADIENT))


@triton.jit
def _store_maximum(output, argmax, offset, mask, maximum, position, KIND: tl.constexpr):
    tl.store(output + offset, maximum.to(output.dtype.element_ty), mask=mask)
    if argmax is not None:
        if KIND == RELU:
            position = tl.where(maximum <= 0.0, NO_GRADIENT, position)
        tl.store(argmax + offset, position.to(tl.uint8), mask=mask)


@triton.jit
def _fused_kernel(
    input, weight, bias, output, argmax,
    images, depth, width, pooled_h, pooled_w, conv_h, conv_w, input_h, input_w,
    stride_h, padding_h, dilation_h, stride_w, padding_w, dilation_w,
    window_h, window_stride_h, window_padding_h, window_dilation_h,
    window_w, window_stride_w, window_padding_w, window_dilation_w,
    input_n, input_c, input_y, input_x, output_n, output_c, output_y, output_x,
    weight_g, weight_d, weight_c, weight_y, weight_x, pixel_tiles, channel_tiles,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DEPTH: tl.constexpr, PER_IMAGE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = channel < width
    group = rest // pixel_tiles
    image, pixel, row, column, exists = locate_pixels(
        rest - group * pixel_tiles, images, pooled_h, pooled_w, PER_IMAGE, WIDE, BLOCK_P
    )
    out_channel = tl.expand_dims(group * width + channel, PIXELS)
    channel_mask = tl.expand_dims(channel_exists, PIXELS)
    taps_y, _kernel, _step, step_y, first_y, shift_y = axis_taps(
        0, stride_h, padding_h, dilation_h, 1, 0, KERNEL_H, False, WIDE
    )
    taps_x, _kernel, _step, step_x, first_x, shift_x = axis_taps(
        0, stride_w, padding_w, dilation_w, 1, 0, KERNEL_W, False, WIDE
    )
    weight_tile = tl.expand_dims(channel * weight_c + group * weight_g, PIXELS)
    maximum = tl.full([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], -INFINITY, acc)
    position = tl.full([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], NO_GRADIENT, tl.int32)
    for which in tl.range(0, window_h * window_w):
        tap_y = which // window_w
        conv_y = row * window_stride_h - window_padding_h + tap_y * window_dilation_h
        conv_x = column * window_stride_w - window_padding_w + (which - tap_y * window_w) * window_dilation_w
        valid = exists & (conv_y >= 0) & (conv_y < conv_h) & (conv_x >= 0) & (conv_x < conv_w)
        y = conv_y * step_y + first_y
        x = conv_x * step_x + first_x
        place = image * input_n + y * input_y + x * input_x + group * depth * input_c
        total = sum_terms(
            input, None, weight, tl.expand_dims(place, CHANNELS), weight_tile, y, x, valid, channel_exists,
            taps_y, taps_x, shift_y, shift_x, depth, input_h, input_w, input_c, input_y, input_x,
            weight_d, weight_y, weight_x,
            False, DEPTH, PIXELS, PRECISION, WIDEN, BLOCK_P, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        if bias is not None:
            total += tl.load(bias + out_channel, mask=channel_mask, other=0.0).to(acc)
        total = activate(total, KIND, FIRST, SECOND, output.dtype.element_ty)
        larger = _is_larger(total, tl.expand_dims(valid, CHANNELS), maximum, position)
        maximum = tl.where(larger, total, maximum)
        position = tl.where(larger, which, position)
    place = image * output_n + pixel * output_x
    _store_maximum(
        output, argmax, tl.expand_dims(place, CHANNELS) + out_channel * output_c,
        tl.expand_dims(exists, CHANNELS) & channel_mask, maximum, position, KIND,
    )  # fmt: skip


@triton.jit
def _pool_kernel(
    sums, output, argmax, saved, images, channels, pooled_h, pooled_w, conv_h, conv_w,
    window_h, window_stride_h, window_padding_h, window_dilation_h,
    window_w, window_stride_w, window_padding_w, window_dilation_w,
    sums_n, sums_c, sums_y, sums_x, output_n, output_c, output_y, output_x, channel_tiles,
    PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if sums.dtype.element_ty == tl.float64 else tl.float32
    pid = tl.program_id(0).to(tl.int64 if WIDE else tl.int32)
    tile = pid // channel_tiles
    channel = tl.expand_dims((pid - tile * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C), PIXELS)
    image, pixel, row, column, exists = locate_pixels(
        tile, images, pooled_h, pooled_w, PER_IMAGE, WIDE, BLOCK_P
    )
    maximum = tl.full([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], -INFINITY, acc)
    before = maximum  # the activation's input at the maximum
    position = tl.full([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], NO_GRADIENT, tl.int32)
    for which in tl.range(0, window_h * window_w):
        tap_y = which // window_w
        conv_y = row * window_stride_h - window_padding_h + tap_y * window_dilation_h
        conv_x = column * window_stride_w - window_padding_w + (which - tap_y * window_w) * window_dilation_w
        valid = exists & (conv_y >= 0) & (conv_y < conv_h) & (conv_x >= 0) & (conv_x < conv_w)
        valid = tl.expand_dims(valid, CHANNELS) & (channel < channels)
        place = tl.expand_dims(image * sums_n + conv_y * sums_y + conv_x * sums_x, CHANNELS)
        value = tl.load(sums + place + channel * sums_c, mask=valid, other=0.0).to(acc)
        activated = activate(value, KIND, FIRST, SECOND, sums.dtype.element_ty)
        larger = _is_larger(activated, valid, maximum, position)
        maximum = tl.where(larger, activated, maximum)
        position = tl.where(larger, which, position)
        if saved is not None:
            before = tl.where(larger, value, before)
    offset = tl.expand_dims(image * output_n + pixel * output_x, CHANNELS) + channel * output_c
    mask = tl.expand_dims(exists, CHANNELS) & (channel < channels)
    _store_maximum(output, argmax, offset, mask, maximum, position, KIND)
    if saved is not None:
        tl.store(saved + offset, before.to(saved.dtype.element_ty), mask=mask)


@triton.jit
def _gather_kernel(
    grad, argmax, saved, grad_conv, bias_sums,
    images, channels, conv_h, conv_w, pooled_h, pooled_w,
    window_h, window_stride_h, window_padding_h, window_dilation_h,
    window_w, window_stride_w, window_padding_w, window_dilation_w, span_h, span_w,
    pooled_n, pooled_c, pooled_y, pooled_x, conv_n, conv_c, conv_y, conv_x, blocks, steps, channel_tiles,
    PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    pid = tl.program_id(0).to(index)
    part = pid // channel_tiles
    lanes = (pid - part * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.expand_dims(lanes, PIXELS)
    bias = tl.zeros([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], acc)
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, row, column, exists = locate_pixels(
            tl.full([], step, index), images, conv_h, conv_w, PER_IMAGE, WIDE, BLOCK_P
        )
        top = first_window(row, window_stride_h, (window_h - 1) * window_dilation_h - window_padding_h)
        left = first_window(column, window_stride_w, (window_w - 1) * window_dilation_w - window_padding_w)
        total = tl.zeros([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], acc)
        for span in tl.range(0, span_h * span_w):
            down = span // span_w
            y = top + down
            x = left + (span - down * span_w)
            distance_y = row + window_padding_h - y * window_stride_h
            distance_x = column + window_padding_w - x * window_stride_w
            tap_y = distance_y // window_dilation_h
            tap_x = distance_x // window_dilation_w
            holds = exists & (y < pooled_h) & (distance_y >= 0) & (tap_y * window_dilation_h == distance_y)
            holds &= (x < pooled_w) & (distance_x >= 0) & (tap_x * window_dilation_w == distance_x)
            place = tl.expand_dims(image * pooled_n + y * pooled_y + x * pooled_x, CHANNELS)
            place += channel * pooled_c
            mask = tl.expand_dims(holds, CHANNELS) & (channel < channels)
            position = tl.load(argmax + place, mask=mask, other=NO_GRADIENT)
            mask &= position == tl.expand_dims(tap_y * window_w + tap_x, CHANNELS)
            g = tl.load(grad + place, mask=mask, other=0.0).to(acc)
            if KIND != IDENTITY and KIND != RELU:
                at = tl.load(saved + place, mask=mask, other=0.0).to(acc)
                if FROM_OUTPUT:
                    g = derive_from_output(at, g, KIND, FIRST)
                else:
                    g = derive_from_input(at, g, KIND, FIRST, SECOND, grad.dtype.element_ty)
                g = tl.where(mask, g, 0.0)
            total += g
        mask = tl.expand_dims(exists, CHANNELS) & (channel < channels)
        place = tl.expand_dims(image * conv_n + pixel * conv_x, CHANNELS) + channel * conv_c
        tl.store(grad_conv + place, total.to(grad_conv.dtype.element_ty), mask=mask)
        if bias_sums is not None:
            bias += total
    if bias_sums is not None:
        sums = tl.sum(bias, axis=PIXELS).to(bias_sums.dtype.element_ty)
        tl.store(bias_sums + part * channels + lanes, sums, mask=lanes < channels)
