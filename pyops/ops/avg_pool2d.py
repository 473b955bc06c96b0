"""Average pooling, with sliding and with adaptive windows: schemas, autograd and public functions.

Kernels: ``pooling/avg_pool2d`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the geometry is in
 ``csrc/math/pooling.h``.

Tensors of the raw ops are contiguous, [N, H, W, C] with ``channels_last`` and else [N, C, H, W] or
[C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..layouts import image_size, in_memory_order, lies_channels_last, resized, result_in_torch_order
from ..reference import pooling as reference
from .tools.autograd import apply
from .tools.checks import ArgumentError, as_integer
from .tools.windows import IntOrPair, Pair, check_image, check_windows, output_sizes, pair, stride_pair

__all__ = ["adaptive_avg_pool2d", "avg_pool2d"]

_NO_DILATION = (1, 1)


def _fake_forward(
    input: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool, *rest: Any
) -> Tensor:
    channels_last = rest[-1]
    size = image_size(input.shape, channels_last)
    out = output_sizes(size, kernel, stride, padding, _NO_DILATION, ceil_mode)
    return input.new_empty(resized(input.shape, out, channels_last))


def _fake_resized(tensor: Tensor, size: Pair, *rest: Any) -> Tensor:
    return tensor.new_empty(resized(tensor.shape, size, rest[-1]))


_WINDOWS = (
    "int[] kernel, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
    "int? divisor_override, bool channels_last"
)
_library.define("avg_pool2d_forward", f"(Tensor input, {_WINDOWS}) -> Tensor", _fake_forward)
_library.define(
    "avg_pool2d_backward", f"(Tensor grad_output, SymInt[] input_size, {_WINDOWS}) -> Tensor", _fake_resized
)
_library.define(
    "adaptive_avg_pool2d_forward",
    "(Tensor input, SymInt[] output_size, bool channels_last) -> Tensor",
    _fake_resized,
)
_library.define(
    "adaptive_avg_pool2d_backward",
    "(Tensor grad_output, SymInt[] input_size, bool channels_last) -> Tensor",
    _fake_resized,
)

_Op = Callable[..., Tensor]


class AverageFunction(torch.autograd.Function):
    """A linear map of images, given as the calls that do it and its transpose, in memory order.

    ``forward_options`` and ``backward_options`` end with whether tensors are channels_last. Both ways are
    this class, so that derivatives of every order are exact.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        forward_op: _Op,
        forward_options: tuple[Any, ...],
        backward_op: _Op,
        backward_options: tuple[Any, ...],
    ) -> Tensor:
        ctx.transposed = backward_op, backward_options, forward_op, forward_options
        return _in_memory_order(input, forward_op, forward_options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            return apply(AverageFunction, grad, *ctx.transposed), None, None, None, None
        return _in_memory_order(grad, *ctx.transposed[:2]), None, None, None, None


def _in_memory_order(image: Tensor, op: _Op, options: tuple[Any, ...]) -> Tensor:
    channels_last = options[-1]
    return result_in_torch_order(op(in_memory_order(image, channels_last), *options), channels_last)


def _apply(input: Tensor, forward_op: _Op, backward_op: _Op, first: tuple, rest: tuple) -> Tensor:
    """``forward_op(input, *first, *rest)`` on ``input`` as it lies, with its gradient if one is needed."""
    if input.requires_grad and torch.is_grad_enabled():
        size = list(image_size(input.shape, False))
        return apply(AverageFunction, input, forward_op, (*first, *rest), backward_op, (size, *rest))
    return _in_memory_order(input, forward_op, (*first, *rest))


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    r"""Means of windows of an image, as :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: tensor of shape (C, H, W) or (N, C, H, W), in any memory format.
        kernel_size: height and width of a window, or one number for both, as for the other sizes.
        stride: distance of windows; None is ``kernel_size``.
        padding: zeros around the image, at most half of ``kernel_size``.
        ceil_mode: also have windows that hang over the end, if they begin before it.
        count_include_pad: whether the divisor counts padding (never what lies behind it in ceil mode).
        divisor_override: divide by this instead of by the number of elements.

    Returns:
        Tensor of the dtype and memory format of ``input``.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value. torch's own op, which serves small
            tensors, raises its own errors.
    """
    name = "avg_pool2d"
    if isinstance(input, Tensor) and backends.prefers_torch(name, input):
        return torch.nn.functional.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    check_image(name, input)
    kernel = pair(name, "kernel_size", kernel_size, 1)
    strides = stride_pair(name, stride, kernel)
    paddings = pair(name, "padding", padding, 0)
    check_windows(name, input.shape[-2:], kernel, strides, paddings, _NO_DILATION, ceil_mode)
    divisor_override = None if divisor_override is None else as_integer(divisor_override) or 0
    if divisor_override == 0:
        raise ArgumentError(
            f"{name}: divisor_override must be None or an integer other than 0, got {divisor_override!r}"
        )
    ops = backends.resolve(input)
    options = (ceil_mode, count_include_pad, divisor_override)
    if ops is None:
        return reference.avg_pool2d(input, kernel, strides, paddings, *options)
    channels_last = lies_channels_last(input)
    rest = (kernel, strides, paddings, *options, channels_last)
    return _apply(input, ops.avg_pool2d_forward, ops.avg_pool2d_backward, (), rest)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    r"""Means of windows that divide an image evenly, as :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Window o of n along an axis of size s holds elements floor(o s / n) to ceil((o + 1) s / n) - 1. With an
    output size of 1 this is the global average.

    Args:
        input: tensor of shape (C, H, W) or (N, C, H, W), in any memory format.
        output_size: height and width of the output, or one number for both; None keeps the input's.

    Returns:
        Tensor of the dtype and memory format of ``input``.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value. torch's own op, which serves small
            tensors, raises its own errors.
    """
    name = "adaptive_avg_pool2d"
    if isinstance(input, Tensor) and backends.prefers_torch(name, input):
        return torch.nn.functional.adaptive_avg_pool2d(input, output_size)  # type: ignore[arg-type]
    check_image(name, input, channels_may_be_empty=True)
    sizes = output_size if isinstance(output_size, (tuple, list)) else [output_size, output_size]
    given = [input.shape[i - 2] if s is None else s for i, s in enumerate(sizes)]
    if len(given) != 2:
        raise ArgumentError(f"{name}: output_size must be one number or two, got {output_size!r}")
    size = pair(name, "output_size", given, 0)
    ops = backends.resolve(input)
    if ops is None or 0 in size:  # of an output without elements torch refuses the gradient
        return reference.adaptive_avg_pool2d(input, size)
    channels_last = lies_channels_last(input)
    forward, backward = ops.adaptive_avg_pool2d_forward, ops.adaptive_avg_pool2d_backward
    return _apply(input, forward, backward, (size,), (channels_last,))
