"""Max pooling; geometry and ties as in csrc/math/pooling.h."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from pyops._library import implement

from ..tools.checks import check_dense, check_floating
from ..tools.launch import launch
from ..tools.math import INFINITY
from .windows import Axis, Image, check_size, first_tap, first_window, locate, tiles, windows

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
        programs, sizes, meta = tiles(out)
        launch(
            _forward_kernel, programs, input.device, input, output, argmax, *sizes,
            *axes[0].args, *axes[1].args, **meta,
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
        programs, sizes, meta = tiles(image)
        # Windows that span an element, at most: a loop bound has to be an argument.
        spans = ((axis.kernel - 1) * axis.dilation // axis.stride + 1 for axis in axes)
        launch(
            _backward_kernel, programs, grad_output.device, grad_output, argmax, grad_input, *sizes,
            *axes[0].args, *axes[1].args, *spans, **meta,
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
        programs, sizes, meta = tiles(out)
        launch(
            _indices_kernel, programs, argmax.device, argmax, indices, *sizes,
            *axes[0].args, *axes[1].args, **meta,
        )  # fmt: skip
    return indices


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, y_ptr, argmax_ptr, rows: tl.int64, row_height: tl.int64, columns: tl.int64, inner: tl.int64,
    in_h: tl.int64, out_h: tl.int64, kernel_h, stride_h: tl.int64, pad_h: tl.int64, dilation_h: tl.int64,
    in_w: tl.int64, out_w: tl.int64, kernel_w, stride_w: tl.int64, pad_w: tl.int64, dilation_w: tl.int64,
    ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes maxima to ``y_ptr``, and their positions in their windows to ``argmax_ptr``.

    ``rows``, ``row_height``, ``columns`` and ``inner``: the output's sizes (see windows.py). Along the
    height, input and output have ``in_h`` and ``out_h`` elements. Windows of ``kernel_h`` elements,
    ``dilation_h`` apart, begin ``pad_h`` before the input, ``stride_h`` apart. The width has the same, with
    ``_w``.
    """
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(
        rows, row_height, columns, inner, ONE_CHANNEL, BLOCK_R, BLOCK_C
    )
    top = row * stride_h - pad_h
    left = column * stride_w - pad_w
    maximum = tl.full([BLOCK_R, BLOCK_C], -INFINITY, acc)
    first = first_tap(top, dilation_h) * kernel_w + first_tap(left, dilation_w)
    position = tl.broadcast_to(first, [BLOCK_R, BLOCK_C]).to(tl.int32)
    for i in tl.range(0, kernel_h):
        y = top + i * dilation_h
        row_inside = exists & (y >= 0) & (y < in_h)
        row_start = (image * in_h + y) * in_w
        for j in tl.range(0, kernel_w):
            x = left + j * dilation_w
            inside = row_inside & (x >= 0) & (x < in_w)
            offset = (row_start + x) * inner + channel
            value = tl.load(x_ptr + offset, mask=inside, other=-INFINITY).to(acc)
            take = (value > maximum) | (value != value)
            maximum = tl.where(take, value, maximum)
            position = tl.where(take, i * kernel_w + j, position)
    tl.store(y_ptr + at, maximum, mask=exists)
    tl.store(argmax_ptr + at, position, mask=exists)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_ptr, argmax_ptr, dx_ptr, rows: tl.int64, row_height: tl.int64, columns: tl.int64, inner: tl.int64,
    in_h: tl.int64, out_h: tl.int64, kernel_h: tl.int64, stride_h: tl.int64, pad_h: tl.int64,
    dilation_h: tl.int64, in_w: tl.int64, out_w: tl.int64, kernel_w: tl.int64, stride_w: tl.int64,
    pad_w: tl.int64, dilation_w: tl.int64, span_h, span_w,
    ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds up for each element the gradients of the windows whose maximum it is.

    ``rows``, ``row_height``, ``columns`` and ``inner``: the input's sizes (see windows.py). Along the
    height, input and output have ``in_h`` and ``out_h`` elements. Windows of ``kernel_h`` elements,
    ``dilation_h`` apart, begin ``pad_h`` before the input, ``stride_h`` apart. The width has the same, with
    ``_w``.
    At most ``span_h`` times ``span_w`` windows span an element.
    """
    acc: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, row, column, channel, at, exists = locate(
        rows, row_height, columns, inner, ONE_CHANNEL, BLOCK_R, BLOCK_C
    )
    top = first_window(row, stride_h, (kernel_h - 1) * dilation_h - pad_h)
    left = first_window(column, stride_w, (kernel_w - 1) * dilation_w - pad_w)
    total = tl.zeros([BLOCK_R, BLOCK_C], acc)
    for i in tl.range(0, span_h):
        window_h = top + i
        distance_h = row + pad_h - window_h * stride_h
        tap_h = distance_h // dilation_h
        row_holds = exists & (window_h < out_h) & (distance_h >= 0) & (tap_h * dilation_h == distance_h)
        row_start = (image * out_h + window_h) * out_w
        for j in tl.range(0, span_w):
            window_w = left + j
            distance_w = column + pad_w - window_w * stride_w
            tap_w = distance_w // dilation_w
            holds = row_holds & (window_w < out_w) & (distance_w >= 0) & (tap_w * dilation_w == distance_w)
            offset = (row_start + window_w) * inner + channel
            position = tl.load(argmax_ptr + offset, mask=holds, other=0)
            wanted = holds & (position == tap_h * kernel_w + tap_w)
            total += tl.load(grad_ptr + offset, mask=wanted, other=0.0).to(acc)
    tl.store(dx_ptr + at, total, mask=exists)


@triton.jit(do_not_specialize=["rows"])
def _indices_kernel(
    argmax_ptr, indices_ptr, rows: tl.int64, row_height: tl.int64, columns: tl.int64, inner: tl.int64,
    in_h: tl.int64, out_h: tl.int64, kernel_h: tl.int64, stride_h: tl.int64, pad_h: tl.int64,
    dilation_h: tl.int64, in_w: tl.int64, out_w: tl.int64, kernel_w: tl.int64, stride_w: tl.int64,
    pad_w: tl.int64, dilation_w: tl.int64,
    ONE_CHANNEL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Turns positions in windows into indices in planes.

    ``rows``, ``row_height``, ``columns`` and ``inner``: the output's sizes (see windows.py). Along the
    height, input and output have ``in_h`` and ``out_h`` elements. Windows of ``kernel_h`` elements,
    ``dilation_h`` apart, begin ``pad_h`` before the input, ``stride_h`` apart. The width has the same, with
    ``_w``.
    """
    _image, row, column, _channel, at, exists = locate(
        rows, row_height, columns, inner, ONE_CHANNEL, BLOCK_R, BLOCK_C
    )
    position = tl.load(argmax_ptr + at, mask=exists, other=0).to(tl.int64)
    tap_h = position // kernel_w
    y = row * stride_h - pad_h + tap_h * dilation_h
    x = column * stride_w - pad_w + (position - tap_h * kernel_w) * dilation_w
    tl.store(indices_ptr + at, y * in_w + x, mask=exists)
