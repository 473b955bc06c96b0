"""Average pooling, with sliding and with adaptive windows; geometry as in csrc/math/pooling.h."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from pyops._library import implement

from ..tools.checks import check_floating
from ..tools.launch import cdiv, launch, next_power_of_2
from ..tools.math import divide
from .windows import (
    Axis,
    Image,
    Sides,
    check_pair,
    check_size,
    first_window,
    inner_of,
    locate,
    tiles,
    windows,
)


def _check_divisor(divisor: int | None, op: str) -> int:
    if divisor == 0:
        raise RuntimeError(f"{op}: divisor_override must not be 0")
    return divisor or 0


def _adaptive(input_size: Sequence[int], output_size: Sequence[int], op: str) -> tuple[Axis, Axis]:
    check_pair(input_size, op, "input_size", 1)
    check_pair(output_size, op, "output_size", 0)
    # The kernel is the longest window.
    axes = [
        Axis(n, out, _longest(n, out), 1, 0, 1, most=(n + 1) * (out + 1))
        for n, out in zip(input_size, output_size, strict=True)
    ]
    return axes[0], axes[1]


def _longest(size: int, groups: int) -> int:
    """An upper bound of the elements of ``size`` that one of ``groups`` overlapping groups holds."""
    return min(size, cdiv(size, groups) + 1) if groups else 0


def _forward(
    input: torch.Tensor, image: Image, axes: tuple[Axis, Axis], divisor: int, **flags: Any
) -> torch.Tensor:
    out = image.resized(axes[0].out, axes[1].out)
    output = input.new_empty(out.shape)
    whole = all(axis.out == 1 and axis.padding == 0 and axis.kernel >= axis.size for axis in axes)
    if out.elements > 0 and whole and image.inner == 1:
        _average_planes(input, output, image, divisor or image.height * image.width)
    elif out.elements > 0:
        programs, sizes, meta = tiles(out, axes, input.element_size())
        launch(
            _forward_kernel, programs, input.device, input, output, *sizes, image.sides, out.sides,
            DOWN=axes[0].window, ACROSS=axes[1].window, DIVISOR=divisor, **flags, **meta,
        )  # fmt: skip
    return output


def _average_planes(input: torch.Tensor, output: torch.Tensor, image: Image, divisor: int) -> None:
    """One window over all of each plane, whose elements are neighbours."""
    elements = image.height * image.width
    block_c = min(next_power_of_2(elements), 1024)
    block_r = max(1, 1024 // block_c)
    launch(
        _planes_kernel, cdiv(image.outer, block_r), input.device, input, output, image.outer, elements,
        divisor, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def _backward(
    grad_output: torch.Tensor, out: Image, axes: tuple[Axis, Axis], divisor: int, **flags: Any
) -> torch.Tensor:
    image = out.resized(axes[0].size, axes[1].size)
    grad_input = grad_output.new_empty(image.shape)
    if image.elements > 0:
        programs, sizes, meta = tiles(image, axes, grad_output.element_size())
        # Windows that hold an element, at most.
        spans = [
            _longest(axis.out, axis.size) if flags["ADAPTIVE"] else (axis.kernel - 1) // axis.stride + 1
            for axis in axes
        ]
        launch(
            _backward_kernel, programs, grad_output.device, grad_output, grad_input, *sizes,
            image.sides, out.sides, DOWN=axes[0].window, ACROSS=axes[1].window, SPANS=Sides(*spans),
            DIVISOR=divisor, **flags, **meta,
        )  # fmt: skip
    return grad_input


@implement("pyops_triton", "avg_pool2d_forward")
def avg_pool2d_forward(
    input: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> torch.Tensor:
    """Means of the windows of ``input``."""
    op = "avg_pool2d_forward"
    check_floating(input, op, "input")
    image = Image.of(input, channels_last, op, "input")
    axes = windows(op, (image.height, image.width), kernel, stride, padding, (1, 1), ceil_mode)
    divisor = _check_divisor(divisor_override, op)
    return _forward(input, image, axes, divisor, ADAPTIVE=False, COUNT_PADDING=count_include_pad)


@implement("pyops_triton", "avg_pool2d_backward")
def avg_pool2d_backward(
    grad_output: torch.Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> torch.Tensor:
    """Gradient of avg_pool2d_forward's input, of height and width ``input_size``."""
    op = "avg_pool2d_backward"
    check_floating(grad_output, op, "grad_output")
    out = Image.of(grad_output, channels_last, op, "grad_output")
    axes = windows(op, input_size, kernel, stride, padding, (1, 1), ceil_mode)
    check_size(out, axes[0].out, axes[1].out, op, "grad_output")
    divisor = _check_divisor(divisor_override, op)
    return _backward(grad_output, out, axes, divisor, ADAPTIVE=False, COUNT_PADDING=count_include_pad)


