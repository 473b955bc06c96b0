"""Recurrent layers, one direction of one layer per call.

The products over all steps are those of gemm.py. A step is one kernel (step.py): a tile of sequences
and units multiplies the state by the recurrent weights, gate by gate, and applies the cell. Where one program
has all units of its sequences (up to 128, sequences of one length), it goes through all steps in one launch,
with a barrier of its own threads in between and none between programs; otherwise there is a launch per step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyops._library import implement
from pyops.kinds import Activation
from pyops.precision import recurrent_allows_tf32

from ..gemm import matmul
from ..tools.activation import RELU, TANH
from ..tools.checks import acc_dtype, check_dense, check_floating
from ..tools.launch import cdiv, launch, next_power_of_2
from ..tools.product import Product
from .step import GRU, LSTM, RNN_RELU, BackwardTensors, ForwardTensors, backward_kernel, forward_kernel

_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # per unit, by kind
_BLOCK_B = 16
_MOST_UNITS_OF_A_LOOP = 128


@dataclass(frozen=True)
class _Steps:
    """Which rows belong to which step: step t has counts[t] sequences, whose rows begin at offsets[t]."""

    counts: list[int]
    offsets: list[int]
    batch: int
    dense: bool

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    @property
    def tf32(self) -> bool:
        """Whether products of float32 may be rounded."""
        return recurrent_allows_tf32(len(self.counts))

    def count(self, t: int) -> int:
        return self.counts[t] if 0 <= t < len(self.counts) else 0

    def offset(self, t: int) -> int:
        return self.offsets[t] if 0 <= t < len(self.counts) else 0


def _steps(op: str, input: torch.Tensor, h_0: torch.Tensor, batch_sizes: torch.Tensor | None) -> _Steps:
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank or h_0.dim() != 2:
        raise RuntimeError(
            f"{op}: input must have {rank} dimensions and h_0 2, got {input.dim()}, {h_0.dim()}"
        )
    batch = h_0.shape[0]
    if batch_sizes is None:
        if input.shape[1] != batch:
            raise RuntimeError(f"{op}: h_0 must have {input.shape[1]} rows, got {batch}")
        counts = [batch] * input.shape[0]
    else:
        if batch_sizes.device.type != "cpu" or batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
            raise RuntimeError(f"{op}: batch_sizes must be a vector of int64 on the CPU")
        counts = batch_sizes.tolist()
        if any(not 0 < now <= last for last, now in zip([batch, *counts], counts, strict=False)):
            raise RuntimeError(f"{op}: batch_sizes must be positive and not increase, got {counts}")
        if sum(counts) != input.shape[0] or (counts and counts[0] != batch):
            raise RuntimeError(f"{op}: batch_sizes must sum up to the rows of input, begin with those of h_0")
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return _Steps(counts, offsets, batch, batch_sizes is None)


def _check(
    op: str,
    kind: int,
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    h_0: torch.Tensor,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    **others: tuple[torch.Tensor | None, tuple[int, ...]],
) -> _Steps:
    """The steps, after checks of every tensor that a kernel reads or writes."""
    if kind not in _GATES:
        raise RuntimeError(f"{op}: kind must be 0 (tanh), 1 (relu), 2 (LSTM) or 3 (GRU), got {kind}")
    check_floating(input, op, "input")
    steps = _steps(op, input, h_0, batch_sizes)
    hidden = h_0.shape[1]
    if hidden < 1:
        raise RuntimeError(f"{op}: h_0 must have at least one unit")
    if (c_0 is not None) != (kind == LSTM.value):
        raise RuntimeError(f"{op}: c_0 must be given for an LSTM, and only there")
    gates = _GATES[kind] * hidden
    check_dense(input, op, "input", like=input, dtype=input.dtype)
    parts = {
        "weight_ih": (weight_ih, (gates, input.shape[-1])),
        "weight_hh": (weight_hh, (gates, hidden)),
        "h_0": (h_0, (steps.batch, hidden)),
        "c_0": (c_0, (steps.batch, hidden)),
        **others,
    }
    for name, (tensor, shape) in parts.items():
        if tensor is not None:
            check_dense(tensor, op, name, like=input, dtype=input.dtype, shape=shape)
    return steps


def _meta(kind: int, dtype: torch.dtype, hidden: int, loops: bool, tf32: bool) -> dict[str, object]:
    units = next_power_of_2(hidden) if loops else min(next_power_of_2(hidden), 32)
    return {
        "KIND": kind,
        "ACTIVATION": Activation(RELU.value if kind == RNN_RELU.value else TANH.value),
        "PRODUCT": Product.of(dtype, tf32=tf32),
        "BLOCK_B": _BLOCK_B,
        "BLOCK_U": max(units, 16),
        "BLOCK_K": 16 if dtype in (torch.float64, torch.float32) else 32,
        "num_warps": 8 if units > 32 else 4,
        "num_stages": 2,
    }


def _loops(steps: _Steps, hidden: int, dtype: torch.dtype) -> bool:
    limit = _MOST_UNITS_OF_A_LOOP // (2 if dtype == torch.float64 else 1)
    return steps.dense and hidden <= limit


@implement("pyops_triton", "recurrent_forward")
def recurrent_forward(
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor | None,
    bias_hh: torch.Tensor | None,
    h_0: torch.Tensor,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    kind: int,
    reverse: bool,
    training: bool,
) -> tuple[torch.Tensor, ...]:
    """Output, last states and, when ``training``, what backward needs."""
    op, hidden = "recurrent_forward", h_0.shape[-1]
    columns = _GATES.get(kind, 1) * hidden
    steps = _check(
        op, kind, input, weight_ih, weight_hh, h_0, c_0, batch_sizes,
        bias_ih=(bias_ih, (columns,)), bias_hh=(bias_hh, (columns,)),
    )  # fmt: skip
    has_gates = columns > hidden
    output = input.new_empty((*input.shape[:-1], hidden))
    saved = training and has_gates
    gates = input.new_empty((steps.rows, columns) if saved else (0,))
    extra = input.new_empty((steps.rows, hidden) if saved else (0,))
    h_n = h_0.clone()
    c_n = input.new_empty(0) if c_0 is None else c_0.clone()
    if steps.rows == 0:
        return output, h_n, c_n, gates, extra
    # An RNN's lies in the output, which replaces it step by step.
    x = gates if saved else input.new_empty(steps.rows, columns) if has_gates else output.view(-1, hidden)
    matmul(x, input.view(steps.rows, -1), weight_ih.t(), tf32=steps.tf32)
    cell = None if c_0 is None else c_0.to(acc_dtype(input.dtype), copy=True)
    loops = _loops(steps, hidden, input.dtype)
    meta = _meta(kind, input.dtype, hidden, loops, steps.tf32)
    tensors = ForwardTensors(
        x, weight_hh, bias_ih, bias_hh, h_0, cell, gates if saved else None, extra if saved else None,
        output, h_n, c_n,
    )  # fmt: skip
    order = range(len(steps.counts) - 1, -1, -1) if reverse else range(len(steps.counts))
    for t in order:
        place = _place(steps, t, reverse)
        if loops:
            place = (
                len(order),
                steps.offset(t),
                -steps.batch if reverse else steps.batch,
                steps.batch,
                0,
                0,
                0,
            )
        launch(
            forward_kernel, _programs(place[3], hidden, meta), input.device, tensors, *place, hidden, **meta
        )
        if loops:
            break
    return output, h_n, c_n, gates, extra


def _place(steps: _Steps, t: int, reverse: bool) -> tuple[int, ...]:
    """One step: number of steps, row, stride, count, before, before_count and ending of the kernels."""
    before, after = (t + 1, t - 1) if reverse else (t - 1, t + 1)
    count = steps.count(t)
    return (
        1, steps.offset(t), 0, count, steps.offset(before), min(steps.count(before), count),
        min(steps.count(after), count),
    )  # fmt: skip


def _programs(count: int, hidden: int, meta: dict) -> int:
    return cdiv(count, meta["BLOCK_B"]) * cdiv(hidden, meta["BLOCK_U"])


@implement("pyops_triton", "recurrent_backward")
def recurrent_backward(
    grad_output: torch.Tensor | None,
    grad_h_n: torch.Tensor | None,
    grad_c_n: torch.Tensor | None,
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    h_0: torch.Tensor,
    c_0: torch.Tensor | None,
    output: torch.Tensor,
    gates: torch.Tensor,
    extra: torch.Tensor,
    batch_sizes: torch.Tensor | None,
    kind: int,
    reverse: bool,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_state: bool,
) -> tuple[torch.Tensor, ...]:
    """Gradients of input, parameters and initial states; empty where not needed."""
    op, hidden = "recurrent_backward", h_0.shape[-1]
    columns = _GATES.get(kind, 1) * hidden
    state, has_gates = tuple(h_0.shape), columns > hidden
    rows = input.numel() // max(input.shape[-1], 1) if input.dim() else 0
    steps = _check(
        op, kind, input, weight_ih, weight_hh, h_0, c_0, batch_sizes,
        grad_output=(grad_output, (*input.shape[:-1], hidden)), grad_h_n=(grad_h_n, state),
        grad_c_n=(grad_c_n, state), output=(output, (*input.shape[:-1], hidden)),
        gates=(gates if has_gates else None, (rows, columns)),
        extra=(extra if has_gates else None, (rows, hidden)),
    )  # fmt: skip
    rows = steps.rows
    if has_gates and gates.shape[0] != rows:
        raise RuntimeError(f"{op}: gates must have {rows} rows, got {gates.shape[0]}")
    d = input.new_empty(rows, columns)
    d_input = input.new_empty(rows, columns) if kind == GRU.value else d
    carry = input.new_empty(state, dtype=acc_dtype(input.dtype))
    if not has_gates:
        carry.zero_()
    loops = _loops(steps, hidden, input.dtype)
    meta = _meta(kind, input.dtype, hidden, loops, steps.tf32)
    tensors = BackwardTensors(
        grad_output, grad_h_n, grad_c_n, weight_hh, gates, extra, output, h_0, c_0, d, d_input, carry,
    )  # fmt: skip
    order = range(len(steps.counts)) if reverse else range(len(steps.counts) - 1, -1, -1)
    for t in order if rows > 0 else ():
        count, (before, before_count, ending) = steps.count(t), _place(steps, t, reverse)[4:]
        after = steps.offset(t - 1 if reverse else t + 1)
        place = (1, steps.offset(t), 0, count, after, ending, before, before_count)
        if loops:
            stride = steps.batch if reverse else -steps.batch
            place = (len(order), steps.offset(t), stride, steps.batch, 0, 0, 0, 0)
        programs = _programs(count, hidden, meta)
        launch(backward_kernel, programs, input.device, tensors, *place, hidden, columns, **meta)
        if loops:
            break
    return _sums(
        op, kind, steps, reverse, (needs_input, needs_weight, needs_bias, needs_state),
        input, weight_ih, weight_hh, output, h_0, d, d_input, carry,
    )  # fmt: skip


def _sums(
    op: str,
    kind: int,
    steps: _Steps,
    reverse: bool,
    needs: tuple[bool, bool, bool, bool],
    input: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    output: torch.Tensor,
    h_0: torch.Tensor,
    d: torch.Tensor,
    d_input: torch.Tensor,
    carry: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """What follows the loop."""
    needs_input, needs_weight, needs_bias, needs_state = needs
    rows, none = steps.rows, input.new_empty(0)
    grad_input = input.new_empty(input.shape) if needs_input else none
    if needs_input:
        matmul(grad_input.view(rows, input.shape[-1]), d_input, weight_ih, tf32=steps.tf32)
    grad_weight_ih, grad_weight_hh = none, none
    if needs_weight:
        grad_weight_ih, grad_weight_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        matmul(grad_weight_ih, d_input.t(), input.view(rows, input.shape[-1]), tf32=steps.tf32)
        matmul(grad_weight_hh, d.t(), _states_before(steps, reverse, output, h_0), tf32=steps.tf32)
    # torch adds up in an order that is always the same.
    grad_bias_ih = d_input.sum(0) if needs_bias else none
    grad_bias_hh = d.sum(0) if needs_bias else none
    if not needs_state:
        return grad_input, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, none, none
    grad_h_0 = torch.empty_like(h_0)
    for t in range(len(steps.counts)) if reverse else range(min(len(steps.counts), 1)):
        begin = steps.count(t + 1) if reverse else 0
        if steps.count(t) > begin:
            at = steps.offset(t)
            rows_of_d = d[at + begin : at + steps.count(t)]
            matmul(grad_h_0[begin : steps.count(t)], rows_of_d, weight_hh, tf32=steps.tf32)
    if kind == GRU.value:
        grad_h_0 += carry.to(grad_h_0.dtype)
    grad_c_0 = carry.to(input.dtype, copy=True) if kind == LSTM.value else none
    return grad_input, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, grad_h_0, grad_c_0


def _states_before(steps: _Steps, reverse: bool, output: torch.Tensor, h_0: torch.Tensor) -> torch.Tensor:
    """The state before each row, [rows, H]."""
    outputs = output.view(steps.rows, -1)
    parts = []
    if steps.dense:
        shifted = outputs[steps.batch :] if reverse else outputs[: steps.rows - steps.batch]
        return torch.cat([shifted, h_0] if reverse else [h_0, shifted])
    for t in range(len(steps.counts)):
        _, _, _, count, before, before_count, _ = _place(steps, t, reverse)
        parts += [outputs[before : before + before_count], h_0[before_count:count]]
    return torch.cat(parts)
