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
from .windows import Axis, Image, check_pair, check_size, first_window, locate, tiles, windows


def _check_divisor(divisor: int | None, op: str) -> int:
    if divisor == 0:
        raise RuntimeError(f"{op}: divisor_override must not be 0")
    return divisor or 0


def _adaptive(input_size: Sequence[int], output_size: Sequence[int], op: str) -> tuple[Axis, Axis]:
    check_pair(input_size, op, "input_size", 1)
    check_pair(output_size, op, "output_size", 0)
    # The kernel is the longest window.
    axes = [Axis(n, out, _longest(n, out), 1, 0, 1) for n, out in zip(input_size, output_size, strict=True)]
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
        programs, sizes, meta = tiles(out)
        launch(
            _forward_kernel, programs, input.device, input, output, *sizes, *axes[0].args[:5],
            *axes[1].args[:5], divisor, **flags, **meta,
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
        programs, sizes, meta = tiles(image)
        # Windows that hold an element, at most.
        spans = [
            _longest(axis.out, axis.size) if flags["ADAPTIVE"] else (axis.kernel - 1) // axis.stride + 1
            for axis in axes
        ]
        launch(
            _backward_kernel, programs, grad_output.device, grad_output, grad_input, *sizes,
            *axes[0].args[:5], *axes[1].args[:5], *spans, divisor, **flags, **meta,
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
def _elements(
    window, size, out, kernel, stride, padding, ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr
):
    """First element and end of a window, and what it contributes to the divisor."""
    if ADAPTIVE:
        first = window * size // out
        end = ((window + 1) * size + out - 1) // out
        count = end - first
    else:
        start = window * stride - padding
        first = tl.maximum(start, 0)
        end = tl.minimum(start + kernel, size)
        count = tl.minimum(start + kernel, size + padding) - start if COUNT_PADDING else end - first
    return first, end, count


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, y_ptr, rows: tl.int64, row_height: tl.int64, columns: tl.int64, inner: tl.int64,
    in_h: tl.int64, out_h: tl.int64, kernel_h, stride_h: tl.int64, pad_h: tl.int64,
    in_w: tl.int64, out_w: tl.int64, kernel_w, stride_w: tl.int64, pad_w: tl.int64, divisor: tl.int64,
    ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr,
    ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes the mean of each window: its sum over ``divisor`` or, if that is 0, over what the window counts.

    ``rows``, ``row_height``, ``columns`` and ``inner``: the output's sizes (see windows.py). Along the
    height, input and output have ``in_h`` and ``out_h`` elements. Windows of ``kernel_h`` elements
    begin ``pad_h`` before the input, ``stride_h`` apart. The width has the same, with ``_w``.
    """
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(
        rows, row_height, columns, inner, ONE_CHANNEL, BLOCK_R, BLOCK_C
    )
    top, bottom, count_h = _elements(row, in_h, out_h, kernel_h, stride_h, pad_h, ADAPTIVE, COUNT_PADDING)
    left, right, count_w = _elements(column, in_w, out_w, kernel_w, stride_w, pad_w, ADAPTIVE, COUNT_PADDING)
    total = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for i in tl.range(0, kernel_h):
        y = top + i
        row_start = (image * in_h + y) * in_w
        row_total = tl.zeros([BLOCK_R, BLOCK_C], acc)
        for j in tl.range(0, kernel_w):
            x = left + j
            inside = exists & (y < bottom) & (x < right)
            row_total += tl.load(x_ptr + (row_start + x) * inner + channel, mask=inside, other=0.0).to(acc)
        total += row_total
    count = tl.where(divisor != 0, divisor, count_h * count_w)
    tl.store(y_ptr + at, divide(total, count.to(acc)), mask=exists)


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


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_ptr, dx_ptr, rows: tl.int64, row_height: tl.int64, columns: tl.int64, inner: tl.int64,
    in_h: tl.int64, out_h: tl.int64, kernel_h: tl.int64, stride_h: tl.int64, pad_h: tl.int64,
    in_w: tl.int64, out_w: tl.int64, kernel_w: tl.int64, stride_w: tl.int64, pad_w: tl.int64,
    span_h, span_w, divisor: tl.int64, ADAPTIVE: tl.constexpr, COUNT_PADDING: tl.constexpr,
    ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds up for each element the gradients of its windows, over ``divisor`` or what each window counts.

    ``rows``, ``row_height``, ``columns`` and ``inner``: the input's sizes (see windows.py). Along the
    height, input and output have ``in_h`` and ``out_h`` elements. Windows of ``kernel_h`` elements
    begin ``pad_h`` before the input, ``stride_h`` apart. The width has the same, with ``_w``.
    At most ``span_h`` times ``span_w`` windows hold an element.
    """
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(
        rows, row_height, columns, inner, ONE_CHANNEL, BLOCK_R, BLOCK_C
    )
    if ADAPTIVE:
        top, left = row * out_h // in_h, column * out_w // in_w
    else:
        top = first_window(row, stride_h, kernel_h - 1 - pad_h)
        left = first_window(column, stride_w, kernel_w - 1 - pad_w)
    total = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for i in tl.range(0, span_h):
        window_h = top + i
        top_row, end_row, count_h = _elements(
            window_h, in_h, out_h, kernel_h, stride_h, pad_h, ADAPTIVE, COUNT_PADDING
        )
        row_holds = exists & (window_h < out_h) & (row >= top_row) & (row < end_row)
        row_start = (image * out_h + window_h) * out_w
        for j in tl.range(0, span_w):
            window_w = left + j
            first, end, count_w = _elements(
                window_w, in_w, out_w, kernel_w, stride_w, pad_w, ADAPTIVE, COUNT_PADDING
            )
            holds = row_holds & (window_w < out_w) & (column >= first) & (column < end)
            count = tl.where(divisor != 0, divisor, count_h * count_w)
            grad = tl.load(grad_ptr + (row_start + window_w) * inner + channel, mask=holds, other=0.0)
            total += tl.where(holds, divide(grad.to(acc), count.to(acc)), 0.0)
    tl.store(dx_ptr + at, total, mask=exists)
