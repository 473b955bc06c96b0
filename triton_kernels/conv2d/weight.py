"""conv2d's weight and bias gradients: a matrix product over the pixels of the batch.

The product is output channels x (taps x input channels) and small; the sum over pixels is long. It is cut
into parts, as many as the problem's tiles need to keep a large GPU busy, which leave float32 sums that are
added up in order. The bias's gradient is summed where the gradient is read for the first tile of columns.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.launch import cdiv, launch, next_power_of_2
from ..tools.product import multiply_add
from ..tools.tuning import run_fastest
from .geometry import Channels, Shape, Sides
from .parts import Parts, Sums, SumTensors
from .tiles import (
    Formats,
    Layout,
    PixelTiles,
    conv_product,
    image_strides,
    load_where_positive,
    locate_pixels,
)

# Below so many input channels in a group, a tile's columns are taps and channels.
_FEW_CHANNELS = 32


class _Block(NamedTuple):
    """The sizes of a tile: ``rows`` of output channels, ``columns``, and the ``pixels`` of one step."""

    rows: int
    columns: int
    pixels: int


class _Tile(NamedTuple):
    """A tile of ``rows`` x ``columns``, ``pixels`` at a time, for ``num_warps`` and ``num_stages``."""

    rows: int
    columns: int
    pixels: int
    num_warps: int
    num_stages: int


def _tiles(
    dtype: torch.dtype, precision: str, rows: int, columns: int, flat: bool, pixels_last: bool, masked: bool
) -> list[_Tile]:
    """Candidates, the best guess first; all take as many ``pixels`` at a time.

    The limits are those of the other product's tiles. Where single elements are loaded (``flat``, or 16-bit
    ones of NCHW), their addresses take registers.
    """
    rows = min(max(next_power_of_2(rows), 16), 128)
    columns = min(max(next_power_of_2(columns), 16), 128)
    if dtype == torch.float64:
        return [_Tile(min(rows, 64), min(columns, 64), 16, 4, 2)]
    if dtype == torch.float32 and precision == "ieee":
        return [_Tile(min(rows, 64), min(columns, 64), 16, 4, 3)]
    if flat or (pixels_last and dtype.itemsize == 2):
        return [_Tile(min(rows, 64), min(columns, 64), 32, 8 if rows * columns >= 64 * 64 else 4, 3)]
    pixels = (64 if dtype.itemsize == 2 else 32) // (2 if masked else 1)
    small = _Tile(min(rows, 64), min(columns, 64), pixels, 4, 3)
    large = _Tile(rows, columns, pixels, 8 if rows * columns > 64 * 128 else 4, 3)
    return list(dict.fromkeys([large, small]))


def weight_gradient(
    grad: torch.Tensor,
    relu_output: torch.Tensor | None,
    input: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor | None,
    shape: Shape,
) -> None:
    """Overwrite ``grad_weight`` and ``grad_bias``; ``grad`` is 0 where ``relu_output`` is not positive."""
    flat = shape.in_group < _FEW_CHANNELS
    per_tap = shape.in_group * (shape.taps if flat else 1)
    product = conv_product(input.dtype)
    channels = Channels(shape.in_group, shape.out_group)
    align = channels.alignment(input.element_size())
    formats = Formats.of(input, grad, grad_weight)
    pixels_last = not (formats.source if shape.in_channels > 1 else formats.target)
    candidates = _tiles(
        input.dtype, product.precision, shape.out_group, per_tap, flat or min(align) == 1, pixels_last,
        relu_output is not None,
    )  # fmt: skip
    source, out = shape.sides(pixels_last)
    blocks = PixelTiles.of(shape.images, out.height * out.width, candidates[0].pixels)

    def tile_counts(tile: _Tile) -> tuple[int, int]:
        taps = 1 if flat else shape.taps
        return cdiv(shape.out_group, tile.rows), cdiv(per_tap, tile.columns) * taps

    row_tiles, column_tiles = tile_counts(candidates[0])
    parts = Parts.of(blocks, shape.groups * row_tiles * column_tiles)
    weight_sums, bias_sums = Sums(grad_weight, parts.count), Sums(grad_bias, parts.count)
    tensors = SumTensors(grad, relu_output, input, weight_sums.target, bias_sums.target)

    def run(tile: _Tile) -> None:
        row_tiles, column_tiles = tile_counts(tile)
        launch(
            _weight_kernel, shape.groups * parts.count * row_tiles * column_tiles, input.device,
            tensors, shape.images, shape.groups, *channels.over(align), out, source,
            shape.height.steps, shape.width.steps, *parts.split, row_tiles, column_tiles,
            ALIGN=align, FORMATS=formats, KERNEL=Sides(shape.height.kernel, shape.width.kernel),
            POINTWISE=shape.is_pointwise, FLAT=flat,
            LAYOUT=Layout.of(blocks, pixels_last, shape.is_wide), PRODUCT=product, BLOCK=_Block(*tile[:3]),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = ("weight", input.dtype, product.precision, shape.key, pixels_last, relu_output is None)
    run_fastest(key, candidates, run, input.device)
    weight_sums.finish()
    bias_sums.finish()


# Of the arguments, what the compiler need not know: ``ALIGN`` tells it what vectors depend on.
_ANY_VALUE = [
    "images", "aligned_inputs", "aligned_outputs", "blocks", "parts", "steps", "row_tiles", "column_tiles",
]  # fmt: skip


@triton.jit(do_not_specialize=_ANY_VALUE)
def _weight_kernel(
    tensors, images, groups, aligned_inputs, aligned_outputs, out, source, down, across,
    blocks, parts, steps, row_tiles, column_tiles,
    ALIGN: tl.constexpr, FORMATS: tl.constexpr, KERNEL: tl.constexpr, POINTWISE: tl.constexpr,
    FLAT: tl.constexpr, LAYOUT: tl.constexpr, PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part's sums of a tile of the weight's gradient (and of the bias's).

    ``aligned_inputs`` and ``aligned_outputs``: channels of a group, divided by ``ALIGN``. ``out`` and
    ``source``: sides of grad and input. ``down`` and ``across``: Steps of the axes. Each of the ``parts`` has
    ``steps`` of the ``blocks`` of pixels. ``FORMATS``: of input, grad and weight. ``KERNEL``: the sides of
    the weight. ``FLAT``: a tile's columns are taps and channels, otherwise channels of one tap.
    ``POINTWISE``: pixel i of grad is made of pixel i of input.
    """
    TAPS: tl.constexpr = KERNEL.height * KERNEL.width
    TAPS_W: tl.constexpr = KERNEL.width
    inputs, outputs = aligned_inputs * ALIGN.inputs, aligned_outputs * ALIGN.outputs
    out_channels = groups * outputs
    input_strides = image_strides(groups * inputs, source, FORMATS.source, LAYOUT.wide)
    grad_strides = image_strides(out_channels, out, FORMATS.target, LAYOUT.wide)
    weight_strides = image_strides(inputs, KERNEL, FORMATS.weight, LAYOUT.wide)
    PIXELS: tl.constexpr = LAYOUT.pixels
    CHANNELS: tl.constexpr = 1 - PIXELS
    index: tl.constexpr = tl.int64 if LAYOUT.wide else tl.int32
    ROWS: tl.constexpr = BLOCK.rows
    COLUMNS: tl.constexpr = BLOCK.columns
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // column_tiles
    column_tile = pid - rest * column_tiles
    row_tile = rest % row_tiles
    rest = rest // row_tiles
    part = rest % parts
    group = rest // parts

    row = row_tile * ROWS + tl.arange(0, ROWS)
    row_exists = row < outputs
    lane = tl.arange(0, COLUMNS)
    if FLAT:
        column = column_tile * COLUMNS + lane
        tap = column // inputs
        channel = column - tap * inputs
        column_exists = tap < TAPS
    else:
        tap = column_tile % TAPS
        channel = column_tile // TAPS * COLUMNS + lane
        column_exists = channel < inputs
    tap_y = tap // TAPS_W
    tap_x = tap - tap_y * TAPS_W
    shift_y = tap_y * down.dilation - down.padding
    shift_x = tap_x * across.dilation - across.padding

    acc: tl.constexpr = tl.float64 if tensors.input.dtype.element_ty == tl.float64 else tl.float32
    out_channel = group * outputs + row
    grad_tile = tl.expand_dims(out_channel * grad_strides.c, PIXELS)
    input_tile = tl.expand_dims((group * inputs + channel) * input_strides.c, PIXELS)
    total = tl.zeros([ROWS, COLUMNS], acc)
    bias = tl.zeros([ROWS], acc)
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, y, x, exists = locate_pixels(
            tl.full([], step, index), images, out.height, out.width, LAYOUT, BLOCK.pixels
        )
        grad_place = image * grad_strides.n + pixel * grad_strides.x
        g = load_where_positive(
            tensors.grad, tensors.relu_output, grad_tile + tl.expand_dims(grad_place, CHANNELS),
            tl.expand_dims(exists, CHANNELS) & tl.expand_dims(row_exists, PIXELS),
        )  # fmt: skip
        inside = tl.expand_dims(exists, CHANNELS) & tl.expand_dims(column_exists, PIXELS)
        if POINTWISE:
            place = input_tile + tl.expand_dims(image * input_strides.n + pixel * input_strides.x, CHANNELS)
        else:
            if FLAT:
                at_y = tl.expand_dims(y * down.stride, CHANNELS) + tl.expand_dims(shift_y, PIXELS)
                at_x = tl.expand_dims(x * across.stride, CHANNELS) + tl.expand_dims(shift_x, PIXELS)
            else:
                at_y = tl.expand_dims(y * down.stride + shift_y, CHANNELS)
                at_x = tl.expand_dims(x * across.stride + shift_x, CHANNELS)
            inside = inside & (at_y >= 0) & (at_y < source.height) & (at_x >= 0) & (at_x < source.width)
            place = at_y * input_strides.y + at_x * input_strides.x
            if LAYOUT.per_image:
                place += image * input_strides.n
            else:
                place += tl.expand_dims(image * input_strides.n, CHANNELS)
            place += input_tile
        value = tl.load(tensors.input + place, mask=inside, other=0.0)
        if PIXELS == 1:
            total = multiply_add(g, tl.trans(value), total, PRODUCT)
        else:
            total = multiply_add(tl.trans(g), value, total, PRODUCT)
        if tensors.bias_sums is not None:  # noqa: SIM102 (decided when compiled)
            if column_tile == 0:
                bias += tl.sum(g.to(acc), axis=PIXELS)
    place = part * (out_channels * weight_strides.n) + (out_channel * weight_strides.n)[:, None]
    place += (channel * weight_strides.c + tap_y * weight_strides.y + tap_x * weight_strides.x)[None, :]
    mask = row_exists[:, None] & column_exists[None, :]
    tl.store(tensors.weight_sums + place, total.to(tensors.weight_sums.dtype.element_ty), mask=mask)
    if tensors.bias_sums is not None:  # noqa: SIM102 (decided when compiled)
        if column_tile == 0:
            bias_place = tensors.bias_sums + part * out_channels + out_channel
            tl.store(bias_place, bias.to(tensors.bias_sums.dtype.element_ty), mask=row_exists)
