"""Dropout, alone or fused with bias, activation and residual: schemas, autograd and public function.

Kernels: ``csrc/cpu/dropout.cpp``, ``csrc/cuda/dropout.cu``, ``triton_kernels/dropout.py``; the formulas are
in ``csrc/math/dropout.h``, the random numbers in ``csrc/common/philox.h``.

The mask is a function of a seed and of an element's place in memory. The seed is drawn on the tensor's device
from torch's generator, and is all that plain dropout keeps for backward: 16 bytes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _library, backends
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, LEAKY_RELU, RELU, Activation, parse
from ..layouts import copied_densely, dense_order, in_order, inverse, out_of_order
from ..reference import dropout as reference
from .tools.autograd import apply
from .tools.checks import (
    ArgumentError,
    DtypeError,
    check_device,
    check_floating,
    check_shape,
    check_tensor,
    number,
    refuse_leaf,
)

__all__ = ["dropout"]


def _fake_backward(
    grad_output: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    kind: int,
    alpha: float,
    beta: float,
    dim: int,
    saved_is_output: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    channels = grad_output.size(dim) if needs_bias else 0
    return torch.empty_like(grad_output), grad_output.new_empty((channels,))


_library.define(
    "dropout",
    "(Tensor input, Tensor seed, float p) -> Tensor",
    lambda input, seed, p: torch.empty_like(input),
)
_library.define("dropout_", "(Tensor(a!) input, Tensor seed, float p) -> ()", lambda input, seed, p: None)
_library.define(
    "bias_activation_dropout_forward",
    f"(Tensor input, Tensor? bias, Tensor? residual, Tensor? seed, float p, {ACTIVATION_SCHEMA}, int dim) "
    "-> Tensor",
    lambda input, *others: torch.empty_like(input),
)
_library.define(
    "bias_activation_dropout_backward",
    f"(Tensor grad_output, Tensor? saved, Tensor? bias, Tensor? seed, float p, {ACTIVATION_SCHEMA}, "
    "int dim, bool saved_is_output, bool needs_bias) -> (Tensor grad_input, Tensor grad_bias)",
    _fake_backward,
)


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A mask's seed, int64 of shape (2,), drawn on ``device`` from its generator."""
    # Not random_ on an empty tensor: torch.compile does not trace it.
    return torch.randint(2**63 - 1, (2,), generator=generator, device=device)


