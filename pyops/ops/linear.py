"""Linear layer with activation and dropout: schemas, autograd and public function.

Kernels: ``csrc/cpu/linear.cpp``, ``csrc/cuda/linear.cu``, ``triton_kernels/linear.py``. What follows the
product is that of ``csrc/math/activation.h`` and ``csrc/math/dropout.h``.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import autocast
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, RELU, Activation, parse
from ..reference import linear as reference
from ..reference.dropout import bias_activation_dropout_gradient
from .dropout import draw_seed
from .tools.autograd import apply, differentiable_gradients
from .tools.checks import ArgumentError, check_tensor, number
from .tools.kept_output import KeptOutput, may_be_changed

__all__ = ["linear"]


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    kind: int,
    alpha: float,
    beta: float,
    save_input_of_activation: bool,
) -> tuple[Tensor, Tensor]:
    # On other devices the kernels check this.
    torch._check(weight.dim() == 2, lambda: f"linear: weight must have 2 dimensions, got {weight.dim()}")
    torch._check(input.dim() > 0, lambda: "linear: input must have at least 1 dimension, got a 0-d tensor")
    torch._check(
        input.shape[-1] == weight.shape[1],
        lambda: f"linear: input must have {weight.shape[1]} features as weight has, got {input.shape[-1]}",
    )
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
    alpha: float,
    beta: float,
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
    f"(Tensor input, Tensor weight, Tensor? bias, Tensor? seed, float p, {ACTIVATION_SCHEMA}, "
    "bool save_input_of_activation) -> (Tensor output, Tensor saved)",
    _fake_forward,
)
_library.define(
    "linear_backward",
    "(Tensor grad_output, Tensor? input, Tensor weight, Tensor? saved, Tensor? seed, float p, "
    f"{ACTIVATION_SCHEMA}, bool saved_is_output, bool needs_input, bool needs_weight, bool needs_bias) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    _fake_backward,
)


#: Bytes of an upstream gradient from which on memory is worth the call.
_LARGE = 128 << 10


class LinearFunction(torch.autograd.Function):
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
        keeps_output = activation.kind <= RELU or activation.keeps_output(input.dtype)
        keeps_output = keeps_output and (seed is None or activation.survives_scaling)
        output, saved = ops.linear_forward(input, weight, bias, seed, p, *activation, not keeps_output)
        # Dropout, too, lets a caller change its output. A frozen layer has nothing to compute it from again.
        watched = may_be_changed(activation) or (
            activation.kind and p > 0 and not torch.compiler.is_compiling()
        )
        ctx.kept = KeptOutput(output) if keeps_output and watched and ctx.needs_input_grad[1] else None
        if ctx.kept is not None:
            ctx.save_for_backward(input, weight, output.data, seed, bias)
        elif keeps_output:
            # A frozen layer does not hold on to its input.
            kept_input = input if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(kept_input, weight, output if activation.kind else None, seed)
        else:
            ctx.save_for_backward(input, weight, saved, seed, bias)
        ctx.call = p, activation, keeps_output, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, saved, seed, *bias = ctx.saved_tensors
        p, activation, keeps_output, ops = ctx.call
        needs = ctx.needs_input_grad[:3]
        if ctx.kept is not None and (torch.is_grad_enabled() or ctx.kept.was_changed()):
            keeps_output = False
        if torch.is_grad_enabled():
            tensors = (input, weight, saved if keeps_output else bias[0], seed)
            return (*_differentiable(grad, *tensors, p, activation, keeps_output, needs), *(None,) * 4)
        if ctx.kept is not None and not keeps_output:
            saved = ops.linear_forward(input, weight, bias[0], None, 0.0, *Activation(IDENTITY), False)[0]
        if needs[1] and (activation.kind or seed is not None) and _is_worth_its_memory(grad):
            ctx.maybe_clear_saved_tensors()
            options = seed, p, *activation, grad.dim() - 1, keeps_output, False
            grad = ops.bias_activation_dropout_backward(grad.contiguous(), saved, None, *options)[0]
            saved, seed, p, activation, keeps_output = None, None, 0.0, Activation(IDENTITY), False
        grad_input, grad_weight, grad_bias = ops.linear_backward(
            grad.contiguous(), input, weight, saved, seed, p, *activation, keeps_output, *needs
        )
        return (
            grad_input if needs[0] else None,
            grad_weight if needs[1] else None,
            grad_bias if needs[2] else None,
            *(None,) * 4,
        )


def _is_worth_its_memory(grad: Tensor) -> bool:
    """Whether to take back what follows the product by a call of its own, and to let go of the output and of
    the upstream gradient before the gradients are allocated. The bits are the same: in 16 bits the bias' sums
    would be of rounded terms."""
    if torch.compiler.is_compiling():  # one graph for all sizes, and memory is the compiler's
        return False
    return grad.is_cpu and grad.dtype.itemsize >= 4 and grad.nbytes >= _LARGE


def _differentiable(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    output_or_bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    activation: Activation,
    keeps_output: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias that can be differentiated again."""
    if not keeps_output:
        tensors = (input, weight, output_or_bias)
        wanted = tuple(t for t, needed in zip(tensors, needs, strict=True) if needed and t is not None)
        formula = partial(_formula, tensors, seed, p, activation)
        found = iter(differentiable_gradients(formula, wanted, (grad,)))
        return tuple(next(found) if needed else None for needed in needs)
    dz, grad_bias = bias_activation_dropout_gradient(
        grad, output_or_bias, None, seed, p, activation, grad.dim() - 1, True, needs[2]
    )
    grad_weight = None
    if needs[1]:
        grad_weight = dz.flatten(0, -2).t() @ input.flatten(0, -2) if dz.dim() > 1 else dz.outer(input)
    return dz @ weight if needs[0] else None, grad_weight, grad_bias if needs[2] else None


