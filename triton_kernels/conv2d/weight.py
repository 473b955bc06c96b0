"""conv2d's weight and bias gradients: a matrix product over the pixels of the batch.

The product is output channels x (taps x input channels) and small; the sum over pixels is long. It is cut
into parts, as many as the problem's tiles need to keep a large GPU busy, which leave float32 sums that are
added up in order. The bias's gradient is summed where the gradient is read for the first tile of columns.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pyops._library import triton_is_interpreted
from pyops.layouts import is_channels_last

from ..tools.checks import acc_dtype
from ..tools.launch import cdiv, launch, next_power_of_2
from ..tools.merge import merge_parts
from ..tools.tuning import fastest
from .correlate import ENOUGH_TILES
from .geometry import Shape, image_strides, precision
from .tiles import PixelTiles, load_gated, locate_pixels, multiply_add

# Below so many input channels in a group, a tile's columns are taps and channels.
_FEW_CHANNELS = 32
_STEPS_PER_PART = 8  # at least: blocks of pixels
# Enough programs where they are light: several share a multiprocessor.
MANY_TILES = 8 * ENOUGH_TILES


@dataclass(frozen=True)
class _Tile:
    rows: int
    columns: int
    pixels: int
    num_warps: int
    num_stages: int


def _tiles(
    dtype: torch.dtype, precision: str, rows: int, columns: int, flat: bool, pixels_last: bool, gated: bool
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
    pixels = (64 if dtype.itemsize == 2 else 32) // (2 if gated else 1)
    small = _Tile(min(rows, 64), min(columns, 64), pixels, 4, 3)
    large = _Tile(rows, columns, pixels, 8 if rows * columns > 64 * 128 else 4, 3)
    return list(dict.fromkeys([large, small]))


@dataclass(frozen=True)
class Parts:
    """Blocks of pixels, ``steps`` of them in each of ``count`` parts."""

    blocks: PixelTiles
    count: int
    steps: int

    @staticmethod
    def of(blocks: PixelTiles, tiles: int, enough: int = ENOUGH_TILES) -> "Parts":
        """So many parts that, of each of ``tiles``, they are ``enough`` programs."""
        most = max(1, blocks.count // _STEPS_PER_PART)
        steps = max(1, cdiv(blocks.count, min(most, cdiv(enough, tiles))))
        return Parts(blocks, max(1, cdiv(blocks.count, steps)), steps)


class Sums:
    """Where parts leave their sums: in the gradient itself if there is but one part."""

    def __init__(self, total: torch.Tensor | None, parts: int) -> None:
        self.total = total
        self.partials: torch.Tensor | None = None
        if total is not None and parts > 1:
            shape = (parts, total.numel())
            self.partials = torch.empty(shape, dtype=acc_dtype(total.dtype), device=total.device)

    @property
    def target(self) -> torch.Tensor | None:
        return self.total if self.partials is None else self.partials

    def finish(self) -> None:
        if self.total is not None and self.partials is not None:
            merge_parts(self.partials, self.total)


def sum_over_pixels(
    grad: torch.Tensor,
    gate: torch.Tensor | None,
    input: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor | None,
    shape: Shape,
) -> None:
    """Overwrite ``grad_weight`` and ``grad_bias``; ``grad`` counts as 0 where ``gate`` is not positive."""
    flat = shape.in_group < _FEW_CHANNELS
    per_tap = shape.in_group * (shape.taps if flat else 1)
    how = precision(input.dtype)
    pixels_last = not is_channels_last(input if shape.in_channels > 1 else grad)
    candidates = _tiles(input.dtype, how, shape.out_group, per_tap, flat, pixels_last, gate is not None)
    pixels = shape.height.output * shape.width.output
    blocks = PixelTiles.of(shape.images, pixels, candidates[0].pixels)

    def tile_counts(tile: _Tile) -> tuple[int, int]:
        taps = 1 if flat else shape.taps
        return cdiv(shape.out_group, tile.rows), cdiv(per_tap, tile.columns) * taps

    row_tiles, column_tiles = tile_counts(candidates[0])
    parts = Parts.of(blocks, shape.groups * row_tiles * column_tiles)
    weight_sums, bias_sums = Sums(grad_weight, parts.count), Sums(grad_bias, parts.count)
    height, width = shape.height, shape.width

    def run(tile: _Tile) -> None:
        row_tiles, column_tiles = tile_counts(tile)
        launch(
            _weight_kernel, shape.groups * parts.count * row_tiles * column_tiles, input.device,
            grad, gate, input, weight_sums.target, bias_sums.target,
            shape.images, shape.in_group, shape.out_group, height.output, width.output,
            height.input, width.input, height.stride, height.padding, height.dilation,
            width.stride, width.padding, width.dilation,
            *image_strides(grad), *image_strides(input), *image_strides(grad_weight), grad_weight.numel(),
            shape.out_channels, blocks.count, parts.count, parts.steps, row_tiles, column_tiles,
            TAPS=shape.taps, TAPS_W=width.kernel, POINTWISE=shape.is_pointwise, FLAT=flat,
            PER_IMAGE=blocks.per_image, PIXELS=1 if pixels_last else 0, WIDE=shape.is_wide, PRECISION=how,
            WIDEN=triton_is_interpreted(), BLOCK_R=tile.rows, BLOCK_C=tile.columns, BLOCK_P=tile.pixels,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    key = ("weight", input.dtype, how, shape.key, pixels_last, gate is None)
    run(fastest(key, candidates, run, input.device))
    weight_sums.finish()
    bias_sums.finish()


@triton.jit
def _weight_kernel(
    grad, gate, input, weight_sums, bias_sums,
    images, in_group, out_group, out_h, out_w, in_h, in_w,
    stride_h, padding_h, dilation_h, stride_w, padding_w, dilation_w,
    grad_n, grad_c, grad_y, grad_x, input_n, input_c, input_y, input_x,
    weight_k, weight_c, weight_y, weight_x, weight_numel, out_channels,
    blocks, parts, steps, row_tiles, column_tiles,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, POINTWISE: tl.constexpr, FLAT: tl.constexpr,
    PER_IMAGE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = 1 - PIXELS
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    # Programs that read the same pixels are neighbours.
    pid = tl.program_id(0).to(index)
    rest = pid // column_tiles
    column_tile = pid - rest * column_tiles
    row_tile = rest % row_tiles
    rest = rest // row_tiles
    part = rest % parts
    group = rest // parts

    row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    row_exists = row < out_group
    lane = tl.arange(0, BLOCK_C)
    if FLAT:
        column = column_tile * BLOCK_C + lane
        tap = column // in_group
        channel = column - tap * in_group
        column_exists = tap < TAPS
    else:
        tap = column_tile % TAPS
        channel = column_tile // TAPS * BLOCK_C + lane
        column_exists = channel < in_group
    tap_y = tap // TAPS_W
    tap_x = tap - tap_y * TAPS_W
    shift_y = tap_y * dilation_h - padding_h
    shift_x = tap_x * dilation_w - padding_w

    acc: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    out_channel = group * out_group + row
    grad_tile = tl.expand_dims(out_channel * grad_c, PIXELS)
    input_tile = tl.expand_dims((group * in_group + channel) * input_c, PIXELS)
    total = tl.zeros([BLOCK_R, BLOCK_C], acc)
    bias = tl.zeros([BLOCK_R], acc)
    for step in tl.range(part * steps, tl.minimum(part * steps + steps, blocks)):
        image, pixel, y, x, exists = locate_pixels(
            tl.full([], step, index), images, out_h, out_w, PER_IMAGE, WIDE, BLOCK_P
        )
        g = load_gated(
            grad, gate, grad_tile + tl.expand_dims(image * grad_n + pixel * grad_x, CHANNELS),
            tl.expand_dims(exists, CHANNELS) & tl.expand_dims(row_exists, PIXELS),
        )  # fmt: skip
        inside = tl.expand_dims(exists, CHANNELS) & tl.expand_dims(column_exists, PIXELS)
        if POINTWISE:
            place = input_tile + tl.expand_dims(image * input_n + pixel * input_x, CHANNELS)
        else:
            if FLAT:
                at_y = tl.expand_dims(y * stride_h, CHANNELS) + tl.expand_dims(shift_y, PIXELS)
                at_x = tl.expand_dims(x * stride_w, CHANNELS) + tl.expand_dims(shift_x, PIXELS)
            else:
                at_y = tl.expand_dims(y * stride_h + shift_y, CHANNELS)
                at_x = tl.expand_dims(x * stride_w + shift_x, CHANNELS)
            inside = inside & (at_y >= 0) & (at_y < in_h) & (at_x >= 0) & (at_x < in_w)
            place = at_y * input_y + at_x * input_x
            if PER_IMAGE:
                place += image * input_n
            else:
                place += tl.expand_dims(image * input_n, CHANNELS)
            place += input_tile
        value = tl.load(input + place, mask=inside, other=0.0)
        if PIXELS == 1:
            total = multiply_add(g, tl.trans(value), total, PRECISION, WIDEN)
        else:
            total = multiply_add(tl.trans(g), value, total, PRECISION, WIDEN)
        if bias_sums is not None:  # noqa: SIM102 (decided when compiled)
            if column_tile == 0:
                bias += tl.sum(g.to(acc), axis=PIXELS)
    place = part * weight_numel + (out_channel * weight_k)[:, None]
    place += (channel * weight_c + tap_y * weight_y + tap_x * weight_x)[None, :]
    mask = row_exists[:, None] & column_exists[None, :]
    tl.store(weight_sums + place, total.to(weight_sums.dtype.element_ty), mask=mask)
    if bias_sums is not None:  # noqa: SIM102 (decided when compiled)
        if column_tile == 0:
            bias_place = bias_sums + part * out_channels + out_channel
            tl.store(bias_place, bias.to(bias_sums.dtype.element_ty), mask=row_exists)