class _Dropout(torch.autograd.Function):
    """Of an input in the order of its memory; the result is in that of the dimensions, ``order`` undone."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, seed: Tensor, p: float, order: list[int] | None, ops: SimpleNamespace
    ) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p, ctx.order, ctx.ops = p, order, ops
        return out_of_order(ops.dropout(input, seed, p), order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        # Dropout is linear: its gradient, to any order, is dropout by the same mask.
        (seed,) = ctx.saved_tensors
        grad = in_order(grad, ctx.order).contiguous()
        return _apply(grad, seed, ctx.p, None, ctx.ops), None, None, None, None


class _InplaceDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, seed: Tensor, p: float, order: None, ops: SimpleNamespace) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p, ctx.order, ctx.ops = p, order, ops
        ctx.mark_dirty(input)
        ops.dropout_(input, seed, p)
        return input

    backward = _Dropout.backward


class _FusedDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        seed: Tensor | None,
        p: float,
        activation: Activation,
        dim: int,
        keeps_output: bool,
        order: list[int] | None,
        ops: SimpleNamespace,
    ) -> Tensor:
        output = ops.bias_activation_dropout_forward(input, bias, residual, seed, p, *activation, dim)
        if activation.kind == IDENTITY:
            ctx.save_for_backward(None, None, seed)
        elif keeps_output:
            ctx.save_for_backward(output, None, seed)
        else:
            ctx.save_for_backward(input, bias, seed)
        ctx.call, ctx.order = (p, activation, dim, keeps_output, ops), order
        return out_of_order(output, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad = in_order(grad, ctx.order)
        _, needs_bias, needs_residual, *_ = ctx.needs_input_grad
        p, activation, dim, keeps_output, ops = ctx.call
        tensors, rest = ctx.saved_tensors, (dim, keeps_output, needs_bias)
        if torch.is_grad_enabled():
            arguments = (*tensors, p, activation, *rest)
            dx, db = reference.bias_activation_dropout_gradient(grad, *arguments)
        else:
            dx, db = ops.bias_activation_dropout_backward(grad.contiguous(), *tensors, p, *activation, *rest)
        return dx, db if needs_bias else None, grad if needs_residual else None, *(None,) * 7


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    bias: Tensor | None = None,
    activation: str | Activation | None = None,
    residual: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Zero elements with probability ``p`` and scale the others, as :func:`torch.nn.functional.dropout`.

    With ``bias``, ``activation`` or ``residual`` it is ``residual + dropout(activation(input + bias))`` in
    one pass over memory, and one pass for all gradients. Without ``training``, or with ``p = 0``, nothing is
    dropped: ``input`` itself is returned, or the fused formula without the mask.

    ``p`` is exact to 2^-32, and what is kept is scaled by 1 / (1 - p), as in torch. The mask depends on the
    seed, drawn from torch's generator, and on the elements' order in memory; it is the same on every backend.

    Args:
        input: floating tensor of any shape and strides.
        p: probability of an element to be zeroed, in [0, 1].
        training: whether to drop at all.
        inplace: write the result into ``input``; not together with the fused arguments.
        bias: added to ``input`` before the activation, broadcast like ``input + bias``, with at most one
            dimension that is not 1: shape (C,) for the last dimension, (C, 1, 1) for the channels of images.
        activation: a name, such as ``"relu"``, or an :class:`~pyops.kinds.Activation`.
        residual: added last; of the shape of ``input``.
        generator: where the seed is drawn from, on the device of ``input``; torch's default one if None.

    Returns:
        Tensor of the shape of ``input``; of its dtype, or of the promoted one of the tensors that are given.

    Raises:
        TypeError: a tensor is not floating-point (as in torch, nothing to drop, or p = 1, is allowed).
        ValueError: ``p`` or ``activation`` is not a possible value, a shape does not fit, or ``inplace`` was
            combined with fused arguments.
        RuntimeError: tensors on different devices.
    """
    p = number("dropout", "p", p)
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"dropout: p must be a probability between 0 and 1, got {p}")
    drops = training and p > 0.0
    if bias is not None or activation is not None or residual is not None:
        if inplace:
            raise ArgumentError("dropout: inplace=True cannot be combined with bias, activation or residual")
        return _fused(input, p if drops else 0.0, bias, activation, residual, generator)
    check_tensor("dropout", "input", input)
    if not drops or (backends.is_strided(input) and input.numel() == 0):
        return input
    if not input.is_floating_point() and p < 1.0 and not input.is_complex():
        raise DtypeError(f"dropout: input must be a floating-point tensor, got {input.dtype}")
    if not backends.is_strided(input):
        return torch.nn.functional.dropout(input, p, training, inplace)
    ops = backends.resolve(input)
    seed = draw_seed(input.device, generator)
    if not inplace:
        return _plain(input, seed, p, ops)
    needs_grad = input.requires_grad and torch.is_grad_enabled()
    if needs_grad:
        refuse_leaf("dropout", input)
    # A compiler removes the copy; it cannot trace an in-place autograd.Function.
    if ops is None or not input.is_contiguous() or torch.compiler.is_compiling():
        return input.copy_(_plain(input, seed, p, ops))
    if needs_grad:
        return apply(_InplaceDropout, input, seed, p, None, ops)
    ops.dropout_(input, seed, p)
    return input


def _plain(input: Tensor, seed: Tensor, p: float, ops: SimpleNamespace | None) -> Tensor:
    order = None
    if not input.is_contiguous():
        if (order := dense_order(input)) is None:
            return _plain(copied_densely(input), seed, p, ops)
        input = input.permute(order)
    return _apply(input, seed, p, order, ops)


