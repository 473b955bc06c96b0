"""Max pooling: schemas, autograd and public function.

Kernels: ``pooling/max_pool2d`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the geometry is in
 ``csrc/math/pooling.h``.

Tensors of the raw ops are contiguous, [N, H, W, C] with ``channels_last`` and else [N, C, H, W] or
[C, H, W]. ``argmax`` holds the position in its window of each maximum, row by row: one byte, or int32 when
the window has more than 255 positions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..layouts import (
    image_size,
    in_memory_order,
    in_torch_order,
    lies_channels_last,
    resized,
    result_in_torch_order,
)
from ..reference import pooling as reference
from .tools.autograd import apply
from .tools.windows import IntOrPair, Pair, check_image, check_windows, output_sizes, pair, stride_pair

__all__ = ["max_pool2d"]

_MAX_BYTE_POSITIONS = 255


class Windows(NamedTuple):
    """The geometry, in the order in which the raw ops take it."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool
    channels_last: bool


def argmax_dtype(kernel: Pair) -> torch.dtype:
    """The dtype of positions in a window of this size."""
    return torch.uint8 if kernel[0] * kernel[1] <= _MAX_BYTE_POSITIONS else torch.int32


def _fake_forward(input: Tensor, *windows: Any) -> tuple[Tensor, Tensor]:
    kernel, stride, padding, dilation, ceil_mode, channels_last = windows
    size = image_size(input.shape, channels_last)
    out = output_sizes(size, kernel, stride, padding, dilation, ceil_mode)
    shape = resized(input.shape, out, channels_last)
    return input.new_empty(shape), input.new_empty(shape, dtype=argmax_dtype(kernel))


def _fake_backward(grad_output: Tensor, argmax: Tensor, input_size: Pair, *windows: Any) -> Tensor:
    return grad_output.new_empty(resized(grad_output.shape, input_size, windows[-1]))


def _fake_indices(argmax: Tensor, input_size: Pair, *windows: Any) -> Tensor:
    return torch.empty_like(argmax, dtype=torch.int64)


_WINDOWS = "int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool channels_last"
_library.define(
    "max_pool2d_forward", f"(Tensor input, {_WINDOWS}) -> (Tensor output, Tensor argmax)", _fake_forward
)
_library.define(
    "max_pool2d_backward",
    f"(Tensor grad_output, Tensor argmax, SymInt[] input_size, {_WINDOWS}) -> Tensor",
    _fake_backward,
)
_library.define(
    "max_pool2d_indices", f"(Tensor argmax, SymInt[] input_size, {_WINDOWS}) -> Tensor", _fake_indices
)


def _taps_exist(size: int, kernel: int, stride: int, padding: int, dilation: int, out: int) -> Tensor:
    """Whether each window along an axis has a tap inside the image; with dilation, one may have none."""
    start = torch.arange(out) * stride - padding
    return (
        start + (-start).clamp(min=0).add(dilation - 1).div(dilation, rounding_mode="floor") * dilation < size
    )


