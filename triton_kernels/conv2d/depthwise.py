"""conv2d where each group has one input channel: sums over taps of a tile of pixels x channels.

There is nothing for tensor cores to share between output channels; all these kernels are bound by memory.
"""

import torch
import triton
import triton.language as tl

from pyops.kinds import Activation

from ..tools.activation import NO_ACTIVATION
from ..tools.launch import cdiv, launch, vector_alignment
from .epilogue import Operands, finish
from .geometry import Shape, Sides
from .parts import Parts, Sums, SumTensors
from .tiles import (
    MANY_TILES,
    Formats,
    Layout,
    PixelTiles,
    axis_taps,
    full_tile,
    image_strides,
    light_block,
    load_where_positive,
    locate_pixels,
)


def is_depthwise(shape: Shape) -> bool:
    return shape.in_group == 1 and shape.groups > 1


def correlate_depthwise(
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
    """As ``correlate``, where :func:`is_depthwise`."""
    if target.numel() == 0:
        return
    axes = (shape.height, shape.width)
    phases = [axis.stride if gradient else 1 for axis in axes]
    counts = Sides(*(cdiv(target.shape[2 + i], phases[i]) for i in range(2)))
    channels = target.shape[1]
    align = vector_alignment(channels, target.element_size())
    formats = Formats.of(source, target, weight)
    pixels_last = not formats.source
    block = light_block(counts.height * counts.width, channels, pixels_last)
    blocks = PixelTiles.of(shape.images, counts.height * counts.width, block.pixels)
    channel_tiles = cdiv(channels, block.channels)
    launch(
        _depthwise_kernel, blocks.count * phases[0] * phases[1] * channel_tiles, source.device,
        Operands(source, relu_output, weight, bias, residual, target, saved),
        shape.images, channels // align, shape.out_group, shape.out_group if gradient else 1,
        counts, Sides(*source.shape[2:]), Sides(*target.shape[2:]),
        shape.height.phase_steps, shape.width.phase_steps, channel_tiles,
        ALIGN=align, FORMATS=formats, KERNEL=Sides(*(axis.kernel for axis in axes)), GRADIENT=gradient,
        LAYOUT=Layout.of(blocks, pixels_last, shape.is_wide), ACTIVATION=activation, BLOCK=block,
        num_warps=4,
    )  # fmt: skip


def depthwise_weight_gradient(
    grad: torch.Tensor,
    relu_output: torch.Tensor | None,
    input: torch.Tensor,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    shape: Shape,
) -> None:
    """Overwrite ``grad_weight``, where :func:`is_depthwise`, and ``grad_bias`` of any shape, unless None."""
    formats = Formats.of(input, grad, grad if grad_weight is None else grad_weight)
    pixels_last = not formats.target
    out, source = Sides(shape.height.output, shape.width.output), Sides(shape.height.input, shape.width.input)
    pixels, channels = out.height * out.width, shape.out_channels
    align = vector_alignment(channels, grad.element_size())
    block = light_block(pixels, channels, pixels_last)
    blocks = PixelTiles.of(shape.images, pixels, block.pixels)
    channel_tiles = cdiv(channels, block.channels)
    taps = 1 if grad_weight is None else shape.taps
    parts = Parts.of(blocks, channel_tiles * taps, MANY_TILES)
    weight_sums, bias_sums = Sums(grad_weight, parts.count), Sums(grad_bias, parts.count)
    launch(
        _depthwise_weight_kernel, parts.count * channel_tiles * taps, grad.device,
        SumTensors(grad, relu_output, input, weight_sums.target, bias_sums.target),
        shape.images, channels // align, shape.out_group, out, source, shape.height.steps, shape.width.steps,
        *parts.split, channel_tiles,
        ALIGN=align, FORMATS=formats, TAPS=taps, TAPS_W=shape.width.kernel,
        LAYOUT=Layout.of(blocks, pixels_last, shape.is_wide), BLOCK=block, num_warps=4,
    )  # fmt: skip
    weight_sums.finish()
    bias_sums.finish()


@triton.jit(do_not_specialize=["images", "aligned_channels", "channel_tiles"])
def _depthwise_kernel(
    operands, images, aligned_channels, multiplier, per_channel, counts, source, target, down, across,
    channel_tiles,
    ALIGN: tl.constexpr, FORMATS: tl.constexpr, KERNEL: tl.constexpr, GRADIENT: tl.constexpr,
    LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of the target.

    ``aligned_channels``: of the target, divided by ``ALIGN``. ``multiplier``: output channels of an input
    channel. ``per_channel``: channels of the source that a channel of the target is made of. ``counts``,
    ``source``, ``target``: sides of one phase of the target, of the source and of the target. ``down`` and
    ``across``: PhaseSteps. ``FORMATS``: of source and target. ``KERNEL``: the sides of the weight. With
    ``GRADIENT`` the target is the input's gradient.
    """
    channels = aligned_channels * ALIGN
    source_channels = channels * per_channel if GRADIENT else channels // multiplier
    source_strides = image_strides(source_channels, source, FORMATS.source, LAYOUT.wide)
    target_strides = image_strides(channels, target, FORMATS.target, LAYOUT.wide)
    weight_strides = image_strides(1, KERNEL, False, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    acc: tl.constexpr = tl.float64 if operands.source.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    pid = tl.program_id(0).to(index)
    rest = pid // channel_tiles
    channel = (pid - rest * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = tl.expand_dims(channel < channels, PIXELS)
    phase_y = tl.zeros([], index)
    phase_x = tl.zeros([], index)
    if GRADIENT:
        phase_x = rest % across.stride
        rest = rest // across.stride
        phase_y = rest % down.stride
        rest = rest // down.stride
    image, _pixel, row, column, exists = locate_pixels(
        rest, images, counts.height, counts.width, LAYOUT, BLOCK.pixels
    )
    taps_y = axis_taps(phase_y, down, KERNEL.height, GRADIENT, LAYOUT.wide)
    taps_x = axis_taps(phase_x, across, KERNEL.width, GRADIENT, LAYOUT.wide)
    y = row * taps_y.source_step + taps_y.first
    x = column * taps_x.source_step + taps_x.first
    total = full_tile(BLOCK, LAYOUT, 0.0, acc)
    taps = taps_y.count * taps_x.count
    for step in tl.range(0, taps * per_channel):
        which = step // taps  # of the output channels that an input channel has
        tap = step - which * taps
        tap_y = tap // taps_x.count
        tap_x = tap - tap_y * taps_x.count
        at_y = y + tap_y * taps_y.shift
        at_x = x + tap_x * taps_x.shift
        inside = exists & (at_y >= 0) & (at_y < source.height) & (at_x >= 0) & (at_x < source.width)
        filter = channel * per_channel + which
        source_channel = filter if GRADIENT else channel // multiplier
        place = image * source_strides.n + at_y * source_strides.y + at_x * source_strides.x
        value = load_where_positive(
            operands.source, operands.relu_output,
            tl.expand_dims(place, CHANNELS) + tl.expand_dims(source_channel * source_strides.c, PIXELS),
            tl.expand_dims(inside, CHANNELS) & channel_exists,
        )  # fmt: skip
        tap_place = (taps_y.first_tap + tap_y * taps_y.tap_step) * weight_strides.y
        tap_place += (taps_x.first_tap + tap_x * taps_x.tap_step) * weight_strides.x
        tap_place = tl.expand_dims(filter * weight_strides.n + tap_place, PIXELS)
        factor = tl.load(operands.weight + tap_place, mask=channel_exists, other=0.0)
        total += value.to(acc) * factor.to(acc)
    out_y = row
    out_x = column
    if GRADIENT:
        out_y = out_y * down.stride + phase_y
        out_x = out_x * across.stride + phase_x
        exists = exists & (out_y < target.height) & (out_x < target.width)
    place = image * target_strides.n + out_y * target_strides.y + out_x * target_strides.x
    finish(
        operands, total,
        tl.expand_dims(place, CHANNELS) + tl.expand_dims(channel * target_strides.c, PIXELS),
        tl.expand_dims(exists, CHANNELS) & channel_exists, tl.expand_dims(channel, PIXELS), channel_exists,
        ACTIVATION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["images", "aligned_channels", "blocks", "parts", "steps", "channel_tiles"])
def _depthwise_weight_kernel(
    tensors, images, aligned_channels, multiplier, out, source, down, across,
    blocks, parts, steps, channel_tiles,
    ALIGN: tl.constexpr, FORMATS: tl.constexpr, TAPS: tl.constexpr, TAPS_W: tl.constexpr,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part's sums of a tap and a tile of channels; those of the bias with the first tap.

    ``aligned_channels``: of grad, divided by ``ALIGN``. ``multiplier``: output channels of an input channel.
    ``out`` and ``source``: sides of grad and input. ``down`` and ``across``: Steps of the axes. Each of the
    ``parts`` has ``steps`` of the ``blocks`` of pixels. ``FORMATS``: of input and grad. There are ``TAPS``
    taps, ``TAPS_W`` in a row.
    """
    channels = aligned_channels * ALIGN
    grad_strides = image_strides(channels, out, FORMATS.target, LAYOUT.wide)
    input_strides = image_strides(channels // multiplier, source, FORMATS.source, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    BLOCK_C: tl.constexpr = BLOCK.channels
    acc: tl.constexpr = tl.float64 if tensors.grad.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // TAPS
    tap = pid - rest * TAPS
    tap_y = tap // TAPS_W
    tap_x = tap - tap_y * TAPS_W
    part = rest // channel_tiles
    channel = (rest - part * channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_exists = tl.expand_dims(channel < channels, PIXELS)
    shift_y = tap_y * down.dilation - down.padding
    shift_x = tap_x * across.dilation - across.padding
    grad_tile = tl.expand_dims(channel * grad_strides.c, PIXELS)
    input_tile = tl.expand_dims(channel // multiplier * input_strides.c, PIXELS)
    total = full_tile(BLOCK, LAYOUT, 0.0, acc)
    bias = total
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, y, x, exists = locate_pixels(
            tl.full([], step, index), images, out.height, out.width, LAYOUT, BLOCK.pixels
        )
        mask = tl.expand_dims(exists, CHANNELS) & channel_exists
        place = image * grad_strides.n + pixel * grad_strides.x
        place = grad_tile + tl.expand_dims(place, CHANNELS)
        g = load_where_positive(tensors.grad, tensors.relu_output, place, mask).to(acc)
        if tensors.bias_sums is not None:
            bias += g
        if tensors.weight_sums is not None:
            at_y = y * down.stride + shift_y
            at_x = x * across.stride + shift_x
            inside = (at_y >= 0) & (at_y < source.height) & (at_x >= 0) & (at_x < source.width)
            place = image * input_strides.n + at_y * input_strides.y + at_x * input_strides.x
            value = tl.load(
                tensors.input + input_tile + tl.expand_dims(place, CHANNELS),
                mask=mask & tl.expand_dims(inside, CHANNELS), other=0.0,
            )  # fmt: skip
            total += g * value.to(acc)
    if tensors.weight_sums is not None:
        place = (part * channels + channel) * TAPS + tap
        sums = tl.sum(total, axis=PIXELS).to(tensors.weight_sums.dtype.element_ty)
        tl.store(tensors.weight_sums + place, sums, mask=channel < channels)
    if tensors.bias_sums is not None:  # noqa: SIM102 (decided when compiled)
        if tap == 0:
            sums = tl.sum(bias, axis=PIXELS).to(tensors.bias_sums.dtype.element_ty)
            tl.store(tensors.bias_sums + part * channels + channel, sums, mask=channel < channels)
