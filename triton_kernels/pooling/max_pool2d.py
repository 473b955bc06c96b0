"""Max pooling; geometry and ties as in csrc/math/pooling.h."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from pyops._library import implement

from ..tools.checks import check_dense, check_floating
from ..tools.launch import launch
from ..tools.math import INFINITY
from .windows import (
    Axis,
    Image,
    Sides,
    check_size,
    first_tap,
    first_window,
    inner_of,
    locate,
    tiles,
    windows,
)

_MAX_BYTE_POSITIONS = 255


def _argmax_dtype(height: Axis, width: Axis) -> torch.dtype:
    return torch.uint8 if height.kernel * width.kernel <= _MAX_BYTE_POSITIONS else torch.int32


def _check_argmax(argmax: torch.Tensor, axes: tuple[Axis, Axis], channels_last: bool, op: str) -> Image:
    check_dense(argmax, op, "argmax", like=argmax, dtype=_argmax_dtype(*axes))
    image = Image.of(argmax, channels_last, op, "argmax")
    check_size(image, axes[0].out, axes[1].out, op, "argmax")
    return image


@implement("pyops_triton", "max_pool2d_forward")
def max_pool2d_forward(
    input: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima of the windows of ``input``, and the position of each in its window."""
    op = "max_pool2d_forward"
    check_floating(input, op, "input")
    image = Image.of(input, channels_last, op, "input")
    axes = windows(op, (image.height, image.width), kernel, stride, padding, dilation, ceil_mode)
    out = image.resized(axes[0].out, axes[1].out)
    output = input.new_empty(out.shape)
    argmax = input.new_empty(out.shape, dtype=_argmax_dtype(*axes))
    if out.elements > 0:
        programs, sizes, meta = tiles(out, axes, input.element_size())
        launch(
            _forward_kernel, programs, input.device, input, output, argmax, *sizes, image.sides,
            DOWN=axes[0].window, ACROSS=axes[1].window, **meta,
        )  # fmt: skip
    return output, argmax


