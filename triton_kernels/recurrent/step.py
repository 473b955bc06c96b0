"""The kernels of recurrent layers: steps of a tile of sequences and units, and the cells' formulas."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import activate, derive_from_output
from ..tools.math import logistic, tanh
from ..tools.product import multiply_add

# The kinds' numbers: those of pyops/kinds.py.
RNN_TANH = tl.constexpr(0)
RNN_RELU = tl.constexpr(1)
LSTM = tl.constexpr(2)
GRU = tl.constexpr(3)


# ------------------------------------------------------------------------------------------------- the cells


@triton.jit
def _cell_forward(
    x0, x1, x2, x3, s0, s1, s2, s3, h, c,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, storage: tl.constexpr,
):  # fmt: skip
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
        y = activate(x0 + s0, ACTIVATION, storage)
        return y, y, y, y, y, y


@triton.jit
def _cell_backward(dh, dc, g0, g1, g2, g3, extra, h, c, y, KIND: tl.constexpr, ACTIVATION: tl.constexpr):
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
        d = derive_from_output(y, dh, ACTIVATION)
        return d, d, d, d, d, d


# ------------------------------------------------------------------------------------------------ the kernels


class ForwardTensors(NamedTuple):
    """What forward reads and writes.

    ``x`` [rows, gates * units]: the input's products; ``weight_hh``, ``bias_ih``, ``bias_hh``: parameters;
    ``h_0``: the first states; ``cell`` [sequences, units]: the LSTM's c, kept in float32; ``gates`` and
    ``extra``: what backward needs, unless None; ``output``: all states; ``h_n`` and ``c_n``: the last ones.
    """

    x: torch.Tensor
    weight_hh: torch.Tensor
    bias_ih: torch.Tensor | None
    bias_hh: torch.Tensor | None
    h_0: torch.Tensor
    cell: torch.Tensor | None
    gates: torch.Tensor | None
    extra: torch.Tensor | None
    output: torch.Tensor
    h_n: torch.Tensor
    c_n: torch.Tensor


class BackwardTensors(NamedTuple):
    """What backward reads and writes.

    ``grad_output``, ``grad_h_n`` and ``grad_c_n``: of forward's results, unless None; ``weight_hh``,
    ``gates``, ``extra``, ``output``, ``h_0`` and ``c_0``: as forward got or left them; ``d`` and ``d_input``:
    gradients of the state's and the input's shares of the gates; ``carry`` [sequences, units]: what one step
    leaves to the one before, c's gradient or, in a GRU, h's.
    """

    grad_output: torch.Tensor | None
    grad_h_n: torch.Tensor | None
    grad_c_n: torch.Tensor | None
    weight_hh: torch.Tensor
    gates: torch.Tensor
    extra: torch.Tensor
    output: torch.Tensor
    h_0: torch.Tensor
    c_0: torch.Tensor | None
    d: torch.Tensor
    d_input: torch.Tensor
    carry: torch.Tensor


@triton.jit
def _tile(count, hidden, BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr):
    """Sequences [B, 1] and units [1, U] of this program; which units exist, and which sequences."""
    unit_tiles = tl.cdiv(hidden, BLOCK_U)
    pid = tl.program_id(0).to(tl.int64)
    b = (pid // unit_tiles * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    u = (pid % unit_tiles * BLOCK_U + tl.arange(0, BLOCK_U))[None, :]
    return b, u, u < hidden, b < count


@triton.jit
def _state_before(states, initial, mask, known, acc: tl.constexpr):
    """What a step starts from: of ``states`` where its predecessor is ``known``, otherwise of ``initial``."""
    state = tl.load(states, mask=mask & known, other=0.0).to(acc)
    return state + tl.load(initial, mask=mask & (known == 0), other=0.0).to(acc)


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


@triton.jit(do_not_specialize=["steps", "row", "stride", "count", "before", "before_count", "ending"])
def forward_kernel(
    tensors, steps: tl.int64, row: tl.int64, stride: tl.int64, count: tl.int64, before: tl.int64,
    before_count: tl.int64, ending: tl.int64, hidden: tl.int64,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``steps`` steps, ``stride`` rows apart; in the first, sequence b < ``count`` has row ``row`` + b.

    Its predecessor has row ``before`` + b if b < ``before_count``, otherwise it begins here. In the last step
    the sequences from ``ending`` on end. ``ACTIVATION`` is the one of a plain RNN.
    """
    storage: tl.constexpr = tensors.output.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    GATES: tl.constexpr = 4 if KIND == LSTM else (3 if KIND == GRU else 1)
    b, u, column_exists, row_exists = _tile(count, hidden, BLOCK_B, BLOCK_U)
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
            left_at = tensors.output + (earlier + b) * hidden + across
            left = tl.load(left_at, mask=left_mask & known, other=0.0)
            first_mask = left_mask & (b >= 0) & (known == 0)
            first = tl.load(tensors.h_0 + b * hidden + across, mask=first_mask, other=0.0)
            left = tl.where(known, left, first)
            exists = down < hidden
            w0 = _weights(tensors.weight_hh, u, down, column_exists, exists, hidden, 0)
            s0 = multiply_add(left, w0, s0, PRODUCT)
            if GATES > 1:
                w1 = _weights(tensors.weight_hh, u, down, column_exists, exists, hidden, 1)
                w2 = _weights(tensors.weight_hh, u, down, column_exists, exists, hidden, 2)
                s1 = multiply_add(left, w1, s1, PRODUCT)
                s2 = multiply_add(left, w2, s2, PRODUCT)
            if GATES > 3:
                w3 = _weights(tensors.weight_hh, u, down, column_exists, exists, hidden, 3)
                s3 = multiply_add(left, w3, s3, PRODUCT)
        at = (now + b) * GATES * hidden + u
        x0 = tl.load(tensors.x + at, mask=mask, other=0.0).to(acc)
        x0 += _bias(tensors.bias_ih, u, column_exists, acc)
        x1, x2, x3 = x0, x0, x0
        s0 += _bias(tensors.bias_hh, u, column_exists, acc)
        if GATES > 1:
            x1 = tl.load(tensors.x + at + hidden, mask=mask, other=0.0).to(acc)
            x2 = tl.load(tensors.x + at + 2 * hidden, mask=mask, other=0.0).to(acc)
            x1 += _bias(tensors.bias_ih, hidden + u, column_exists, acc)
            x2 += _bias(tensors.bias_ih, 2 * hidden + u, column_exists, acc)
            s1 += _bias(tensors.bias_hh, hidden + u, column_exists, acc)
            s2 += _bias(tensors.bias_hh, 2 * hidden + u, column_exists, acc)
        if GATES > 3:
            x3 = tl.load(tensors.x + at + 3 * hidden, mask=mask, other=0.0).to(acc)
            x3 += _bias(tensors.bias_ih, 3 * hidden + u, column_exists, acc)
            s3 += _bias(tensors.bias_hh, 3 * hidden + u, column_exists, acc)
        c = x0
        h = x0
        if KIND == LSTM:
            c = tl.load(tensors.cell + state_at, mask=mask, other=0.0)
        if KIND == GRU:
            states = tensors.output + (earlier + b) * hidden + u
            h = _state_before(states, tensors.h_0 + state_at, mask, known, acc)
        g0, g1, g2, g3, rest, y = _cell_forward(
            x0, x1, x2, x3, s0, s1, s2, s3, h, c, KIND, ACTIVATION, storage
        )
        if KIND == LSTM:
            tl.store(tensors.cell + state_at, rest, mask=mask)
        if tensors.gates is not None:
            tl.store(tensors.gates + at, g0.to(storage), mask=mask)
            tl.store(tensors.gates + at + hidden, g1.to(storage), mask=mask)
            tl.store(tensors.gates + at + 2 * hidden, g2.to(storage), mask=mask)
            if GATES > 3:
                tl.store(tensors.gates + at + 3 * hidden, g3.to(storage), mask=mask)
            tl.store(tensors.extra + (now + b) * hidden + u, rest.to(storage), mask=mask)
        tl.store(tensors.output + (now + b) * hidden + u, y.to(storage), mask=mask)
        ends = mask & (b >= tl.where(i == steps - 1, ending, count))
        tl.store(tensors.h_n + state_at, y.to(storage), mask=ends)
        if KIND == LSTM:
            tl.store(tensors.c_n + state_at, rest.to(storage), mask=ends)
        tl.debug_barrier()  # the next step reads what this one has written


