"""Batch normalisation with residual and activation: schemas, autograd and public function.

Kernels: ``batch_norm/`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the formulas are in
 ``csrc/math/batch_norm.h``.

Tensors of the raw ops are contiguous; ``dim`` is the dimension of the channels in them, the last one for
channels_last. A batch's statistics are two vectors: ``mean`` in float64, because the mean of large values
with a small deviation needs more than float32 holds, and ``rstd`` = 1 / sqrt(var + eps) in the accumulation
dtype. ``mask`` has one bit per element, set where relu(batch_norm + residual) passes a gradient, in rows of
whole bytes (:func:`mask_shape`).
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import acc_dtype
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, RELU, Activation, parse
from ..layouts import dense_in_order, in_order, inverse, out_of_order
from ..reference import batch_norm as reference
from .tools.autograd import apply, differentiable_gradients
from .tools.batch_norm import (
    check_arguments,
    check_residual,
    mask_elements,
    mask_shape,
    memory_order,
)
from .tools.checks import check_floating

__all__ = ["batch_norm"]


def _fake_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    statistics: Tensor | None,
    dim: int,
    training: bool,
    momentum: float,
    eps: float,
    kind: int,
    alpha: float,
    beta: float,
    save_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = input.shape[dim]
    return (
        input.new_empty(input.shape),
        input.new_empty((channels,), dtype=torch.float64),
        input.new_empty((channels,), dtype=acc_dtype(input.dtype)),
        input.new_empty(mask_shape(input.shape, dim) if save_mask else (0, 0), dtype=torch.uint8),
    )


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    mean_gradients: Tensor | None,
    dim: int,
    training: bool,
    kind: int,
    alpha: float,
    beta: float,
    needs_input: bool,
    needs_affine: bool,
    needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = next(t for t in (weight, bias, rstd) if t is not None)
    channels = (input.shape[dim] if needs_affine else 0,)
    return (
        input.new_empty(input.shape if needs_input else (0,)),
        like.new_empty(channels),
        like.new_empty(channels),
        input.new_empty(input.shape if needs_residual else (0,)),
    )


_library.define(
    "batch_norm_forward",
    "(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor? statistics, int dim, bool training, float momentum, float eps, "
    f"{ACTIVATION_SCHEMA}, bool save_mask) -> (Tensor output, Tensor mean, Tensor rstd, Tensor mask)",
    _fake_forward,
)
_library.define(
    "batch_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    f"Tensor mean, Tensor rstd, Tensor? mean_gradients, int dim, bool training, {ACTIVATION_SCHEMA}, "
    "bool needs_input, bool needs_affine, bool needs_residual) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _fake_backward,
)
# The two reductions alone, for statistics over several processes (sync_batch_norm.py): [2, C] in float64.
_library.define(
    "batch_norm_statistics",
    "(Tensor input, int dim) -> Tensor",
    lambda input, dim: input.new_empty((2, input.shape[dim]), dtype=torch.float64),
)
_library.define(
    "batch_norm_backward_sums",
    "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    f"Tensor mean, Tensor rstd, int dim, {ACTIVATION_SCHEMA}) -> Tensor",
    lambda grad_output, input, weight, bias, residual, mask, mean, rstd, dim, *activation: input.new_empty(
        (2, input.shape[dim]), dtype=torch.float64
    ),
)


class Options(NamedTuple):
    """What is no tensor, in the order in which the raw forward takes it."""

    dim: int
    training: bool
    momentum: float
    eps: float
    kind: int
    alpha: float
    beta: float

    @property
    def activation(self) -> Activation:
        return Activation(self.kind, self.alpha, self.beta)

    def needs_mask(self, residual: Tensor | None) -> bool:
        """Whether backward needs a stored mask: without residual, the input tells the sign again."""
        return self.kind == RELU and residual is not None

    def kept_residual(self, residual: Tensor | None) -> Tensor | None:
        """The residual where backward makes the activation's input again."""
        return residual if self.kind not in (IDENTITY, RELU) else None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        options: Options,
        order: list[int] | None,
        ops: SimpleNamespace,
    ) -> Tensor:
        masked = options.needs_mask(residual)
        laid_out = (in_order(input, order), weight, bias, in_order(residual, order))
        output, mean, rstd, mask = ops.batch_norm_forward(
            *laid_out, running_mean, running_var, None, *options, masked
        )
        residual = options.kept_residual(residual)
        ctx.save_for_backward(input, weight, bias, residual, mask if masked else None, mean, rstd)
        ctx.options, ctx.order, ctx.ops = options, order, ops
        return out_of_order(output, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, bias, residual, mask, mean, rstd = ctx.saved_tensors
        options, order, needs = ctx.options, ctx.order, ctx.needs_input_grad[:4]
        grad = in_order(grad, order)
        saved = (in_order(input, order), weight, bias, in_order(residual, order), mask, mean, rstd)
        if torch.is_grad_enabled():
            found = _differentiable(grad, saved, options, needs)
        else:
            found = ctx.ops.batch_norm_backward(
                *(grad.contiguous(), *saved, None),
                *(options.dim, options.training, *options.activation),
                *(needs[0], needs[1] or needs[2], needs[3]),
            )
        d_input, d_weight, d_bias, d_residual = (g if n else None for g, n in zip(found, needs, strict=True))
        back = None if order is None else inverse(order)
        return in_order(d_input, back), d_weight, d_bias, in_order(d_residual, back), *[None] * 5


def _differentiable(
    grad: Tensor, saved: tuple[Any, ...], options: Options, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight, bias and residual that can be differentiated again."""
    input, weight, bias, residual, mask, mean, rstd = saved
    activation = options.activation
    if mask is not None:
        grad = grad * mask_elements(mask, grad.shape)
        activation = Activation(IDENTITY)
    tensors = [input, weight, bias, residual]
    # The residual's gradient is the gradient in front of it where it was not kept.
    differentiable = [i for i in range(4) if needs[i] and tensors[i] is not None]
    formula = partial(_formula, tensors, differentiable, mean, rstd, options, activation)
    found: list[Tensor | None] = [None] * 4
    if differentiable:
        inputs = tuple(tensors[i] for i in differentiable)
        for i, gradient in zip(
            differentiable, differentiable_gradients(formula, inputs, (grad,)), strict=True
        ):
            found[i] = gradient
    if needs[3] and residual is None:
        found[3] = grad
    return tuple(found)


def _formula(
    tensors: list[Any],
    places: list[int],
    mean: Tensor,
    rstd: Tensor,
    options: Options,
    activation: Activation,
    *inputs: Tensor,
) -> Tensor:
    """The reference formula of the tensors, those at ``places`` replaced by ``inputs``."""
    replaced = list(tensors)
    for place, tensor in zip(places, inputs, strict=True):
        replaced[place] = tensor
    x, weight, bias, residual = replaced
    dim, training = options.dim, options.training
    if training:
        running_mean, running_var, eps = None, None, options.eps
    else:
        running_mean, running_var, eps = mean, rstd.double().pow(-2), 0.0
    settings = (dim, training, 0.0, eps)
    return reference.batch_norm(x, weight, bias, residual, running_mean, running_var, *settings, activation)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""activation(batch_norm(input) + residual), as :func:`torch.nn.functional.batch_norm` and what follows.

    Each channel is normalised by its mean and biased variance over the batch while ``training``, else by the
    running ones, which training moves towards the batch's mean and unbiased variance by ``momentum``. Beside
    the input, backward keeps two vectors; with ``"relu"`` and a residual one bit per element, and with other
    activations the residual (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Args:
        input: shape (N, C, *), at least 2 dimensions, any dtype of float32, float64, bfloat16, float16.
            channels_last and other dense layouts are used as they lie; other strides are copied.
        running_mean, running_var: shape (C), or both None; not None unless ``training``. Updated in place
            while ``training``.
        weight, bias: shape (C): scale and shift of the normalised input.
            These four have one dtype: the input's, or float32 where the input has 16 bits.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        activation: name of the activation that follows, with its default parameters: ``"relu"``,
            ``"leaky_relu"``, ``"sigmoid"``, ``"tanh"``, ``"selu"``, ``"softplus"``, ``"elu"``, ``"gelu"``,
            ``"gelu_tanh"``, ``"silu"``, ``"hardswish"``, ``"relu6"``, ``"hardtanh"`` or ``"hardsigmoid"``.
        residual: added before the activation; shape and dtype of the input.

    Returns:
        Tensor of the shape, dtype and memory format of ``input``.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value; one value per channel in training.
        RuntimeError: tensors on different devices.
    """
    name = "batch_norm"
    function = parse(name, activation)
    check_floating(name, "input", input)
    if input.numel() == 0 and activation is None and residual is None:
        # Of the shape (0,), or with statistics of another dtype: torch takes it.
        tensors = (input, running_mean, running_var, weight, bias)
        return torch.nn.functional.batch_norm(*tensors, training, momentum, eps)
    check_arguments(name, input, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is None:
        # With ReLU as well: two of torch's calls take two thirds of the time of one through Python.
        kind = _small_kind(training, input.dim() > 2, activation is None)
        if function.kind <= RELU and backends.prefers_torch(kind, input, weight, bias):
            tensors = (input, running_mean, running_var, weight, bias)
            output = torch.nn.functional.batch_norm(*tensors, training, momentum, eps)
            return output if activation is None else torch.relu(output)
    else:
        check_residual(name, residual, input)
    options = Options(1, training, float(momentum), float(eps), *function)
    ops = backends.resolve(input, "batch_norm_forward")
    if ops is None:
        return reference.batch_norm(
            input, weight, bias, residual, running_mean, running_var, *options[:4], function
        )
    weight, bias, mean, var = map(_contiguous, (weight, bias, running_mean, running_var))
    order = memory_order(input)
    if order is not None:
        options = options._replace(dim=order.index(1))
    dense = (dense_in_order(input, order), weight, bias, dense_in_order(residual, order))
    output = _normalize(*dense, mean, var, options, order, ops)
    if training:
        _note_update(running_mean, mean)
        _note_update(running_var, var)
    return output


def _small_kind(training: bool, images: bool, plain: bool) -> str:
    """The entry of :mod:`pyops.small_tensors`."""
    if not training:
        return "batch_norm, eval" if plain else "batch_norm, eval, relu"
    if not plain:
        return "batch_norm, relu"
    return "batch_norm, images" if images else "batch_norm, rows"


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _normalize(
    input: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    options: Options,
    order: list[int] | None,
    ops: SimpleNamespace,
) -> Tensor:
    tensors = (input, weight, bias, residual)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return apply(_BatchNorm, *tensors, running_mean, running_var, options, order, ops)
    laid_out = (in_order(input, order), weight, bias, in_order(residual, order))
    output = ops.batch_norm_forward(*laid_out, running_mean, running_var, None, *options, False)[0]
    return out_of_order(output, order)


def _note_update(running: Tensor | None, updated: Tensor | None) -> None:
    """Let autograd know that ``running`` has changed; ``updated`` may be a contiguous copy of it."""
    if running is None or updated is None:
        return
    if updated is not running:
        running.copy_(updated)
    elif not torch.compiler.is_compiling() and not running.is_inference():
        torch.autograd.graph.increment_version(running)
