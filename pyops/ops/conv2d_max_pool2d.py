"""Convolution, bias, activation and max pooling in one: schemas, autograd and public function.

Kernels: ``conv2d/conv2d_max_pool2d`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``. The
convolution's output is never written: forward writes the pooled output and one byte for each of its
elements; backward turns the pooled gradient into the convolution's, from which ``conv2d_backward``, without
activation and bias, forms the gradients of input and weight. Where a backend has no kernels, its ``conv2d``
runs, and then its ``max_pool2d``.

The raw ops take ``input`` and ``weight`` as ``conv2d_forward`` does, and all tensors of the output's shape
in one memory format: channels_last where input or weight is, by the strides, else contiguous. ``grad_conv``
has the format of ``argmax``.

``conv2d_max_pool2d_forward``
    The activation is applied to every element before the maximum. ``argmax`` is, as ``max_pool2d``'s, the
    position in the window, row by row, and ``saved`` the activation's input there, in the tensors' dtype;
    each is empty unless ``save_argmax`` or ``save_input_of_activation``.
    ``argmax`` is 255 (``NO_GRADIENT``) where no gradient passes: for ReLU where the maximum is at most 0
    (that is all its derivative needs), and for windows without any element, which dilation makes possible.
    A window has at most 255 elements, so no position is 255.

``conv2d_max_pool2d_backward``
    ``conv_size`` is height and width of the convolution's output. Each element of ``grad_conv`` is the sum of
    the gradients whose maximum it is, in the order of the windows, times the activation's derivative at
    ``saved``: the activation's output with ``saved_is_output``, else its input; it is not given for identity
    and ReLU. ``grad_bias`` sums, over images and windows, what passes (in float32, float64 for float64); it
    is empty unless ``needs_bias``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, RELU, Activation, parse
from ..layouts import dense, empty_image, is_channels_last, no_view
from ..reference import conv2d_max_pool2d as reference
from .conv2d import conv2d, for_kernels
from .max_pool2d import max_pool2d
from .tools.autograd import apply, differentiable_gradients
from .tools.checks import check_floating
from .tools.convolution import Geometry, output_shape, prepare
from .tools.kept_output import KeptOutput
from .tools.windows import IntOrPair, Pair, check_windows, output_sizes, pair, stride_pair

__all__ = ["conv2d_max_pool2d"]

#: In ``argmax``: no element of the window gets a gradient.
NO_GRADIENT = 255


class Pool(NamedTuple):
    """The windows, in the order in which the raw ops take them."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    pool_kernel: Pair,
    pool_stride: Pair,
    pool_padding: Pair,
    pool_dilation: Pair,
    ceil_mode: bool,
    save_argmax: bool,
    save_input_of_activation: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, *size = output_shape(input, weight, stride, padding, dilation)
    pooled = output_sizes(size, pool_kernel, pool_stride, pool_padding, pool_dilation, ceil_mode)
    shape = [images, channels, *pooled]
    output = empty_image(input, shape, is_channels_last(input) or is_channels_last(weight))
    argmax, none = torch.empty_like(output, dtype=torch.uint8), input.new_empty((0,))
    return (
        output,
        argmax if save_argmax else none.to(torch.uint8),
        torch.empty_like(output) if save_input_of_activation else none,
    )


def _fake_backward(
    grad_output: Tensor, argmax: Tensor, saved: Tensor | None, conv_size: Sequence[int], *options: Any
) -> tuple[Tensor, Tensor]:
    images, channels = grad_output.shape[:2]
    grad_conv = empty_image(grad_output, [images, channels, *conv_size], is_channels_last(argmax))
    return grad_conv, grad_output.new_empty((channels if options[-1] else 0,))


_WINDOWS = "int[] pool_kernel, int[] pool_stride, int[] pool_padding, int[] pool_dilation, bool ceil_mode, "
_library.define(
    "conv2d_max_pool2d_forward",
    "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
    + f"{ACTIVATION_SCHEMA}, "
    + _WINDOWS
    + "bool save_argmax, bool save_input_of_activation) -> (Tensor output, Tensor argmax, Tensor saved)",
    _fake_forward,
)
_library.define(
    "conv2d_max_pool2d_backward",
    "(Tensor grad_output, Tensor argmax, Tensor? saved, SymInt[] conv_size, "
    + f"{ACTIVATION_SCHEMA}, "
    + "bool saved_is_output, "
    + _WINDOWS
    + "bool needs_bias) -> (Tensor grad_conv, Tensor grad_bias)",
    _fake_backward,
)


