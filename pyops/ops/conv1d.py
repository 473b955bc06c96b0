"""One-dimensional convolution with bias, residual and activation: that of images of height 1.

The rows [N, C, L] are views [N, C, 1, L] for the kernels and the autograd function of ``conv2d``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..kinds import parse
from .conv2d import convolve
from .tools.checks import check_floating
from .tools.convolution import are_torchs, checked_residual, of_images, prepare

__all__ = ["conv1d"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""activation(conv1d(input, weight) + bias + residual), as :func:`torch.nn.functional.conv1d`.

    Args:
        input: shape (N, C, L) or (C, L); other strides than a contiguous tensor's are copied, as in torch.
        weight: shape (K, C / groups, R).
        bias: shape (K).
        stride, dilation: a number.
        padding: zeros at both ends: a number, ``"valid"`` (none) or ``"same"`` (output of the input's
            length; stride 1 only).
        groups: the input's and the output's channels are cut into as many groups that do not mix.
        activation: name of the activation that follows, as of :func:`conv2d`.
        residual: added before the activation; the output's shape.

    Returns:
        Tensor of shape (N, K, OL), or (K, OL) for one row, with
        OL = floor((L + 2 padding - dilation (R - 1) - 1) / stride) + 1. Its dtype is the arguments' or,
        under autocast, autocast's.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
    """
    name = "conv1d"
    plain = activation is None and residual is None and isinstance(input, Tensor)
    if plain and (backends.prefers_torch(name, input) or are_torchs(input, weight)):
        return torch.nn.functional.conv1d(input, weight, bias, stride, padding, dilation, groups)
    function = parse(name, activation)
    check_floating(name, "input", input)
    if input.dim() == 2:
        rows, more = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
        options = (bias, stride, padding, dilation, groups)
        return conv1d(rows, weight, *options, activation=activation, residual=more)[0]
    input, weight, bias, geometry = prepare(name, input, weight, bias, stride, padding, dilation, groups, 1)
    if residual is not None:
        residual = checked_residual(name, residual, input, weight, geometry)
    return convolve(input, weight, bias, residual, of_images(geometry), function)
