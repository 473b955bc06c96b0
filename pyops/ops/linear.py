"""Linear layer with activation and dropout: schemas, autograd and public function.

Kernels: ``csrc/cpu/linear.cpp``, ``csrc/cuda/linear.cu``, ``triton_kernels/linear.py``. What follows the
product is that of ``csrc/math/activation.h`` and ``csrc/math/dropout.h``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends, reference
from ._common import check_device, check_tensor
from .activation import Activation, parse
from .dropout import draw_seed


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    kind: int,
    a: float,
    b: float,
    save_input_of_activation: bool,
) -> tuple[Tensor, Tensor]:
    output = input.new_empty((*input.shape[:-1], weight.shape[0]))
    return output, input.new_empty(output.shape if save_input_of_activation else (0,))


def _fake_backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    p: float,
    kind: int,
    a: float,
    b: float,
    saved_is_output: bool,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        weight.new_empty((*grad_output.shape[:-1], weight.shape[1]) if needs_input else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
        weight.new_empty(weight.shape[:1] if needs_bias else (0,)),
    )


_library.define(
    "linear_forward",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? seed, float p, int kind, float a, float b, "
    "bool save_input_of_activation) -> (Tensor output, Tensor saved)",
    _fake_forward,
)
_library.define(
    "linear_backward",
    "(Tensor grad_output, Tensor? input, Tensor weight, Tensor? saved, Tensor? seed, float p, int kind, "
    "float a, float b, bool saved_is_output, bool needs_input, bool needs_weight, bool needs_bias) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    _fake_backward,
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        p: float,
        activation: Activation,
        ops: SimpleNamespace,
    ) -> Tensor:
        keeps_output = activation.keeps_output(input.dtype)
        output, saved = ops.linear_forward(input, weight, bias, seed, p, *activation, not keeps_output)
        if keeps_output:
            # A frozen layer does not hold on to its input.
            kept_input = input if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(kept_input, weight, None, seed, output if activation.kind else None)
        else:
            ctx.save_for_backward(input, weight, bias, seed, saved)
        ctx.options, ctx.keeps_output, ctx.ops = (p, *activation), keeps_output, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, bias, seed, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            if not ctx.keeps_output:  # with the graph that double backward needs
                saved = torch.nn.functional.linear(input, weight, bias)
            dz, grad_bias = reference.bias_activation_dropout_gradient(
                grad, saved, None, seed, *ctx.options, grad.dim() - 1, ctx.keeps_output
            )
            return (*_product_gradients(dz, input, weight, needs), grad_bias, None, None, None, None)
        grads = ctx.ops.linear_backward(
            grad.contiguous(), input, weight, saved, seed, *ctx.options, ctx.keeps_output, *needs
        )
        grad_input, grad_weight, grad_bias = grads
        return (
            grad_input if needs[0] else None,
            grad_weight if needs[1] else None,
            grad_bias if needs[2] else None,
            None,
            None,
            None,
            None,
        )


def _product_gradients(
    dz: Tensor, input: Tensor | None, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Differentiable gradients of input and weight from that of input @ weight.T."""
    grad_weight = None
    if needs[1]:
        assert input is not None
        grad_weight = dz.flatten(0, -2).t() @ input.flatten(0, -2) if dz.dim() > 1 else dz.outer(input)
    return dz @ weight if needs[0] else None, grad_weight


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""dropout(activation(input @ weight.T + bias)), as :func:`torch.nn.functional.linear` and what follows.

    Args:
        input: shape (*, in_features), any strides.
        weight: shape (out_features, in_features), or (in_features).
        bias: shape (out_features), or ().
        activation: name of the activation that follows, with its default parameters: ``"relu"``,
            ``"leaky_relu"``, ``"sigmoid"``, ``"tanh"``, ``"selu"``, ``"softplus"``, ``"elu"``, ``"gelu"``,
            ``"gelu_tanh"``, ``"silu"`` or ``"hardswish"``.
        dropout_p: probability of an element of the output to be zeroed; the others are scaled by
            1 / (1 - dropout_p). Only while ``training``.
        generator: where the mask's seed is drawn from; None is torch's own.

    Returns:
        Tensor of shape (*, out_features), or (*) for a weight of shape (in_features), in the dtype of the
        arguments or, under autocast, in autocast's.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
    """
    name = "linear"
    if activation is None and dropout_p == 0.0 and backends.prefers_torch(input):
        return torch.nn.functional.linear(input, weight, bias)
    function = parse(name, activation)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{name}: dropout_p must be between 0 and 1, got {dropout_p}")
    check_tensor(name, "input", input)
    check_tensor(name, "weight", weight)
    if torch.is_autocast_enabled(input.device.type):
        input, weight, bias = _autocast(input), _autocast(weight), _autocast(bias)
    if weight.dim() == 1:
        column = None if bias is None else bias.reshape(-1)
        options = {"activation": activation, "dropout_p": dropout_p, "training": training}
        return linear(input, weight.unsqueeze(0), column, **options, generator=generator).squeeze(-1)
    bias = _checked_bias(name, input, weight, bias)
    seed = draw_seed(input.device, generator) if training and dropout_p > 0.0 else None
    ops = backends.resolve(input)
    if ops is None:
        return reference.linear(input, weight, bias, seed, dropout_p, *function)
    input, weight = _operand(input), _operand(weight)
    differentiable = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if differentiable and torch.is_grad_enabled():
        return _Linear.apply(input, weight, bias, seed, dropout_p, function, ops)
    return ops.linear_forward(input, weight, bias, seed, dropout_p, *function, False)[0]


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """As torch's autocast does to the arguments of ``linear``."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _operand(tensor: Tensor) -> Tensor:
    """A tensor that a product can take as it lies: contiguous, or a matrix with a stride of 1."""
    if tensor.is_contiguous() or (tensor.dim() == 2 and 1 in tensor.stride()):
        return tensor
    return tensor.contiguous()


def _checked_bias(name: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Raise what is wrong with the arguments; the bias with shape (out_features)."""
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}: input and weight must have shapes (*, in_features) and (out_features, in_features), "
            f"got {tuple(input.shape)} and {tuple(weight.shape)}"
        )
    if weight.dtype is not input.dtype:
        raise TypeError(f"{name}: weight must have the input's dtype {input.dtype}, got {weight.dtype}")
    check_device(name, "weight", weight, input)
    if bias is None:
        return None
    check_device(name, "bias", bias, input)
    if bias.dtype is not input.dtype:
        raise TypeError(f"{name}: bias must have the input's dtype {input.dtype}, got {bias.dtype}")
    if bias.shape != weight.shape[:1]:
        if bias.dim() > 1 or bias.numel() != 1:
            raise ValueError(
                f"{name}: bias must have shape {tuple(weight.shape[:1])} (out_features), "
                f"got {tuple(bias.shape)}"
            )
        bias = bias.expand(weight.shape[0])
    return bias.contiguous()