def _apply(
    input: Tensor, seed: Tensor, p: float, order: list[int] | None, ops: SimpleNamespace | None
) -> Tensor:
    """Dropout of an input in the order of its memory, the result in that of the dimensions."""
    if ops is None:
        return in_order(reference.dropout(input, seed, p), None if order is None else inverse(order))
    if input.requires_grad and torch.is_grad_enabled():
        return apply(_Dropout, input, seed, p, order, ops)
    return out_of_order(ops.dropout(input, seed, p), order)


def _fused(
    input: Tensor,
    p: float,
    bias: Tensor | None,
    activation: str | Activation | None,
    residual: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    check_floating("dropout", "input", input)
    if not isinstance(activation, Activation):
        activation = parse("dropout", activation)
    if bias is not None and not _matches(bias, input):
        input, bias = _promoted("bias", bias, input)
    if residual is not None:
        if not _matches(residual, input):
            input, residual = _promoted("residual", residual, input)
            bias = None if bias is None else bias.to(input.dtype)
        check_shape("dropout", "residual", residual, input.shape, "the input's shape")
    dim = input.dim() - 1
    if bias is not None:
        if bias.dim() != 1 or dim < 0 or bias.size(0) != input.size(dim):
            bias, dim = _bias_vector(input, bias)
        bias = bias.contiguous()
    seed = draw_seed(input.device, generator) if p > 0.0 else None
    order = None
    if not input.is_contiguous():
        order = dense_order(input)
        if order is None:
            input = copied_densely(input)
            order = dense_order(input) or list(range(input.dim()))
        input, dim = input.permute(order), order.index(dim)
        residual = None if residual is None else residual.permute(order)
    if residual is not None:
        residual = residual.contiguous()
    return _apply_fused(input, bias, residual, seed, p, activation, dim, order)


def _apply_fused(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    p: float,
    activation: Activation,
    dim: int,
    order: list[int] | None,
) -> Tensor:
    ops = backends.resolve(input)
    if ops is None:
        output = reference.bias_activation_dropout(input, bias, residual, seed, p, activation, dim)
        return in_order(output, None if order is None else inverse(order))
    if torch.is_grad_enabled() and (
        input.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        keeps_output = residual is None and _keeps_output(activation, input.dtype)
        arguments = (input, bias, residual, seed, p, activation, dim, keeps_output, order, ops)
        return apply(_FusedDropout, *arguments)
    output = ops.bias_activation_dropout_forward(input, bias, residual, seed, p, *activation, dim)
    return out_of_order(output, order)


def _keeps_output(activation: Activation, dtype: torch.dtype) -> bool:
    """Whether backward gets the output, and not the input.

    The output is scaled before it is rounded: 16 bits of it hold less of the activation's output than torch
    keeps. Only the sign is certain.
    """
    if activation.kind <= RELU:
        return True
    if not activation.from_output or not activation.survives_scaling:
        return False
    return dtype.itemsize > 2 or activation.kind == LEAKY_RELU


def _matches(tensor: Tensor, input: Tensor) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype is input.dtype and tensor.device == input.device


def _promoted(name: str, tensor: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """Input and tensor in the dtype of their sum, or the error that they cannot be added."""
    check_floating("dropout", name, tensor)
    check_device("dropout", name, tensor, input)
    dtype = torch.result_type(input, tensor)
    return input.to(dtype), tensor.to(dtype)


def _bias_vector(input: Tensor, bias: Tensor) -> tuple[Tensor, int]:
    """``bias`` as a vector, and the dimension of ``input`` that it lies along."""
    rank, shape = input.dim(), bias.shape
    wide = [i for i, size in enumerate(shape) if size != 1]
    dim = rank - len(shape) + wide[0] if wide else rank - 1
    if rank == 0 or len(shape) > rank or len(wide) > 1 or (wide and shape[wide[0]] != input.size(dim)):
        raise ArgumentError(
            "dropout: bias must have at most one dimension that is not 1 and broadcast to the input's shape "
            f"{tuple(input.shape)}, got {tuple(shape)}"
        )
    bias = bias.reshape(-1)
    return (bias if wide else bias.expand(input.size(dim))), dim
