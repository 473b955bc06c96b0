"""Layer, group and instance normalisation: schemas, autograd and public functions.

Kernels: ``csrc/cpu/layer_norm.cpp``, ``csrc/cuda/layer_norm.cu``, ``triton_kernels/layer_norm.py``; the
formulas are in ``csrc/math/layer_norm.h``.

The three are one op on the rows of a contiguous tensor (:class:`pyops.reference.layer_norm.Rows`): of the
last dimensions, of a group's channels and pixels, of one channel's pixels. Weight and bias come in the dtype
that sums are kept in, whatever the input's: under autocast, torch gives a 16-bit input float32 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import acc_dtype, autocasts_to_float32
from ..kinds import ACTIVATION_SCHEMA, Activation, parse
from ..layouts import strides_are_channels_last
from ..reference import layer_norm as reference
from ..reference.activation import activate
from ..reference.layer_norm import Rows
from .tools.autograd import apply, differentiable_gradients
from .tools.checks import (
    ArgumentError,
    as_integer,
    check_device,
    check_floating,
    check_shape,
    check_tensor,
    number,
)

__all__ = ["group_norm", "instance_norm", "layer_norm"]


def _fake_forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (input.numel() // size,)
    acc = acc_dtype(input.dtype)
    return torch.empty_like(input), input.new_empty(rows, dtype=acc), input.new_empty(rows, dtype=acc)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    size: int,
    inner: int,
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    needs_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count = (groups * (size // inner) if needs_parameters else 0,)
    return torch.empty_like(input), mean.new_empty(count), mean.new_empty(count)


_library.define(
    "layer_norm_forward",
    "(Tensor input, Tensor? weight, Tensor? bias, int size, int inner, int groups, float eps, "
    f"{ACTIVATION_SCHEMA}) -> (Tensor output, Tensor mean, Tensor rstd)",
    _fake_forward,
)
_library.define(
    "layer_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int size, "
    f"int inner, int groups, {ACTIVATION_SCHEMA}, bool needs_parameters) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    _fake_backward,
)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rows: Rows,
        eps: float,
        activation: Activation,
        ops: SimpleNamespace,
    ) -> Tensor:
        output, mean, rstd = ops.layer_norm_forward(input, weight, bias, *rows, eps, *activation)
        ctx.save_for_backward(input, weight, bias, mean, rstd)
        ctx.call = rows, eps, activation, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, rstd = ctx.saved_tensors
        rows, eps, activation, ops = ctx.call
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # with the graph that double backward needs
            tensors = (input, weight, bias)
            wanted = tuple(t for t, needed in zip(tensors, needs, strict=True) if needed)
            found = iter(
                differentiable_gradients(
                    lambda *_: reference.layer_norm(*tensors, rows, eps, activation), wanted, (grad,)
                )
            )
            return *(next(found) if needed else None for needed in needs), *(None,) * 4
        gradients = ops.layer_norm_backward(
            grad.contiguous(), input, weight, bias, mean, rstd, *rows, *activation, needs[1] or needs[2]
        )
        return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *(None,) * 4


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""activation(weight (x - mean) / sqrt(var + eps) + bias), as :func:`torch.nn.functional.layer_norm`.

    Mean and (biased) variance are those of the last dimensions. Backward keeps the input and two numbers for
    each of its rows.

    Args:
        input: shape (*, *normalized_shape), any strides.
        normalized_shape: the sizes of the last dimensions.
        weight, bias: of that shape; of the input's dtype, or float32.
        eps: added to the variance.
        activation: name of the activation that follows, as for :func:`linear`.

    Returns:
        Contiguous tensor of the shape and dtype of ``input``.

    Raises:
        TypeError: an argument is no tensor, or the input is not floating-point.
        ValueError: ``activation`` is none.
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    name = "layer_norm"
    function = parse(name, activation)
    check_tensor(name, "input", input)
    whole = as_integer(normalized_shape)
    try:
        shape = (whole,) if whole is not None else tuple(normalized_shape)
    except TypeError:
        raise TypeError(
            f"{name}: normalized_shape must be an integer or several, got {normalized_shape!r}"
        ) from None
    if not backends.is_strided(input):  # a nested tensor has no shape
        return activate(torch.nn.functional.layer_norm(input, list(shape), weight, bias, eps), function)
    if not shape or tuple(input.shape[max(input.dim() - len(shape), 0) :]) != shape:
        wanted = ", ".join(map(str, ("*", *shape)))
        raise ArgumentError(f"{name}: input must have shape ({wanted}), got {tuple(input.shape)}")
    ours = _takes(name, input, weight, bias, shape)
    if not ours or (activation is None and backends.prefers_torch(name, input, weight, bias)):
        return activate(torch.nn.functional.layer_norm(input, list(shape), weight, bias, eps), function)
    size = prod(shape)
    eps = number(name, "eps", eps)
    return _normalize(input, weight, bias, Rows(size, 1, 1), eps, function)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""activation(weight (x - mean) / sqrt(var + eps) + bias), as :func:`torch.nn.functional.group_norm`.

    Mean and (biased) variance are those of ``num_groups`` groups of neighbouring channels of each sample.
    Images in channels_last are torch's own op's, with the activation behind it.

    Args:
        input: shape (N, C, *), any strides.
        num_groups: a divisor of C.
        weight, bias: shape (C); of the input's dtype, or float32.
        eps: added to the variance.
        activation: name of the activation that follows, as for :func:`linear`.

    Returns:
        Tensor of the shape and dtype of ``input``: channels_last where that is, else contiguous.

    Raises:
        As :func:`layer_norm`.
    """
    name = "group_norm"
    function = parse(name, activation)
    check_tensor(name, "input", input)
    groups, channels = as_integer(num_groups), input.shape[1] if input.dim() > 1 else 0
    if not groups or groups < 0 or input.dim() < 2 or channels % groups:
        raise ArgumentError(
            f"{name}: num_groups must be a divisor of the channels of input (N, C, *), got {num_groups} and "
            f"shape {tuple(input.shape)}"
        )
    ours = _takes(name, input, weight, bias, (channels,))
    # Where a row's channels lie apart, torch has a kernel.
    ours = ours and not strides_are_channels_last(input)
    if not ours or (activation is None and backends.prefers_torch(name, input, weight, bias)):
        return activate(torch.nn.functional.group_norm(input, groups, weight, bias, eps), function)
    inner = prod(input.shape[2:])
    eps = number(name, "eps", eps)
    return _normalize(input, weight, bias, Rows(channels // groups * inner, inner, groups), eps, function)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""activation(weight (x - mean) / sqrt(var + eps) + bias), as :func:`torch.nn.functional.instance_norm`.

    Mean and (biased) variance are those of each channel of each sample. Running statistics are torch's own
    op's, with the activation behind it.

    Args:
        input: shape (N, C, *), any strides.
        running_mean, running_var, use_input_stats, momentum: as torch's.
        weight, bias: shape (C); of the input's dtype, or float32.
        eps: added to the variance.
        activation: name of the activation that follows, as for :func:`linear`.

    Returns:
        Contiguous tensor of the shape and dtype of ``input``, as torch's.

    Raises:
        As :func:`layer_norm`; ValueError for a single element in a channel.
    """
    name = "instance_norm"
    function = parse(name, activation)
    check_tensor(name, "input", input)
    if input.dim() < 2 or (use_input_stats and prod(input.shape[2:]) == 1):
        raise ArgumentError(
            f"{name}: input must have shape (N, C, *) with more than one element in a channel, got "
            f"{tuple(input.shape)}"
        )
    ours = _takes(name, input, weight, bias, (input.shape[1],)) and use_input_stats
    ours = ours and running_mean is None and running_var is None
    if not ours or (activation is None and backends.prefers_torch(name, input, weight, bias)):
        statistics = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return activate(torch.nn.functional.instance_norm(input, *statistics), function)
    inner = prod(input.shape[2:])
    eps = number(name, "eps", eps)
    return _normalize(input, weight, bias, Rows(inner, inner, input.shape[1]), eps, function)


def _takes(
    name: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> bool:
    """Whether kernels take these tensors, after checks; what they do not take is for torch's op."""
    if not backends.is_strided(input):
        return False
    check_floating(name, "input", input)
    dtypes = (input.dtype, acc_dtype(input.dtype))
    given = [(n, t) for n, t in (("weight", weight), ("bias", bias)) if t is not None]
    for parameter, tensor in given:
        check_device(name, parameter, tensor, input)
        check_shape(name, parameter, tensor, shape, "one for each that is scaled by itself")
    return input.numel() > 0 and all(tensor.dtype in dtypes for _, tensor in given)


def _normalize(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, eps: float, activation: Activation
) -> Tensor:
    if input.is_cuda and autocasts_to_float32(input):  # torch's autocast casts them on CUDA only
        input = input.float()
    acc = acc_dtype(input.dtype)
    weight, bias = (None if t is None else t.to(acc).reshape(-1).contiguous() for t in (weight, bias))
    return _apply(input.contiguous(), weight, bias, rows, eps, activation)


def _apply(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, eps: float, activation: Activation
) -> Tensor:
    ops = backends.resolve(input, "layer_norm_forward")
    if ops is None:
        return reference.layer_norm(input, weight, bias, rows, eps, activation)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return apply(_LayerNorm, input, weight, bias, rows, eps, activation, ops)
    return ops.layer_norm_forward(input, weight, bias, *rows, eps, *activation)[0]
