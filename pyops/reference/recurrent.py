"""One direction of one recurrent layer as torch formulas, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ..kinds import LSTM, RNN_RELU, RNN_TANH


def recurrent(
    input: Tensor,
    weights: Sequence[Tensor | None],
    h_0: Tensor,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    kind: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last h and last c; the arguments are those of ``pyops/ops/recurrent.py``.

    ``weights`` are weight_ih, weight_hh, bias_ih, bias_hh and the LSTM's projection weight_hr.
    """
    dtype = input.dtype
    acc = acc_dtype(dtype)
    w_ih, w_hh, b_ih, b_hh, w_hr = (None if w is None else w.to(acc) for w in weights)
    assert w_ih is not None
    x = torch.nn.functional.linear(input.to(acc), w_ih, b_ih)
    if batch_sizes is None:
        steps: Sequence[Tensor] = x.unbind(0)
    else:
        steps = x.split(batch_sizes.tolist())
    h = h_0.to(acc)
    c = None if c_0 is None else c_0.to(acc)
    outputs: list[Tensor] = []
    for step in reversed(steps) if reverse else steps:
        # Sequences that have not begun, or are over, keep their state.
        active = step.shape[0]
        h_now, c_now = _cell(step, h[:active], None if c is None else c[:active], w_hh, b_hh, w_hr, kind)
        outputs.append(h_now)
        h = torch.cat([h_now, h[active:]])
        c = None if c is None or c_now is None else torch.cat([c_now, c[active:]])
    outputs = outputs[::-1] if reverse else outputs
    output = torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)
    return output.to(dtype), h.to(dtype), None if c is None else c.to(dtype)


def _cell(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    kind: int,
) -> tuple[Tensor, Tensor | None]:
    """h and c after one step; ``x`` [N, G H] is the input's share of the gates."""
    assert w_hh is not None
    from_h = torch.nn.functional.linear(h, w_hh, b_hh)
    if kind == RNN_TANH:
        return torch.tanh(x + from_h), None
    if kind == RNN_RELU:
        return torch.relu(x + from_h), None
    if kind == LSTM:
        assert c is not None
        i, f, g, o = (x + from_h).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if w_hr is None else torch.nn.functional.linear(h, w_hr)), c
    x_r, x_z, x_n = x.chunk(3, 1)
    h_r, h_z, h_n = from_h.chunk(3, 1)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return n + torch.sigmoid(x_z + h_z) * (h - n), None
