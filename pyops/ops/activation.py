"""Activation functions: schemas, autograd and public functions.

Kernels: ``csrc/cpu/activation.cpp``, ``csrc/cuda/activation.cu``, ``triton_kernels/activation.py``; the
formulas are in ``csrc/math/activation.h``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import autocasts_to_float32
from ..kinds import (
    ACTIVATION_SCHEMA,
    ELU,
    GELU,
    GELU_TANH,
    HARDSIGMOID,
    HARDSWISH,
    HARDTANH,
    LEAKY_RELU,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SOFTPLUS,
    TANH,
    Activation,
)
from ..layouts import copied_densely, dense_order, laid_out_as
from ..reference import activation as reference
from .tools.autograd import apply
from .tools.checks import ArgumentError, check_floating, check_tensor, number, refuse_leaf
from .tools.kept_output import keeps_input_in_torch

__all__ = [
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]

_library.define(
    "activation_forward",
    f"(Tensor input, {ACTIVATION_SCHEMA}) -> Tensor",
    lambda input, *activation: torch.empty_like(input),
)
_library.define(
    "activation_forward_",
    f"(Tensor(a!) input, {ACTIVATION_SCHEMA}) -> ()",
    lambda input, *activation: None,
)
_library.define(
    "activation_backward",
    f"(Tensor grad_output, Tensor saved, {ACTIVATION_SCHEMA}, bool saved_is_output) -> Tensor",
    lambda grad_output, saved, *options: torch.empty_like(saved),
)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, activation: Activation, inplace: bool, ops: SimpleNamespace
    ) -> Tensor:
        if inplace:
            keeps_output = activation.from_output
            saved = input if keeps_output else input.clone(memory_format=torch.preserve_format)
            ops.activation_forward_(input, *activation)
            ctx.mark_dirty(input)
            output = input
        else:
            # Of the same kept tensors as torch's: the caller may change the other one.
            keeps_output = activation.keeps_output(input.dtype) and not keeps_input_in_torch(activation)
            output = ops.activation_forward(input, *activation)
            saved = output if keeps_output else input
        ctx.save_for_backward(saved)
        ctx.activation, ctx.saved_is_output, ctx.ops = activation, keeps_output, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A formula of what was kept, which carries the graph that double backward needs.
            found = reference.activation_gradient(grad, saved, ctx.activation, ctx.saved_is_output)
        else:
            grad = laid_out_as(grad, saved)
            found = ctx.ops.activation_backward(grad, saved, *ctx.activation, ctx.saved_is_output)
        return found, None, None, None


# Kind and parameters come as numbers: to torch.compile, those of a global tuple are unknown.
def _activate(
    function: str, input: Tensor, kind: int, alpha: float, beta: float, inplace: bool = False
) -> Tensor:
    check_floating(function, "input", input)
    ops = backends.resolve(input)
    if ops is None:
        activation = Activation(kind, alpha, beta)
        if inplace and not activation.from_output:
            return input.copy_(reference.activate(input.clone(), activation))
        return reference.activate(input, activation, inplace)
    needs_grad = input.requires_grad and torch.is_grad_enabled()
    dense = input.is_contiguous() or dense_order(input) is not None
    if inplace:
        if needs_grad:
            refuse_leaf(function, input)
        # A compiler removes the copy; it cannot trace an in-place autograd.Function.
        if not dense or torch.compiler.is_compiling():
            return input.copy_(_activate(function, input, kind, alpha, beta))
        if not needs_grad:
            ops.activation_forward_(input, kind, alpha, beta)
            if not input.is_inference():
                torch.autograd.graph.increment_version(input)
            return input
    elif not dense:
        input = copied_densely(input)
    if needs_grad:
        return apply(_Activation, input, Activation(kind, alpha, beta), inplace, ops)
    return ops.activation_forward(input, kind, alpha, beta)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""max(x, 0), as :func:`torch.nn.functional.relu`; backward keeps the output alone, and no mask.

    Args:
        input: tensor of any shape, strides and real dtype but bool; integers are served by torch.
        inplace: overwrite ``input`` and return it.

    Returns:
        Tensor of the shape, dtype and memory format of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``inplace`` and ``input`` is a leaf that requires grad, or a view of one.
    """
    check_tensor("relu", "input", input)
    if backends.prefers_torch("relu", input) or not input.is_floating_point():
        return torch.nn.functional.relu(input, inplace)
    return _activate("relu", input, RELU, 0.0, 0.0, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    r"""x above 0, ``negative_slope`` x below, as :func:`torch.nn.functional.leaky_relu`.

    Backward keeps the input, as torch does, and the output of the op in place. Arguments, result and errors
    are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("leaky_relu", "input", input)
    slope = number("leaky_relu", "negative_slope", negative_slope)
    if backends.prefers_torch("leaky_relu", input):
        return torch.nn.functional.leaky_relu(input, negative_slope, inplace)
    return _activate("leaky_relu", input, LEAKY_RELU, slope, 0.0, inplace)


def _as_floating(input: Tensor) -> Tensor:
    """torch promotes integers and bool to the default dtype where the result is a fraction."""
    if input.is_floating_point() or input.is_complex():
        return input
    return input.to(torch.get_default_dtype())


def sigmoid(input: Tensor) -> Tensor:
    r"""1 / (1 + exp(-x)), as :func:`torch.nn.functional.sigmoid`; backward keeps the output.

    ``input`` may have any dtype: integers are promoted to the default dtype, complex numbers are served by
    torch. Shape, memory format and errors are those of :func:`relu`.
    """
    check_tensor("sigmoid", "input", input)
    if backends.prefers_torch("sigmoid", input) or input.is_complex():
        return torch.sigmoid(input)
    return _activate("sigmoid", _as_floating(input), SIGMOID, 0.0, 0.0)


def tanh(input: Tensor) -> Tensor:
    r"""The hyperbolic tangent, as :func:`torch.nn.functional.tanh`; backward keeps the output.

    Arguments, result and errors are those of :func:`sigmoid`.
    """
    check_tensor("tanh", "input", input)
    if backends.prefers_torch("tanh", input) or input.is_complex():
        return torch.tanh(input)
    return _activate("tanh", _as_floating(input), TANH, 0.0, 0.0)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""1.0507 x above 0, 1.7581 (exp(x) - 1) below, as :func:`torch.nn.functional.selu`.

    Backward keeps the input, as torch does, and the output of the op in place. Arguments, result and errors
    are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("selu", "input", input)
    if backends.prefers_torch("selu", input):
        return torch.nn.functional.selu(input, inplace)
    return _activate("selu", input, SELU, 0.0, 0.0, inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""x above 0, ``alpha`` (exp(x) - 1) below, as :func:`torch.nn.functional.elu`.

    Backward keeps what it does for :func:`selu`. Arguments, result and errors are those of :func:`relu`;
    ``input`` must be floating-point.
    """
    check_tensor("elu", "input", input)
    if backends.prefers_torch("elu", input):
        return torch.nn.functional.elu(input, alpha, inplace)
    return _activate("elu", input, ELU, number("elu", "alpha", alpha), 0.0, inplace)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    r"""log(1 + exp(beta x)) / beta, and x where beta x > threshold: :func:`torch.nn.functional.softplus`.

    Backward keeps the input, as torch does. No exp overflows, however large the threshold. Arguments,
    result and errors are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("softplus", "input", input)
    beta, threshold = number("softplus", "beta", beta), number("softplus", "threshold", threshold)
    if backends.prefers_torch("softplus", input):
        return torch.nn.functional.softplus(input, beta, threshold)
    if input.is_cuda and autocasts_to_float32(input):  # torch's autocast casts softplus on CUDA only
        input = input.float()
    return _activate("softplus", input, SOFTPLUS, beta, threshold)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    r"""x P(X <= x) for a standard normal X, or its tanh approximation: :func:`torch.nn.functional.gelu`.

    Backward keeps the input. Arguments, result and errors are those of :func:`relu`; ``input`` must be
    floating-point.

    Raises:
        ValueError: ``approximate`` is neither ``"none"`` nor ``"tanh"``.
    """
    check_tensor("gelu", "input", input)
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    if not backends.is_strided(input):
        return torch.nn.functional.gelu(input, approximate=approximate)
    # No rule for tiny tensors: torch's op takes longer there, too.
    return _activate("gelu", input, GELU if approximate == "none" else GELU_TANH, 0.0, 0.0)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""x / (1 + exp(-x)), as :func:`torch.nn.functional.silu`; backward keeps the input.

    Arguments, result and errors are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("silu", "input", input)
    if backends.prefers_torch("silu", input) or input.is_complex():
        return torch.nn.functional.silu(input, inplace)
    return _activate("silu", input, SILU, 0.0, 0.0, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    r"""x min(max(x + 3, 0), 6) / 6, as :func:`torch.nn.functional.hardswish`; backward keeps the input.

    Arguments, result and errors are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("hardswish", "input", input)
    if backends.prefers_torch("hardswish", input):
        return torch.nn.functional.hardswish(input, inplace)
    return _activate("hardswish", input, HARDSWISH, 0.0, 0.0, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    r"""min(max(x + 3, 0), 6) / 6, as :func:`torch.nn.functional.hardsigmoid`; backward keeps the input.

    Arguments, result and errors are those of :func:`relu`; ``input`` must be floating-point.
    """
    check_tensor("hardsigmoid", "input", input)
    if backends.prefers_torch("hardsigmoid", input):
        return torch.nn.functional.hardsigmoid(input, inplace)
    return _activate("hardsigmoid", input, HARDSIGMOID, 0.0, 0.0, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    r"""min(max(x, ``min_val``), ``max_val``), as :func:`torch.nn.functional.hardtanh`.

    Backward keeps the input, as torch does, and the output of the op in place. Arguments, result and errors
    are those of :func:`relu`.

    Raises:
        ValueError: ``min_val`` is greater than ``max_val``.
    """
    check_tensor("hardtanh", "input", input)
    # torch's own refuses bounds in the wrong order, and takes NaN for one.
    low, high = number("hardtanh", "min_val", min_val), number("hardtanh", "max_val", max_val)
    served = input.is_floating_point() and low <= high
    if backends.prefers_torch("hardtanh", input) or not served:
        return torch.nn.functional.hardtanh(input, min_val, max_val, inplace)
    return _activate("hardtanh", input, HARDTANH, low, high, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    r"""min(max(x, 0), 6), as :func:`torch.nn.functional.relu6`.

    Backward keeps what it does for :func:`hardtanh`. Arguments, result and errors are those of :func:`relu`.
    """
    check_tensor("relu6", "input", input)
    if backends.prefers_torch("relu6", input) or not input.is_floating_point():
        return torch.nn.functional.relu6(input, inplace)
    return _activate("relu6", input, HARDTANH, 0.0, 6.0, inplace)
