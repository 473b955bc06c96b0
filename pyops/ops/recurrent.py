"""Recurrent layers: schemas, autograd and one direction of one layer. Not a public function.

The public functions, which stack layers and directions, are in ``recurrent_stack.py``. Kernels:
``recurrent/`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the formulas are in
``csrc/math/recurrent.h``.

Tensors of the raw ops are contiguous, of one dtype, for T steps of N sequences, I inputs and H units:

``input`` [T, N, I], ``output`` [T, N, H]; with ``batch_sizes`` [T] (int64 on the CPU, not increasing, as in
a ``PackedSequence``) their leading dimensions are one, R = sum(batch_sizes), and step t has the first
batch_sizes[t] sequences. ``weight_ih`` [G H, I], ``weight_hh`` [G H, H], biases [G H]; ``h_0``, ``c_0``
[N, H]. The gates lie one after the other, in torch's order: LSTM i, f, g, o (G = 4), GRU r, z, n (G = 3);
G = 1 in an RNN. ``gates`` [R, G H] and ``extra`` [R, H] are what backward needs besides the output: activated
gates, and the LSTM's cell or the GRU's W_hn h + b_hn; both are empty for an RNN, or when not ``training``.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..kinds import GRU, LSTM, RNN_RELU, RNN_TANH
from ..reference import recurrent as reference
from .tools.autograd import apply, differentiable_gradients
from .tools.kept_output import KeptOutput

GATES = {RNN_TANH: 1, RNN_RELU: 1, LSTM: 4, GRU: 3}


def saved_shapes(
    kind: int, output_shape: torch.Size, training: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of ``gates`` and ``extra``."""
    if not training or kind not in (LSTM, GRU):
        return (0,), (0,)
    hidden = output_shape[-1]
    rows = output_shape[0] if len(output_shape) == 2 else output_shape[0] * output_shape[1]
    return (rows, GATES[kind] * hidden), (rows, hidden)


def _fake_forward(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    kind: int,
    reverse: bool,
    training: bool,
) -> tuple[Tensor, ...]:
    output = input.new_empty((*input.shape[:-1], h_0.shape[-1]))
    gates, extra = saved_shapes(kind, output.shape, training)
    c_n = input.new_empty(h_0.shape if kind == LSTM else (0,))
    return output, torch.empty_like(h_0), c_n, input.new_empty(gates), input.new_empty(extra)


def _fake_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    output: Tensor,
    gates: Tensor,
    extra: Tensor,
    batch_sizes: Tensor | None,
    kind: int,
    reverse: bool,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_state: bool,
) -> tuple[Tensor, ...]:
    bias = weight_ih.shape[:1] if needs_bias else (0,)
    state = h_0.shape if needs_state else (0,)
    return (
        input.new_empty(input.shape if needs_input else (0,)),
        input.new_empty(weight_ih.shape if needs_weight else (0,)),
        input.new_empty(weight_hh.shape if needs_weight else (0,)),
        input.new_empty(bias),
        input.new_empty(bias),
        input.new_empty(state),
        input.new_empty(state if kind == LSTM else (0,)),
    )


_library.define(
    "recurrent_forward",
    "(Tensor input, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor h_0, "
    "Tensor? c_0, Tensor? batch_sizes, int kind, bool reverse, bool training) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor extra)",
    _fake_forward,
)
_library.define(
    "recurrent_backward",
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor weight_ih, "
    "Tensor weight_hh, Tensor h_0, Tensor? c_0, Tensor output, Tensor gates, Tensor extra, "
    "Tensor? batch_sizes, int kind, bool reverse, bool needs_input, bool needs_weight, bool needs_bias, "
    "bool needs_state) -> (Tensor grad_input, Tensor grad_weight_ih, Tensor grad_weight_hh, "
    "Tensor grad_bias_ih, Tensor grad_bias_hh, Tensor grad_h_0, Tensor grad_c_0)",
    _fake_backward,
)