@implement("pyops_triton", "max_pool2d_backward")
def max_pool2d_backward(
    grad_output: torch.Tensor,
    argmax: torch.Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    channels_last: bool,
) -> torch.Tensor:
    """Gradient of max_pool2d_forward's input, of height and width ``input_size``."""
    op = "max_pool2d_backward"
    check_floating(grad_output, op, "grad_output")
    axes = windows(op, input_size, kernel, stride, padding, dilation, ceil_mode)
    out = _check_argmax(argmax, axes, channels_last, op)
    check_dense(grad_output, op, "grad_output", like=argmax, dtype=grad_output.dtype, shape=out.shape)
    image = out.resized(*input_size)
    grad_input = grad_output.new_empty(image.shape)
    if image.elements > 0:
        programs, sizes, meta = tiles(image, axes, grad_output.element_size())
        spans = Sides(*((axis.kernel - 1) * axis.dilation // axis.stride + 1 for axis in axes))
        launch(
            _backward_kernel, programs, grad_output.device, grad_output, argmax, grad_input, *sizes,
            out.sides, DOWN=axes[0].window, ACROSS=axes[1].window, SPANS=spans, **meta,
        )  # fmt: skip
    return grad_input


@implement("pyops_triton", "max_pool2d_indices")
def max_pool2d_indices(
    argmax: torch.Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    channels_last: bool,
) -> torch.Tensor:
    """Where in its plane each maximum is, as int64, from its position in its window."""
    op = "max_pool2d_indices"
    axes = windows(op, input_size, kernel, stride, padding, dilation, ceil_mode)
    out = _check_argmax(argmax, axes, channels_last, op)
    indices = torch.empty_like(argmax, dtype=torch.int64)
    if out.elements > 0:
        programs, sizes, meta = tiles(out, axes, argmax.element_size())
        launch(
            _indices_kernel, programs, argmax.device, argmax, indices, *sizes, Sides(*input_size),
            DOWN=axes[0].window, ACROSS=axes[1].window, **meta,
        )  # fmt: skip
    return indices


@triton.jit(do_not_specialize=["rows", "aligned_width", "aligned_inner"])
def _forward_kernel(
    x_ptr, y_ptr, argmax_ptr, rows, row_height, aligned_width, aligned_inner, input,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Writes maxima to ``y_ptr``, and their positions in their windows to ``argmax_ptr``.

    ``rows``, ``row_height``, ``aligned_width`` and ``aligned_inner``: the output's sizes (see windows.py).
    ``input``: the sides of the input. ``DOWN`` and ``ACROSS``: the Windows of the axes.
    """
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(rows, row_height, aligned_width, aligned_inner, TILING)
    inner = inner_of(aligned_inner, TILING)
    top = row * DOWN.stride - DOWN.padding
    left = column * ACROSS.stride - ACROSS.padding
    maximum = tl.full([TILING.rows, TILING.columns], -INFINITY, acc)
    first = first_tap(top, DOWN.dilation) * ACROSS.kernel + first_tap(left, ACROSS.dilation)
    position = tl.broadcast_to(first, [TILING.rows, TILING.columns]).to(tl.int32)
    for i in tl.range(0, DOWN.kernel):
        y = top + i * DOWN.dilation
        row_inside = exists & (y >= 0) & (y < input.height)
        row_start = (image * input.height + y) * input.width
        for j in tl.range(0, ACROSS.kernel):
            x = left + j * ACROSS.dilation
            inside = row_inside & (x >= 0) & (x < input.width)
            offset = (row_start + x) * inner + channel
            value = tl.load(x_ptr + offset, mask=inside, other=-INFINITY).to(acc)
            take = (value > maximum) | (value != value)
            maximum = tl.where(take, value, maximum)
            position = tl.where(take, i * ACROSS.kernel + j, position)
    tl.store(y_ptr + at, maximum, mask=exists)
    tl.store(argmax_ptr + at, position, mask=exists)


@triton.jit(do_not_specialize=["rows", "aligned_width", "aligned_inner"])
def _backward_kernel(
    grad_ptr, argmax_ptr, dx_ptr, rows, row_height, aligned_width, aligned_inner, output,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, SPANS: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Adds up for each element the gradients of the windows whose maximum it is.

    ``rows``, ``row_height``, ``aligned_width`` and ``aligned_inner``: the input's sizes (see windows.py).
    ``output``: the sides of the output. ``DOWN`` and ``ACROSS``: the Windows of the axes, at most ``SPANS``
    of which span an element.
    """
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(rows, row_height, aligned_width, aligned_inner, TILING)
    inner = inner_of(aligned_inner, TILING)
    top = first_window(row, DOWN.stride, (DOWN.kernel - 1) * DOWN.dilation - DOWN.padding)
    left = first_window(column, ACROSS.stride, (ACROSS.kernel - 1) * ACROSS.dilation - ACROSS.padding)
    total = tl.full([TILING.rows, TILING.columns], 0.0, acc)
    for i in tl.range(0, SPANS.height):
        window_h = top + i
        distance_h = row + DOWN.padding - window_h * DOWN.stride
        tap_h = distance_h // DOWN.dilation
        row_holds = exists & (window_h < output.height) & (distance_h >= 0)
        row_holds &= tap_h * DOWN.dilation == distance_h
        row_start = (image * output.height + window_h) * output.width
        for j in tl.range(0, SPANS.width):
            window_w = left + j
            distance_w = column + ACROSS.padding - window_w * ACROSS.stride
            tap_w = distance_w // ACROSS.dilation
            holds = row_holds & (window_w < output.width) & (distance_w >= 0)
            holds &= tap_w * ACROSS.dilation == distance_w
            offset = (row_start + window_w) * inner + channel
            position = tl.load(argmax_ptr + offset, mask=holds, other=0)
            wanted = holds & (position == tap_h * ACROSS.kernel + tap_w)
            total += tl.load(grad_ptr + offset, mask=wanted, other=0.0).to(acc)
    tl.store(dx_ptr + at, total, mask=exists)


@triton.jit(do_not_specialize=["rows", "aligned_width", "aligned_inner"])
def _indices_kernel(
    argmax_ptr, indices_ptr, rows, row_height, aligned_width, aligned_inner, input,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Turns positions in windows into indices in planes.

    ``rows``, ``row_height``, ``aligned_width`` and ``aligned_inner``: the output's sizes (see windows.py).
    ``input``: the sides of the input. ``DOWN`` and ``ACROSS``: the Windows of the axes.
    """
    _image, row, column, _channel, at, exists = locate(rows, row_height, aligned_width, aligned_inner, TILING)
    position = tl.load(argmax_ptr + at, mask=exists, other=0).to(tl.int32)
    tap_h = position // ACROSS.kernel
    y = row * DOWN.stride - DOWN.padding + tap_h * DOWN.dilation
    x = column * ACROSS.stride - ACROSS.padding + (position - tap_h * ACROSS.kernel) * ACROSS.dilation
    tl.store(indices_ptr + at, y.to(tl.int64) * input.width + x, mask=exists)
