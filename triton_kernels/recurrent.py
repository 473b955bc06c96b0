"""Recurrent layers, one direction of one layer per call.

The products over all steps are those of gemm.py. A step is one kernel: a tile of sequences and units
multiplies the state by the recurrent weights, gate by gate, and applies the cell. Where one program has all
units of its sequences (up to 128, sequences of one length), it goes through all steps in one launch, with a
barrier of its own threads in between and none between programs; otherwise there is a launch per step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pyops._library import implement, triton_is_interpreted

from ._common import acc_dtype, cdiv, check_dense, check_floating, launch, next_power_of_2
from ._math import logistic, tanh
from .activation import RELU, TANH, activate, derive_from_output
from .gemm import matmul

# As in csrc/math/recurrent.h.
RNN_TANH = tl.constexpr(0)
RNN_RELU = tl.constexpr(1)
LSTM = tl.constexpr(2)
GRU = tl.constexpr(3)

_GATES = {0: 1, 1: 1, 2: 4, 3: 3}
_BLOCK_B = 16
_MOST_UNITS_OF_A_LOOP = 128


# ------------------------------------------------------------------------------------------------- the cells


@triton.jit
def _cell_forward(x0, x1, x2, x3, s0, s1, s2, s3, h, c, KIND: tl.constexpr, storage: tl.constexpr):
    """The activated gates, what else backward needs, and h."""
    if KIND == LSTM:
        i = logistic(x0 + s0, storage)
        f = logistic(x1 + s1, storage)
        g = tanh(x2 + s2)
        o = logistic(x3 + s3, storage)
        c = f * c + i * g
        return i, f, g, o, c, o * tanh(c)
    elif KIND == GRU:
        r = logistic(x0 + s0, storage)
        z = logistic(x1 + s1, storage)
        n = tanh(x2 + r * s2)
        return r, z, n, n, s2, n + z * (h - n)
    else:
        y = activate(x0 + s0, TANH if KIND == RNN_TANH else RELU, 0.0, 0.0, storage)
        return y, y, y, y, y, y


@triton.jit
def _cell_backward(dh, dc, g0, g1, g2, g3, extra, h, c, y, KIND: tl.constexpr):
    """Gradients of the state's shares of the gates and of the last gate's input share; what is carried on."""
    if KIND == LSTM:
        t = tanh(extra)
        dc = dc + dh * g3 * (1.0 - t * t)
        di = dc * g2 * g0 * (1.0 - g0)
        df = dc * c * g1 * (1.0 - g1)
        dg = dc * g0 * (1.0 - g2 * g2)
        do = dh * t * g3 * (1.0 - g3)
        return di, df, dg, do, do, dc * g1
    elif KIND == GRU:
        dn = dh * (1.0 - g1) * (1.0 - g2 * g2)
        dr = dn * extra * g0 * (1.0 - g0)
        dz = dh * (h - g2) * g1 * (1.0 - g1)
        return dr, dz, dn * g0, dn, dn, dh * g1
    else:
        d = derive_from_output(y, dh, TANH if KIND == RNN_TANH else RELU, 0.0)
        return d, d, d, d, d, d


# ------------------------------------------------------------------------------------------------ the kernels


@triton.jit
def _bias(bias, column, column_exists, acc: tl.constexpr):
    if bias is None:
        return tl.zeros([1, 1], acc)
    return tl.load(bias + column, mask=column_exists, other=0.0).to(acc)


@triton.jit
def _weights(weight_hh, u, depth, column_exists, depth_exists, hidden, gate: tl.constexpr):
    """[depth, units] of one gate, transposed."""
    at = weight_hh + (gate * hidden + u) * hidden + depth
    return tl.load(at, mask=column_exists & depth_exists, other=0.0)


@triton.jit
def _forward_kernel(
    x, weight_hh, bias_ih, bias_hh, h_0, cell, gates, extra, output, h_n, c_n,
    steps: tl.int64, row: tl.int64, stride: tl.int64, count: tl.int64, before: tl.int64,
    before_count: tl.int64, ending: tl.int64, hidden: tl.int64,
    KIND: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``steps`` steps, ``stride`` rows apart; in the first, sequence b < count has row ``row`` + b.

    Its predecessor has row ``before`` + b if b < before_count, otherwise it begins here. In the last step
    the sequences from ``ending`` on end. ``cell`` [N, H] is the LSTM's c, which is kept in float32.
    """
    storage: tl.constexpr = output.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    GATES: tl.constexpr = 4 if KIND == LSTM else (3 if KIND == GRU else 1)
    unit_tiles = tl.cdiv(hidden, BLOCK_U)
    pid = tl.program_id(0).to(tl.int64)
    b = (pid // unit_tiles * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    u = (pid % unit_tiles * BLOCK_U + tl.arange(0, BLOCK_U))[None, :]
    column_exists = u < hidden
    row_exists = b < count
    mask = row_exists & column_exists
    state_at = b * hidden + u
    for i in tl.range(0, steps):
        now = row + i * stride
        earlier = tl.where(i == 0, before, now - stride)
        known = b < tl.where(i == 0, before_count, count)
        s0 = tl.zeros([BLOCK_B, BLOCK_U], acc)
        s1 = tl.zeros([BLOCK_B, BLOCK_U], acc)
        s2 = tl.zeros([BLOCK_B, BLOCK_U], acc)
        s3 = tl.zeros([BLOCK_B, BLOCK_U], acc)
        for k in tl.range(0, hidden, BLOCK_K):
            across = (k + tl.arange(0, BLOCK_K))[None, :]
            down = (k + tl.arange(0, BLOCK_K))[:, None]
            left_mask = row_exists & (across < hidden)
            left = tl.load(output + (earlier + b) * hidden + across, mask=left_mask & known, other=0.0)
            first = tl.load(h_0 + b * hidden + across, mask=left_mask & (b >= 0) & (known == 0), other=0.0)
            left = tl.where(known, left, first)
            exists = down < hidden
            w0 = _weights(weight_hh, u, down, column_exists, exists, hidden, 0)
            if WIDEN:  # exact; the interpreter would multiply the bits of bfloat16 as integers
                left, w0 = left.to(acc), w0.to(acc)
            s0 = tl.dot(left, w0, s0, input_precision=PRECISION, out_dtype=acc)
            if GATES > 1:
                w1 = _weights(weight_hh, u, down, column_exists, exists, hidden, 1).to(left.dtype)
                w2 = _weights(weight_hh, u, down, column_exists, exists, hidden, 2).to(left.dtype)
                s1 = tl.dot(left, w1, s1, input_precision=PRECISION, out_dtype=acc)
                s2 = tl.dot(left, w2, s2, input_precision=PRECISION, out_dtype=acc)
            if GATES > 3:
                w3 = _weights(weight_hh, u, down, column_exists, exists, hidden, 3).to(left.dtype)
                s3 = tl.dot(left, w3, s3, input_precision=PRECISION, out_dtype=acc)
        at = (now + b) * GATES * hidden + u
        x0 = tl.load(x + at, mask=mask, other=0.0).to(acc) + _bias(bias_ih, u, column_exists, acc)
        x1, x2, x3 = x0, x0, x0
        s0 += _bias(bias_hh, u, column_exists, acc)
        if GATES > 1:
            x1 = tl.load(x + at + hidden, mask=mask, other=0.0).to(acc)
            x2 = tl.load(x + at + 2 * hidden, mask=mask, other=0.0).to(acc)
            x1 += _bias(bias_ih, hidden + u, column_exists, acc)
            x2 += _bias(bias_ih, 2 * hidden + u, column_exists, acc)
            s1 += _bias(bias_hh, hidden + u, column_exists, acc)
            s2 += _bias(bias_hh, 2 * hidden + u, column_exists, acc)
        if GATES > 3:
            x3 = tl.load(x + at + 3 * hidden, mask=mask, other=0.0).to(acc)
            x3 += _bias(bias_ih, 3 * hidden + u, column_exists, acc)
            s3 += _bias(bias_hh, 3 * hidden + u, column_exists, acc)
        c = x0
        h = x0
        if KIND == LSTM:
            c = tl.load(cell + state_at, mask=mask, other=0.0)
        if KIND == GRU:
            h = tl.load(output + (earlier + b) * hidden + u, mask=mask & known, other=0.0).to(acc)
            h += tl.load(h_0 + state_at, mask=mask & (known == 0), other=0.0).to(acc)
        g0, g1, g2, g3, rest, y = _cell_forward(x0, x1, x2, x3, s0, s1, s2, s3, h, c, KIND, storage)
        if KIND == LSTM:
            tl.store(cell + state_at, rest, mask=mask)
        if gates is not None:
            tl.store(gates + at, g0.to(storage), mask=mask)
            tl.store(gates + at + hidden, g1.to(storage), mask=mask)
            tl.store(gates + at + 2 * hidden, g2.to(storage), mask=mask)
            if GATES > 3:
                tl.store(gates + at + 3 * hidden, g3.to(storage), mask=mask)
            tl.store(extra + (now + b) * hidden + u, rest.to(storage), mask=mask)
        tl.store(output + (now + b) * hidden + u, y.to(storage), mask=mask)
        ends = mask & (b >= tl.where(i == steps - 1, ending, count))
        tl.store(h_n + state_at, y.to(storage), mask=ends)
        if KIND == LSTM:
            tl.store(c_n + state_at, rest.to(storage), mask=ends)
        tl.debug_barrier()  # the next step reads what this one has written


@triton.jit
def _backward_kernel(
    grad_output, grad_h_n, grad_c_n, weight_hh, gates, extra, output, h_0, c_0, d, d_input, carry,
    steps: tl.int64, row: tl.int64, stride: tl.int64, count: tl.int64, after: tl.int64, ending: tl.int64,
    before: tl.int64, before_count: tl.int64, hidden: tl.int64, columns: tl.int64,
    KIND: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``steps`` steps against the direction of the layer; the first has rows ``row`` + b, b < count.

    Of its successors, b < ending, the rows are ``after`` + b; other sequences end here. In the last step the
    predecessors have rows ``before`` + b, b < before_count. ``carry`` [N, H] is c's or, in a GRU, h's.
    """
    storage: tl.constexpr = output.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    GATES: tl.constexpr = 4 if KIND == LSTM else (3 if KIND == GRU else 1)
    unit_tiles = tl.cdiv(hidden, BLOCK_U)
    pid = tl.program_id(0).to(tl.int64)
    b = (pid // unit_tiles * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    u = (pid % unit_tiles * BLOCK_U + tl.arange(0, BLOCK_U))[None, :]
    column_exists = u < hidden
    row_exists = b < count
    mask = row_exists & column_exists
    state_at = b * hidden + u
    for i in tl.range(0, steps):
        now = row + i * stride
        later = tl.where(i == 0, after, now - stride)
        goes_on = b < tl.where(i == 0, ending, count)
        total = tl.zeros([BLOCK_B, BLOCK_U], acc)
        for k in tl.range(0, columns, BLOCK_K):
            across = (k + tl.arange(0, BLOCK_K))[None, :]
            down = (k + tl.arange(0, BLOCK_K))[:, None]
            left_mask = row_exists & goes_on & (across < columns)
            left = tl.load(d + (later + b) * columns + across, mask=left_mask, other=0.0)
            right = tl.load(weight_hh + down * hidden + u, mask=(down < columns) & column_exists, other=0.0)
            if WIDEN:
                left, right = left.to(acc), right.to(acc)
            total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=acc)
        dh = total
        if grad_output is not None:
            dh += tl.load(grad_output + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        ends = mask & (goes_on == 0)
        if grad_h_n is not None:
            dh += tl.load(grad_h_n + state_at, mask=ends, other=0.0).to(acc)
        carried = tl.zeros([BLOCK_B, BLOCK_U], acc)
        if GATES > 1:
            carried = tl.load(carry + state_at, mask=mask & goes_on, other=0.0)
        if KIND == GRU:
            dh += carried
        if grad_c_n is not None:
            carried += tl.load(grad_c_n + state_at, mask=ends, other=0.0).to(acc)
        y = tl.load(output + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        at = (now + b) * columns + u
        g0, g1, g2, g3, rest, h, c = y, y, y, y, y, y, y
        is_last = i == steps - 1
        earlier = tl.where(is_last, before, now + stride)
        known = b < tl.where(is_last, before_count, count)
        if GATES > 1:
            g0 = tl.load(gates + at, mask=mask, other=0.0).to(acc)
            g1 = tl.load(gates + at + hidden, mask=mask, other=0.0).to(acc)
            g2 = tl.load(gates + at + 2 * hidden, mask=mask, other=0.0).to(acc)
            rest = tl.load(extra + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        if KIND == GRU:
            h = tl.load(output + (earlier + b) * hidden + u, mask=mask & known, other=0.0).to(acc)
            h += tl.load(h_0 + state_at, mask=mask & (known == 0), other=0.0).to(acc)
        if KIND == LSTM:
            g3 = tl.load(gates + at + 3 * hidden, mask=mask, other=0.0).to(acc)
            c = tl.load(extra + (earlier + b) * hidden + u, mask=mask & known, other=0.0).to(acc)
            c += tl.load(c_0 + state_at, mask=mask & (known == 0), other=0.0).to(acc)
        d0, d1, d2, d3, last, carried = _cell_backward(dh, carried, g0, g1, g2, g3, rest, h, c, y, KIND)
        tl.store(d + at, d0.to(storage), mask=mask)
        if GATES > 1:
            tl.store(d + at + hidden, d1.to(storage), mask=mask)
            tl.store(d + at + 2 * hidden, d2.to(storage), mask=mask)
            tl.store(carry + state_at, carried, mask=mask)
        if GATES > 3:
            tl.store(d + at + 3 * hidden, d3.to(storage), mask=mask)
        if KIND == GRU:
            tl.store(d_input + at, d0.to(storage), mask=mask)
            tl.store(d_input + at + hidden, d1.to(storage), mask=mask)
            tl.store(d_input + at + 2 * hidden, last.to(storage), mask=mask)
        tl.debug_barrier()


# ---------------------------------------------------------------------------------------------- the launchers


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
    """The steps, after everything whose memory a kernel touches has been looked at."""
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


def _meta(kind: int, dtype: torch.dtype, hidden: int, loops: bool) -> dict[str, object]:
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    units = next_power_of_2(hidden) if loops else min(next_power_of_2(hidden), 32)
    return {
        "KIND": kind,
        "PRECISION": "tf32" if tf32 else "ieee",
        "WIDEN": triton_is_interpreted(),
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
    matmul(x, input.view(steps.rows, -1), weight_ih.t())
    cell = None if c_0 is None else c_0.to(acc_dtype(input.dtype), copy=True)
    loops = _loops(steps, hidden, input.dtype)
    meta = _meta(kind, input.dtype, hidden, loops)
    tensors = (
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
            _forward_kernel, _programs(place[3], hidden, meta), input.device, *tensors, *place, hidden, **meta
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
    meta = _meta(kind, input.dtype, hidden, loops)
    tensors = (
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
        launch(_backward_kernel, programs, input.device, *tensors, *place, hidden, columns, **meta)
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
        matmul(grad_input.view(rows, input.shape[-1]), d_input, weight_ih)
    grad_weight_ih, grad_weight_hh = none, none
    if needs_weight:
        grad_weight_ih, grad_weight_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        matmul(grad_weight_ih, d_input.t(), input.view(rows, input.shape[-1]))
        matmul(grad_weight_hh, d.t(), _states_before(steps, reverse, output, h_0))
    # A sum in an order of torch's own, that is always the same.
    grad_bias_ih = d_input.sum(0) if needs_bias else none
    grad_bias_hh = d.sum(0) if needs_bias else none
    if not needs_state:
        return grad_input, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh, none, none
    grad_h_0 = torch.empty_like(h_0)
    for t in range(len(steps.counts)) if reverse else range(min(len(steps.counts), 1)):
        begin = steps.count(t + 1) if reverse else 0
        if steps.count(t) > begin:
            at = steps.offset(t)
            matmul(grad_h_0[begin : steps.count(t)], d[at + begin : at + steps.count(t)], weight_hh)
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