def _formula(
    tensors: tuple[Any, ...], seed: Tensor | None, p: float, activation: Activation, *_: Tensor
) -> Tensor:
    input, weight, bias = tensors
    return reference.linear(input, weight, bias, seed, p, activation)


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
    r"""dropout(activation(input @ weight.T + bias)), as :func:`torch.nn.functional.linear`, and what follows.

    Args:
        input: shape (*, in_features), any strides.
        weight: shape (out_features, in_features), or (in_features).
        bias: shape (out_features), or ().
        activation: name of the activation that follows, with its default parameters: ``"relu"``,
            ``"leaky_relu"``, ``"sigmoid"``, ``"tanh"``, ``"selu"``, ``"softplus"``, ``"elu"``, ``"gelu"``,
            ``"gelu_tanh"``, ``"silu"``, ``"hardswish"``, ``"relu6"``, ``"hardtanh"`` or ``"hardsigmoid"``.
        dropout_p: probability of an element of the output to be zeroed; the others are scaled by
            1 / (1 - dropout_p). Only while ``training``.
        generator: where the mask's seed is drawn from; None is torch's own.

    Returns:
        Tensor of shape (*, out_features), or (*) for a weight of shape (in_features), in the dtype of the
        arguments or, under autocast, in autocast's.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: ``activation`` or ``dropout_p`` has no such value.
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    name = "linear"
    function = parse(name, activation)
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        check_tensor(name, "input", input)
        check_tensor(name, "weight", weight)
    if bias is not None:
        check_tensor(name, "bias", bias)
    if weight.dim() == 1:
        column = None if bias is None else bias.reshape(-1)
        output = linear(
            input,
            weight.unsqueeze(0),
            column,
            activation=activation,
            dropout_p=dropout_p,
            training=training,
            generator=generator,
        )
        return output.squeeze(-1)
    if dropout_p == 0.0:
        if activation is None and (backends.prefers_torch(name, input) or not backends.is_strided(weight)):
            return torch.nn.functional.linear(input, weight, bias)
    elif not 0.0 <= number(name, "dropout_p", dropout_p) <= 1.0:
        raise ArgumentError(f"{name}: dropout_p must be between 0 and 1, got {dropout_p}")
    input, weight, bias = autocast(input, weight, bias)
    if bias is not None:
        if bias.numel() == 1:
            bias = bias.reshape(1).expand(weight.shape[0])
        bias = bias.contiguous()
    seed = draw_seed(input.device, generator) if training and dropout_p > 0.0 else None
    ops = backends.resolve(input)
    if ops is None or (bias is not None and bias.dim() != 1):  # torch's bias may be one of every row
        return reference.linear(input, weight, bias, seed, dropout_p, function)
    input, weight = _operand(input), _operand(weight)
    differentiable = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if differentiable and torch.is_grad_enabled():
        return apply(LinearFunction, input, weight, bias, seed, dropout_p, function, ops)
    return ops.linear_forward(input, weight, bias, seed, dropout_p, *function, False)[0]


def _operand(tensor: Tensor) -> Tensor:
    """A tensor that a product can take as it lies: contiguous, or a matrix with a stride of 1."""
    if tensor.is_contiguous() or (tensor.dim() == 2 and 1 in tensor.stride()):
        return tensor
    return tensor.contiguous()
