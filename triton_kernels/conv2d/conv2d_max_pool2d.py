"""Convolution, bias, activation and max pooling in one; the contract is in pyops/ops/conv2d_max_pool2d.py.

Where windows do not overlap and the activation is cheap, a program forms the convolution's tile once for each
element of its windows and keeps the maxima: the convolution's output is never written. Overlapping windows
would multiply the products (3x3 windows of stride 2 by 2.25), which costs more than to write and read the
output once. An activation of many steps may need its input kept. In both cases the convolution's sums are
written in the tensors' dtype, which rounds them before they are compared, as in torch, and a second pass
pools them.
"""

from collections.abc import Sequence

import torch

from pyops._library import implement
from pyops.kinds import Activation
from pyops.layouts import empty_image, is_channels_last, memory_format

from ..pooling.windows import windows
from ..tools.activation import CHEAP, IDENTITY, RELU, check_activation
from ..tools.checks import check_floating
from .correlate import correlate
from .depthwise import correlate_depthwise, is_depthwise
from .geometry import Shape, check_bias, check_conv2d, check_image
from .pool import correlate_and_pool, pool_sums
from .pool_gradient import pool_gradient
from .pool_windows import NO_GRADIENT, Pool

_Pairs = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]


def _pool(op: str, conv_size: Sequence[int], pairs: _Pairs, ceil_mode: bool) -> Pool:
    if len(conv_size) != 2:
        raise RuntimeError(f"{op}: conv_size must be two integers, got {list(conv_size)}")
    pool = Pool(*windows(op, conv_size, *pairs, ceil_mode))
    if pool.height.kernel * pool.width.kernel > NO_GRADIENT.value:
        raise RuntimeError(
            f"{op}: pool_kernel must have at most {NO_GRADIENT.value} positions, got {list(pairs[0])}"
        )
    return pool


def _fuses(shape: Shape, pool: Pool, kind: int, save_input_of_activation: bool) -> bool:
    disjoint = all(axis.stride >= axis.kernel for axis in (pool.height, pool.width))
    return disjoint and kind in CHEAP and not save_input_of_activation and not is_depthwise(shape)


@implement("pyops_triton", "conv2d_max_pool2d_forward")
def conv2d_max_pool2d_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    pool_dilation: Sequence[int],
    ceil_mode: bool,
    save_argmax: bool,
    save_input_of_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """max_pool2d(activation(conv2d(``input``, ``weight``) + ``bias``)), argmax and the activation's input."""
    op = "conv2d_max_pool2d_forward"
    activation = Activation(kind, alpha, beta)
    shape = check_conv2d(input, weight, stride, padding, dilation, groups, activation, op)
    check_bias(bias, op, input, shape)
    pairs = (pool_kernel, pool_stride, pool_padding, pool_dilation)
    pool = _pool(op, shape.output[2:], pairs, ceil_mode)
    pooled = (*shape.output[:2], pool.height.out, pool.width.out)
    output = empty_image(input, pooled, shape.channels_last)
    argmax = torch.empty_like(output, dtype=torch.uint8) if save_argmax else None
    saved = torch.empty_like(output) if save_input_of_activation else None
    if _fuses(shape, pool, kind, save_input_of_activation):
        correlate_and_pool(output, argmax, input, weight, bias, shape, pool, activation)
    else:
        sums = empty_image(input, shape.output, shape.channels_last)
        run = correlate_depthwise if is_depthwise(shape) else correlate
        run(sums, input, weight, shape, gradient=False, bias=bias)
        pool_sums(output, argmax, saved, sums, pool, activation)
    return (
        output,
        input.new_empty((0,), dtype=torch.uint8) if argmax is None else argmax,
        input.new_empty((0,)) if saved is None else saved,
    )


@implement("pyops_triton", "conv2d_max_pool2d_backward")
def conv2d_max_pool2d_backward(
    grad_output: torch.Tensor,
    argmax: torch.Tensor,
    saved: torch.Tensor | None,
    conv_size: Sequence[int],
    kind: int,
    alpha: float,
    beta: float,
    saved_is_output: bool,
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    pool_dilation: Sequence[int],
    ceil_mode: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution's gradient, of height and width ``conv_size``, and the bias's."""
    op = "conv2d_max_pool2d_backward"
    check_floating(grad_output, op, "grad_output")
    pairs = (pool_kernel, pool_stride, pool_padding, pool_dilation)
    pool = _pool(op, conv_size, pairs, ceil_mode)
    shape = (*grad_output.shape[:2], pool.height.out, pool.width.out)
    check_image(argmax, op, "argmax", grad_output, shape, dtype=torch.uint8)
    channels_last = is_channels_last(argmax)
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op, saved_is_output)
    keeps_nothing = kind in (IDENTITY.value, RELU.value)
    if saved is None and not keeps_nothing:
        raise RuntimeError(f"{op}: saved must be given for this activation")
    for name, tensor in (("grad_output", grad_output), ("saved", None if keeps_nothing else saved)):
        if tensor is not None:
            check_image(tensor, op, name, grad_output, shape)
            if not tensor.is_contiguous(memory_format=memory_format(channels_last)):
                raise RuntimeError(f"{op}: {name} must be in argmax's memory format")
    grad_conv = empty_image(grad_output, (*shape[:2], *conv_size), channels_last)
    grad_bias = grad_output.new_empty((shape[1] if needs_bias else 0,))
    pool_gradient(
        grad_conv, grad_bias if needs_bias else None, grad_output, argmax,
        None if keeps_nothing else saved, pool, activation, saved_is_output,
    )  # fmt: skip
    return grad_conv, grad_bias