class Weights(NamedTuple):
    """The parameters of one direction of one layer; ``weight_hr`` [P, H] projects the LSTM's output."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        h_0: Tensor,
        c_0: Tensor | None,
        batch_sizes: Tensor | None,
        kind: int,
        reverse: bool,
        ops: SimpleNamespace,
    ) -> tuple[Tensor, Tensor, Tensor]:
        arguments = input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, batch_sizes
        output, h_n, c_n, gates, extra = ops.recurrent_forward(*arguments, kind, reverse, True)
        if torch.compiler.is_compiling():
            ctx.save_for_backward(*arguments, output, gates, extra)
            ctx.kept = None
        else:  # of torch's layers, a caller may change the output
            ctx.save_for_backward(*arguments, output.data, gates, extra)
            ctx.kept = KeptOutput(output)
        ctx.call = kind, reverse, ops
        ctx.set_materialize_grads(False)
        return output, h_n, c_n

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kind, reverse, ops = ctx.call
        grads = grad_output, grad_h_n, grad_c_n if kind == LSTM else None
        if all(grad is None for grad in grads):
            return (None,) * 11
        needs = ctx.needs_input_grad[:7]
        if torch.is_grad_enabled():
            arguments = list(ctx.saved_tensors[:8])
            return *_differentiable(grads, arguments, kind, reverse, needs), None, None, None, None
        input, weight_ih, weight_hh, _, _, h_0, c_0, batch_sizes, output, gates, extra = ctx.saved_tensors
        if ctx.kept is not None and ctx.kept.was_changed():
            output = ops.recurrent_forward(*ctx.saved_tensors[:8], kind, reverse, True)[0]
        found = ops.recurrent_backward(
            *(_contiguous(grad) for grad in grads),
            input,
            weight_ih,
            weight_hh,
            h_0,
            c_0,
            output,
            gates,
            extra,
            batch_sizes,
            kind,
            reverse,
            needs[0],
            needs[1] or needs[2],
            needs[3] or needs[4],
            needs[5] or needs[6],
        )
        wanted = [grad if needed else None for grad, needed in zip(found, needs, strict=True)]
        return *wanted, None, None, None, None


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def _differentiable(
    grads: tuple[Tensor | None, ...],
    arguments: list[Any],
    kind: int,
    reverse: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the first seven arguments that can be differentiated again."""
    *tensors, batch_sizes = arguments
    places = [i for i, needed in enumerate(needs) if needed]
    formula = partial(_formula, tensors, places, batch_sizes, kind, reverse)
    grads = grads if kind == LSTM else grads[:2]
    found = differentiable_gradients(formula, tuple(tensors[i] for i in places), grads)
    by_place = dict(zip(places, found, strict=True))
    return tuple(by_place.get(i) for i in range(7))


def _formula(
    tensors: list[Any],
    places: list[int],
    batch_sizes: Tensor | None,
    kind: int,
    reverse: bool,
    *wanted: Tensor,
) -> tuple[Tensor, ...]:
    tensors = list(tensors)
    for place, tensor in zip(places, wanted, strict=True):
        tensors[place] = tensor
    input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0 = tensors
    weights = weight_ih, weight_hh, bias_ih, bias_hh, None
    found = reference.recurrent(input, weights, h_0, c_0, batch_sizes, kind, reverse)
    return tuple(t for t in found if t is not None)


def one_direction(
    input: Tensor,
    weights: Weights,
    h_0: Tensor,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    kind: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last h and last c (LSTM) of one direction of one layer; the shapes and dtypes fit.

    Projections, and layers without units, are served by the reference formula on every backend.
    """
    ops = backends.resolve(input, "recurrent_forward")
    if ops is None or weights.weight_hr is not None or h_0.shape[-1] == 0:
        return reference.recurrent(input, weights, h_0, c_0, batch_sizes, kind, reverse)
    tensors = [_contiguous(t) for t in (input, *weights[:4], h_0, c_0)]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output, h_n, c_n = apply(_Recurrent, *tensors, batch_sizes, kind, reverse, ops)
    else:
        output, h_n, c_n = ops.recurrent_forward(*tensors, batch_sizes, kind, reverse, False)[:3]
    return output, h_n, c_n if kind == LSTM else None