class Conv2dMaxPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        activation: Activation,
        pool: Pool,
        ops: SimpleNamespace,
    ) -> Tensor:
        keeps_output = activation.keeps_output(input.dtype)
        output, argmax, saved = ops.conv2d_max_pool2d_forward(
            input, weight, bias, *geometry, *activation, *pool, True, not keeps_output
        )
        output = no_view(output) if is_channels_last(output) else output
        kept = None
        if activation.kind in (IDENTITY, RELU):  # argmax tells all
            saved = None
        elif keeps_output and torch.compiler.is_compiling():
            saved = output
        elif keeps_output:  # max_pool2d keeps no output, so that a caller may change it
            saved, kept = output.data, KeptOutput(output)
        ctx.save_for_backward(input, weight, bias, argmax, saved)
        ctx.options, ctx.kept = (geometry, activation, pool, keeps_output, ops), kept
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, bias, argmax, saved = ctx.saved_tensors
        geometry, activation, pool, keeps_output, ops = ctx.options
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            formula = partial(_formula, (input, weight, bias), geometry, activation, pool)
            wanted = tuple(t for t, n in zip((input, weight, bias), needs, strict=True) if n)
            found = iter(differentiable_gradients(formula, wanted, (grad,)))
            return (*(next(found) if n else None for n in needs), None, None, None, None)
        if ctx.kept is not None and ctx.kept.was_changed():
            options = (*geometry, *activation, *pool, True, False)
            saved = ops.conv2d_max_pool2d_forward(input, weight, bias, *options)[0]
        conv_size = output_shape(input, weight, *geometry[:3])[2:]
        grad_conv, grad_bias = ops.conv2d_max_pool2d_backward(
            dense(grad, is_channels_last(argmax)), argmax, saved, conv_size,
            *activation, keeps_output, *pool, needs[2],
        )  # fmt: skip
        grads: list[Tensor | None] = [None, None, grad_bias if needs[2] else None]
        if needs[0] or needs[1]:
            identity = Activation(IDENTITY)
            grad_input, grad_weight, *_ = ops.conv2d_backward(
                grad_conv, input, weight, None, *geometry, *identity, True, needs[0], needs[1], False, False
            )
            grads[:2] = grad_input if needs[0] else None, grad_weight if needs[1] else None
        return (*grads, None, None, None, None)


def _formula(
    tensors: tuple[Tensor, Tensor, Tensor | None],
    geometry: Geometry,
    activation: Activation,
    pool: Pool,
    *_: Tensor,
) -> Tensor:
    return reference.conv2d_max_pool2d(*tensors, (*geometry, activation), pool)


def kernels_for(input: Tensor, pool: Pool) -> SimpleNamespace | None:
    """The backend's ops, if it has all that the fused form needs and one byte holds a window's positions."""
    ops = backends.resolve(input, "conv2d_max_pool2d_forward")
    if ops is None or "conv2d_backward" in ops.without_kernel:
        return None
    return ops if pool.kernel[0] * pool.kernel[1] <= NO_GRADIENT else None


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    kernel_size: IntOrPair,
    pool_stride: IntOrPair | None = None,
    pool_padding: IntOrPair = 0,
    pool_dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""max_pool2d(activation(conv2d(input, weight) + bias)) in one pass.

    The result of :func:`conv2d` followed by :func:`max_pool2d`, without the tensor between them: only the
    pooled output is written and, for backward, one byte for each of its elements. In 16 bits the maximum is
    that of the values before they are rounded: of elements that rounding makes equal, the truly largest gets
    the gradient, not the first.

    Args:
        input: shape (N, C, H, W) or (C, H, W), contiguous or channels_last; other strides are copied.
        weight: shape (K, C / groups, R, S).
        bias: shape (K).
        stride, padding, dilation, groups: the convolution's, as of :func:`conv2d`.
        activation: name of the activation between the two, as of :func:`conv2d`.
        kernel_size: height and width of a pooling window, or one number for both, as for the other sizes.
        pool_stride: distance of windows; None is ``kernel_size``.
        pool_padding: elements of -inf around the activation's output, at most half of ``kernel_size``.
        pool_dilation: distance of the elements of a window.
        ceil_mode: also have windows that hang over the end, if they begin before it.

    Returns:
        Tensor of shape (N, K, PH, PW), or (K, PH, PW) for one image, in the memory format of :func:`conv2d`'s
        output and the arguments' dtype or, under autocast, autocast's.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape or value.
        RuntimeError: tensors on different devices.
    """
    name = "conv2d_max_pool2d"
    function = parse(name, activation)
    check_floating(name, "input", input)
    kernel = pair(name, "kernel_size", kernel_size, 1)
    pool = Pool(
        kernel,
        stride_pair(name, pool_stride, kernel, "pool_stride"),
        pair(name, "pool_padding", pool_padding, 0),
        pair(name, "pool_dilation", pool_dilation, 1),
        ceil_mode,
    )
    images = input.unsqueeze(0) if input.dim() == 3 else input
    images, weight, bias, geometry = prepare(name, images, weight, bias, stride, padding, dilation, groups)
    conv_size = output_shape(images, weight, *geometry[:3])[2:]
    check_windows(name, conv_size, *pool, pooled="convolution's output", prefix="pool_")
    output: Any
    ops = kernels_for(images, pool)
    if ops is None:
        output = max_pool2d(conv2d(images, weight, bias, *geometry, activation=activation), *pool)
    else:
        images, weight, bias = for_kernels(images, weight, bias)
        needs = any(t is not None and t.requires_grad for t in (images, weight, bias))
        if needs and torch.is_grad_enabled():
            output = apply(Conv2dMaxPool2dFunction, images, weight, bias, geometry, function, pool, ops)
        else:
            options = (*geometry, *function, *pool, False, False)
            output = ops.conv2d_max_pool2d_forward(images, weight, bias, *options)[0]
            output = no_view(output) if is_channels_last(output) else output
    return output[0] if input.dim() == 3 else output
