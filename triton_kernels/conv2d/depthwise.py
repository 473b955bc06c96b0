"""conv2d where each group has one input channel: sums over taps of a tile of pixels x channels.

There is nothing for tensor cores to share between output channels; all these kernels are bound by memory.
"""

import torch
import triton
import triton.language as tl

from pyops.layouts import is_channels_last

from ..tools.launch import cdiv, launch
from .correlate import finish
from .geometry import Shape, image_strides
from .tiles import PixelTiles, axis_taps, light_tile, load_gated, locate_pixels
from .weight import MANY_TILES, Parts, Sums


def is_depthwise(shape: Shape) -> bool:
    return shape.in_group == 1 and shape.groups > 1


def correlate_depthwise(
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
    """As ``correlate``, where :func:`is_depthwise`."""
    if target.numel() == 0:
        return
    phases = [axis.stride if gradient else 1 for axis in (shape.height, shape.width)]
    counts = [cdiv(target.shape[2 + i], phases[i]) for i in range(2)]
    channels = target.shape[1]
    pixels_last = not is_channels_last(source)
    block_p, block_c = light_tile(counts[0] * counts[1], channels, pixels_last)
    blocks = PixelTiles.of(shape.images, counts[0] * counts[1], block_p)
    channel_tiles = cdiv(channels, block_c)
    filter_stride, _, *tap_strides = image_strides(weight)
    kind, first, second = activation
    launch(
        _depthwise_kernel, blocks.count * phases[0] * phases[1] * channel_tiles, source.device,
        source, gate, weight, bias, residual, target, saved,
        shape.images, channels, shape.out_group, shape.out_group if gradient else 1,
        *counts, *target.shape[2:], *source.shape[2:], *shape.height.args, *shape.width.args,
        *image_strides(source), *image_strides(target), filter_stride, *tap_strides, channel_tiles,
        KERNEL_H=shape.height.kernel, KERNEL_W=shape.width.kernel, GRADIENT=gradient,
        PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0, WIDE=shape.is_wide,
        KIND=kind, FIRST=float(first), SECOND=float(second), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def sum_products(
    grad: torch.Tensor,
    gate: torch.Tensor | None,
    input: torch.Tensor,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    shape: Shape,
) -> None:
    """Overwrite ``grad_weight``, where :func:`is_depthwise`, and ``grad_bias`` of any shape, unless None."""
    pixels_last = not is_channels_last(grad)
    height, width = shape.height, shape.width
    pixels, channels = height.output * width.output, shape.out_channels
    block_p, block_c = light_tile(pixels, channels, pixels_last)
    blocks = PixelTiles.of(shape.images, pixels, block_p)
    channel_tiles = cdiv(channels, block_c)
    taps = 1 if grad_weight is None else shape.taps
    parts = Parts.of(blocks, channel_tiles * taps, MANY_TILES)
    weight_sums, bias_sums = Sums(grad_weight, parts.count), Sums(grad_bias, parts.count)
    filter_stride, _, *tap_strides = (0, 0, 0, 0) if grad_weight is None else image_strides(grad_weight)
    launch(
        _depthwise_weight_kernel, parts.count * channel_tiles * taps, grad.device,
        grad, gate, input, weight_sums.target, bias_sums.target,
        shape.images, channels, shape.out_group, height.output, width.output, height.input, width.input,
        height.stride, height.padding, height.dilation, width.stride, width.padding, width.dilation,
        *image_strides(grad), *image_strides(input), filter_stride, *tap_strides,
        channels * taps, blocks.count, parts.count, parts.steps, channel_tiles,
        TAPS=taps, TAPS_W=width.kernel, PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0,
        WIDE=shape.is_wide, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    weight_sums.finish()
    bias_sums.finish()


@triton.jit
def _depthwise_kernel(
    source, gate, weight, bias, residual, target, saved,
    images, channels, multiplier, per_channel, count_h, count_w, target_h, target_w, source_h, source_w,
    stride_h, padding_h, dilation_h, common_h, inverse_h,
    stride_w, padding_w, dilation_w, common_w, inverse_w,
    source_n, source_c, source_y, source_x, target_n, target_c, target_y, target_x,
    weight_k, weight_y, weight_x, channel_tiles,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, GRADIENT: tl.constexpr,
    PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if source.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = tl.expand_dims(channel < channels, PIXELS)
    phase_y = tl.zeros([], index)
    phase_x = tl.zeros([], index)
    if GRADIENT:
        phase_x = rest % stride_w
        rest = rest // stride_w
        phase_y = rest % stride_h
        rest = rest // stride_h
    image, _pixel, row, column, exists = locate_pixels(
        rest, images, count_h, count_w, PER_IMAGE, WIDE, BLOCK_P
    )
    taps_y, kernel_y, kernel_step_y, step_y, first_y, shift_y = axis_taps(
        phase_y, stride_h, padding_h, dilation_h, common_h, inverse_h, KERNEL_H, GRADIENT, WIDE
    )
    taps_x, kernel_x, kernel_step_x, step_x, first_x, shift_x = axis_taps(
        phase_x, stride_w, padding_w, dilation_w, common_w, inverse_w, KERNEL_W, GRADIENT, WIDE
    )
    y = row * step_y + first_y
    x = column * step_x + first_x
    total = tl.zeros([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], acc)
    taps = taps_y * taps_x
    for step in tl.range(0, taps * per_channel):
        which = step // taps  # of the output channels that an input channel has
        tap = step - which * taps
        tap_y = tap // taps_x
        tap_x = tap - tap_y * taps_x
        at_y = y + tap_y * shift_y
        at_x = x + tap_x * shift_x
        inside = exists & (at_y >= 0) & (at_y < source_h) & (at_x >= 0) & (at_x < source_w)
        filter = channel * per_channel + which
        source_channel = filter if GRADIENT else channel // multiplier
        place = image * source_n + at_y * source_y + at_x * source_x
        value = load_gated(
            source, gate,
            tl.expand_dims(place, CHANNELS) + tl.expand_dims(source_channel * source_c, PIXELS),
            tl.expand_dims(inside, CHANNELS) & channel_exists,
        )  # fmt: skip
        tap_place = (kernel_y + tap_y * kernel_step_y) * weight_y + (
            kernel_x + tap_x * kernel_step_x
        ) * weight_x
        factor = tl.load(
            weight + tl.expand_dims(filter * weight_k + tap_place, PIXELS), mask=channel_exists, other=0.0
        )
        total += value.to(acc) * factor.to(acc)
    out_y = row
    out_x = column
    if GRADIENT:
        out_y = out_y * stride_h + phase_y
        out_x = out_x * stride_w + phase_x
        exists = exists & (out_y < target_h) & (out_x < target_w)
    place = image * target_n + out_y * target_y + out_x * target_x
    finish(
        total, tl.expand_dims(place, CHANNELS) + tl.expand_dims(channel * target_c, PIXELS),
        tl.expand_dims(exists, CHANNELS) & channel_exists, tl.expand_dims(channel, PIXELS), channel_exists,
        bias, residual, saved, target, KIND, FIRST, SECOND,
    )  # fmt: skip


@triton.jit
def _depthwise_weight_kernel(
    grad, gate, input, weight_sums, bias_sums,
    images, channels, multiplier, out_h, out_w, in_h, in_w,
    stride_h, padding_h, dilation_h, stride_w, padding_w, dilation_w,
    grad_n, grad_c, grad_y, grad_x, input_n, input_c, input_y, input_x, weight_k, weight_y, weight_x,
    weight_numel, blocks, parts, steps, channel_tiles,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    acc: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // TAPS
    tap = pid - rest * TAPS
    tap_y = tap // TAPS_W
    tap_x = tap - tap_y * TAPS_W
    part = rest // channel_tiles
    channel = (rest - part * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = tl.expand_dims(channel < channels, PIXELS)
    shift_y = tap_y * dilation_h - padding_h
    shift_x = tap_x * dilation_w - padding_w
    grad_tile = tl.expand_dims(channel * grad_c, PIXELS)
    input_tile = tl.expand_dims(channel // multiplier * input_c, PIXELS)
    total = tl.zeros([BLOCK_C, BLOCK_P] if PIXELS == 1 else [BLOCK_P, BLOCK_C], acc)
    bias = total
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, y, x, exists = locate_pixels(
            tl.full([], step, index), images, out_h, out_w, PER_IMAGE, WIDE, BLOCK_P
        )
        mask = tl.expand_dims(exists, CHANNELS) & channel_exists
        place = image * grad_n + pixel * grad_x
        g = load_gated(grad, gate, grad_tile + tl.expand_dims(place, CHANNELS), mask).to(acc)
        if bias_sums is not None:
            bias += g
        if weight_sums is not None:
            at_y = y * stride_h + shift_y
            at_x = x * stride_w + shift_x
            inside = (at_y >= 0) & (at_y < in_h) & (at_x >= 0) & (at_x < in_w)
            place = image * input_n + at_y * input_y + at_x * input_x
            value = tl.load(
                input + input_tile + tl.expand_dims(place, CHANNELS),
                mask=mask & tl.expand_dims(inside, CHANNELS), other=0.0,
            )  # fmt: skip
            total += g * value.to(acc)
    if weight_sums is not None:
        place = part * weight_numel + channel * weight_k + tap_y * weight_y + tap_x * weight_x
        sums = tl.sum(total, axis=PIXELS).to(weight_sums.dtype.element_ty)
        tl.store(weight_sums + place, sums, mask=channel < channels)
    if bias_sums is not None:  # noqa: SIM102 (decided when compiled)
        if tap == 0:
            sums = tl.sum(bias, axis=PIXELS).to(bias_sums.dtype.element_ty)
            tl.store(bias_sums + part * channels + channel, sums, mask=channel < channels)