@implement("pyops_triton", "adaptive_avg_pool2d_forward")
def adaptive_avg_pool2d_forward(
    input: torch.Tensor, output_size: Sequence[int], channels_last: bool
) -> torch.Tensor:
    """Means of ``output_size`` windows that divide ``input`` evenly."""
    op = "adaptive_avg_pool2d_forward"
    check_floating(input, op, "input")
    image = Image.of(input, channels_last, op, "input")
    axes = _adaptive((image.height, image.width), output_size, op)
    return _forward(input, image, axes, 0, ADAPTIVE=True, COUNT_PADDING=False)


@implement("pyops_triton", "adaptive_avg_pool2d_backward")
def adaptive_avg_pool2d_backward(
    grad_output: torch.Tensor, input_size: Sequence[int], channels_last: bool
) -> torch.Tensor:
    """Gradient of adaptive_avg_pool2d_forward's input, of height and width ``input_size``."""
    op = "adaptive_avg_pool2d_backward"
    check_floating(grad_output, op, "grad_output")
    out = Image.of(grad_output, channels_last, op, "grad_output")
    axes = _adaptive(input_size, (out.height, out.width), op)
    return _backward(grad_output, out, axes, 0, ADAPTIVE=True, COUNT_PADDING=False)


@triton.jit
def _elements(window, size, out, WINDOW: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr):
    """First element and end of a window, and what it contributes to the divisor."""
    if ADAPTIVE:
        first = window * size // out
        end = ((window + 1) * size + out - 1) // out
        count = end - first
    else:
        start = window * WINDOW.stride - WINDOW.padding
        first = tl.maximum(start, 0)
        end = tl.minimum(start + WINDOW.kernel, size)
        whole = tl.minimum(start + WINDOW.kernel, size + WINDOW.padding) - start
        count = whole if COUNT_PADDING else end - first
    return first, end, count


@triton.jit
def _divisor(count_h, count_w, DIVISOR: tl.constexpr, dtype: tl.constexpr):
    """``DIVISOR`` or, if that is 0, what the window counts."""
    if DIVISOR:
        return tl.full([], DIVISOR, dtype)
    else:
        return (count_h * count_w).to(dtype)