@triton.jit(
    do_not_specialize=["steps", "row", "stride", "count", "before", "before_count", "ending", "after"]
)
def backward_kernel(
    tensors, steps: tl.int64, row: tl.int64, stride: tl.int64, count: tl.int64, after: tl.int64,
    ending: tl.int64, before: tl.int64, before_count: tl.int64, hidden: tl.int64, columns: tl.int64,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``steps`` steps against the direction of the layer; the first has rows ``row`` + b, b < ``count``.

    The next one's are ``stride`` rows on. Of the first step's successors, b < ``ending``, the rows are
    ``after`` + b; other sequences end here. In the last step the predecessors have rows ``before`` + b,
    b < ``before_count``. ``ACTIVATION`` is the one of a plain RNN.
    """
    storage: tl.constexpr = tensors.output.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    GATES: tl.constexpr = 4 if KIND == LSTM else (3 if KIND == GRU else 1)
    b, u, column_exists, row_exists = _tile(count, hidden, BLOCK_B, BLOCK_U)
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
            left = tl.load(tensors.d + (later + b) * columns + across, mask=left_mask, other=0.0)
            right_mask = (down < columns) & column_exists
            right = tl.load(tensors.weight_hh + down * hidden + u, mask=right_mask, other=0.0)
            total = multiply_add(left, right, total, PRODUCT)
        dh = total
        if tensors.grad_output is not None:
            dh += tl.load(tensors.grad_output + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        ends = mask & (goes_on == 0)
        if tensors.grad_h_n is not None:
            dh += tl.load(tensors.grad_h_n + state_at, mask=ends, other=0.0).to(acc)
        carried = tl.zeros([BLOCK_B, BLOCK_U], acc)
        if GATES > 1:
            carried = tl.load(tensors.carry + state_at, mask=mask & goes_on, other=0.0)
        if KIND == GRU:
            dh += carried
        if tensors.grad_c_n is not None:
            carried += tl.load(tensors.grad_c_n + state_at, mask=ends, other=0.0).to(acc)
        y = tl.load(tensors.output + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        at = (now + b) * columns + u
        g0, g1, g2, g3, rest, h, c = y, y, y, y, y, y, y
        is_last = i == steps - 1
        earlier = tl.where(is_last, before, now + stride)
        known = b < tl.where(is_last, before_count, count)
        if GATES > 1:
            g0 = tl.load(tensors.gates + at, mask=mask, other=0.0).to(acc)
            g1 = tl.load(tensors.gates + at + hidden, mask=mask, other=0.0).to(acc)
            g2 = tl.load(tensors.gates + at + 2 * hidden, mask=mask, other=0.0).to(acc)
            rest = tl.load(tensors.extra + (now + b) * hidden + u, mask=mask, other=0.0).to(acc)
        if KIND == GRU:
            states = tensors.output + (earlier + b) * hidden + u
            h = _state_before(states, tensors.h_0 + state_at, mask, known, acc)
        if KIND == LSTM:
            g3 = tl.load(tensors.gates + at + 3 * hidden, mask=mask, other=0.0).to(acc)
            states = tensors.extra + (earlier + b) * hidden + u
            c = _state_before(states, tensors.c_0 + state_at, mask, known, acc)
        d0, d1, d2, d3, last, carried = _cell_backward(
            dh, carried, g0, g1, g2, g3, rest, h, c, y, KIND, ACTIVATION
        )
        tl.store(tensors.d + at, d0.to(storage), mask=mask)
        if GATES > 1:
            tl.store(tensors.d + at + hidden, d1.to(storage), mask=mask)
            tl.store(tensors.d + at + 2 * hidden, d2.to(storage), mask=mask)
            tl.store(tensors.carry + state_at, carried, mask=mask)
        if GATES > 3:
            tl.store(tensors.d + at + 3 * hidden, d3.to(storage), mask=mask)
        if KIND == GRU:
            tl.store(tensors.d_input + at, d0.to(storage), mask=mask)
            tl.store(tensors.d_input + at + hidden, d1.to(storage), mask=mask)
            tl.store(tensors.d_input + at + 2 * hidden, last.to(storage), mask=mask)
        tl.debug_barrier()