class _Scatter(torch.autograd.Function):
    """The gradient of the input from that of the output: linear, and the transpose of :class:`_Gather`.

    ``argmax`` is in memory order, the other tensors are in torch's.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, argmax: Tensor, size: Pair, windows: Windows, ops: SimpleNamespace
    ) -> Tensor:
        ctx.save_for_backward(argmax)
        ctx.rest = size, windows, ops
        grad = in_memory_order(grad, windows.channels_last)
        return in_torch_order(ops.max_pool2d_backward(grad, argmax, size, *windows), windows.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return apply(_Gather, grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


class _Gather(torch.autograd.Function):
    """Of an input-sized tensor, the elements at the maxima; zero for windows without any element."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, argmax: Tensor, size: Pair, windows: Windows, ops: SimpleNamespace
    ) -> Tensor:
        ctx.save_for_backward(argmax)
        ctx.rest = size, windows, ops
        indices = ops.max_pool2d_indices(argmax, size, *windows)
        indices = in_torch_order(indices, windows.channels_last)
        kernel, stride, padding, dilation = windows[:4]
        exists = [
            _taps_exist(size[i], kernel[i], stride[i], padding[i], dilation[i], indices.shape[i - 2])
            for i in range(2)
        ]
        mask = (exists[0][:, None] & exists[1]).to(input.device)
        inside = indices.clamp(0, size[0] * size[1] - 1).flatten(-2)
        picked = input.reshape(*input.shape[:-2], -1).gather(-1, inside).view(indices.shape)
        return torch.where(mask, picked, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return apply(_Scatter, grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


class MaxPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, windows: Windows, with_indices: bool, ops: SimpleNamespace
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.size, ctx.windows, ctx.ops = image_size(input.shape, False), windows, ops
        result, argmax = _forward(input, windows, with_indices, ops)
        ctx.save_for_backward(argmax)
        if with_indices:
            ctx.mark_non_differentiable(result[1])
            ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if grad is None:
            return None, None, None, None
        (argmax,) = ctx.saved_tensors
        windows = ctx.windows
        if torch.is_grad_enabled():
            return apply(_Scatter, grad, argmax, ctx.size, windows, ctx.ops), None, None, None
        grad = in_memory_order(grad, windows.channels_last)
        grad = ctx.ops.max_pool2d_backward(grad, argmax, ctx.size, *windows)
        return in_torch_order(grad, windows.channels_last), None, None, None


def _forward(input: Tensor, windows: Windows, with_indices: bool, ops: SimpleNamespace) -> tuple[Any, Tensor]:
    """The result, a pair if there are indices, and where in its window each maximum is, in memory order."""
    last = windows.channels_last
    output, argmax = ops.max_pool2d_forward(in_memory_order(input, last), *windows)
    output = result_in_torch_order(output, last)
    if not with_indices:
        return output, argmax
    indices = ops.max_pool2d_indices(argmax, image_size(input.shape, False), *windows)
    return (output, result_in_torch_order(indices, last)), argmax


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Maxima of windows of an image, as :func:`torch.nn.functional.max_pool2d`.

    Ties go to the first element of the window, NaN is larger than everything. Backward is a gather: the same
    bits on every run.

    Args:
        input: tensor of shape (C, H, W) or (N, C, H, W), in any memory format.
        kernel_size: height and width of a window, or one number for both, as for the other sizes.
        stride: distance of windows; None is ``kernel_size``.
        padding: elements of -inf around the image, at most half of ``kernel_size``.
        dilation: distance of the elements of a window.
        ceil_mode: also have windows that hang over the end, if they begin before it.
        return_indices: also return, as int64, where in its H x W plane each maximum is.

    Returns:
        Tensor of the dtype and memory format of ``input``; with ``return_indices`` a pair.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value. torch's own op, which serves small
            tensors, raises its own errors.
    """
    name = "max_pool2d"
    if isinstance(input, Tensor) and backends.prefers_torch(name, input):
        function: Any = torch.nn.functional.max_pool2d  # its stub knows no bool that is decided at run time
        return function(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    check_image(name, input)
    kernel = pair(name, "kernel_size", kernel_size, 1)
    strides = stride_pair(name, stride, kernel)
    paddings = pair(name, "padding", padding, 0)
    dilations = pair(name, "dilation", dilation, 1)
    check_windows(name, input.shape[-2:], kernel, strides, paddings, dilations, ceil_mode)
    ops = backends.resolve(input)
    if ops is None:
        return reference.max_pool2d(input, kernel, strides, paddings, dilations, ceil_mode, return_indices)
    channels_last = lies_channels_last(input)
    windows = Windows(kernel, strides, paddings, dilations, ceil_mode, channels_last)
    if input.requires_grad and torch.is_grad_enabled():
        return apply(MaxPool2dFunction, input, windows, return_indices, ops)
    return _forward(input, windows, return_indices, ops)[0]