@triton.jit(do_not_specialize=["rows", "aligned_width", "aligned_inner"])
def _forward_kernel(
    x_ptr, y_ptr, rows, row_height, aligned_width, aligned_inner, input, output,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, DIVISOR: tl.constexpr, ADAPTIVE: tl.constexpr,
    COUNT_PADDING: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Writes the mean of each window: its sum over ``DIVISOR`` or, if that is 0, over what the window counts.

    ``rows``, ``row_height``, ``aligned_width`` and ``aligned_inner``: the output's sizes (see windows.py).
    ``input`` and ``output``: the sides of both. ``DOWN`` and ``ACROSS``: the Windows of the axes.
    """
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(rows, row_height, aligned_width, aligned_inner, TILING)
    inner = inner_of(aligned_inner, TILING)
    top, bottom, count_h = _elements(row, input.height, output.height, DOWN, ADAPTIVE, COUNT_PADDING)
    left, right, count_w = _elements(column, input.width, output.width, ACROSS, ADAPTIVE, COUNT_PADDING)
    total = tl.full([TILING.rows, TILING.columns], 0.0, acc)
    for i in tl.range(0, DOWN.kernel):
        y = top + i
        row_start = (image * input.height + y) * input.width
        row_total = tl.full([TILING.rows, TILING.columns], 0.0, acc)
        for j in tl.range(0, ACROSS.kernel):
            x = left + j
            inside = exists & (y < bottom) & (x < right)
            row_total += tl.load(x_ptr + (row_start + x) * inner + channel, mask=inside, other=0.0).to(acc)
        total += row_total
    tl.store(y_ptr + at, divide(total, _divisor(count_h, count_w, DIVISOR, acc)), mask=exists)


@triton.jit(do_not_specialize=["planes"])
def _planes_kernel(
    x_ptr, y_ptr, planes: tl.int64, elements, divisor: tl.int64, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Means of whole planes, ``BLOCK_R`` planes at a time."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    plane = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_C)
    start = x_ptr + plane[:, None] * elements
    total = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for first in tl.range(0, elements, BLOCK_C):
        mask = (plane < planes)[:, None] & (first + lane < elements)[None, :]
        total += tl.load(start + (first + lane)[None, :], mask=mask, other=0.0).to(acc)
    mean = divide(tl.sum(total, axis=1), (tl.zeros([BLOCK_R], tl.int64) + divisor).to(acc))
    tl.store(y_ptr + plane, mean, mask=plane < planes)


@triton.jit(do_not_specialize=["rows", "aligned_width", "aligned_inner"])
def _backward_kernel(
    grad_ptr, dx_ptr, rows, row_height, aligned_width, aligned_inner, input, output,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, SPANS: tl.constexpr, DIVISOR: tl.constexpr,
    ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Adds up for each element the gradients of its windows, over ``DIVISOR`` or what each window counts.

    ``rows``, ``row_height``, ``aligned_width`` and ``aligned_inner``: the input's sizes (see windows.py).
    ``input`` and ``output``: the sides of both. ``DOWN`` and ``ACROSS``: the Windows of the axes, at most
    ``SPANS`` of which hold an element.
    """
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(rows, row_height, aligned_width, aligned_inner, TILING)
    inner = inner_of(aligned_inner, TILING)
    if ADAPTIVE:
        top, left = row * output.height // input.height, column * output.width // input.width
    else:
        top = first_window(row, DOWN.stride, DOWN.kernel - 1 - DOWN.padding)
        left = first_window(column, ACROSS.stride, ACROSS.kernel - 1 - ACROSS.padding)
    total = tl.full([TILING.rows, TILING.columns], 0.0, acc)
    for i in tl.range(0, SPANS.height):
        window_h = top + i
        top_row, end_row, count_h = _elements(
            window_h, input.height, output.height, DOWN, ADAPTIVE, COUNT_PADDING
        )
        row_holds = exists & (window_h < output.height) & (row >= top_row) & (row < end_row)
        row_start = (image * output.height + window_h) * output.width
        for j in tl.range(0, SPANS.width):
            window_w = left + j
            first, end, count_w = _elements(
                window_w, input.width, output.width, ACROSS, ADAPTIVE, COUNT_PADDING
            )
            holds = row_holds & (window_w < output.width) & (column >= first) & (column < end)
            grad = tl.load(grad_ptr + (row_start + window_w) * inner + channel, mask=holds, other=0.0)
            divisor = _divisor(count_h, count_w, DIVISOR, acc)
            total += tl.where(holds, divide(grad.to(acc), divisor), 0.0)
    tl.store(dx_ptr + at, total, mask=exists)
