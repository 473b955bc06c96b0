"""Cases of recurrent layers and cells: a layer of the language model, a small one of many sequences, and both
for sequences of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyops

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic

_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class RecurrentCase(Case):
    """A layer in one direction, or a cell; states and weights, sequences to torch, are single inputs here."""

    #: Of a packed batch.
    batch_sizes: tuple[int, ...] | None = None

    def pyops_call(self) -> Callable[..., Tensor]:
        def packed(input: Tensor, batch_sizes: Tensor, *arguments: Any) -> Any:
            return function(input, *arguments, batch_sizes=batch_sizes)

        function = getattr(pyops.functional, self.op)
        return self._call(packed if self.batch_sizes else function)

    def eager_call(self) -> Callable[..., Tensor]:
        return self._call(getattr(torch, self.op))

    def _call(self, function: Callable[..., Any]) -> Callable[..., Tensor]:
        is_cell, is_lstm = self.op.endswith("_cell"), self.op.startswith("lstm")
        packed = () if self.batch_sizes is None else (torch.tensor(self.batch_sizes),)
        batch_first = () if packed else (False,)

        def cell(input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
            output = function(input, (h, h) if is_lstm else h, w_ih, w_hh, b_ih, b_hh)
            return output[0] if is_lstm else output

        def layer(input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
            options = ((w_ih, w_hh, b_ih, b_hh), True, 1, 0.0, True, False, *batch_first)
            return function(input, *packed, (h, h) if is_lstm else h, *options)[0]

        return cell if is_cell else layer


def traffic(gates: int, rows: int, inputs: int, hidden: int, size: int) -> Callable[[str], Traffic]:
    """Input and output once each way, the gates written and read again; weights come from the cache."""

    def of(mode: str) -> Traffic:
        read, written = size * rows * inputs, size * rows * hidden * (1 + gates)
        flops = 2 * rows * gates * hidden * (inputs + hidden)
        if mode == FORWARD:
            return Traffic(read, written, flops)
        return Traffic(2 * read + written, written + read + size * rows * gates * hidden, 3 * flops)

    return of


def case(
    op: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    *,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Case:
    """``packed``: sequences whose lengths are spread evenly over 1 to ``steps``; otherwise all have that."""
    gates, is_cell = _GATES[op.removesuffix("_cell")], op.endswith("_cell")
    sizes = tuple(max(batch * (steps - t) // steps, 1) for t in range(steps)) if packed else None
    rows = sum(sizes) if sizes else steps * batch
    leading = (batch,) if is_cell else (rows,) if packed else (steps, batch)

    def build(device: torch.device) -> Inputs:
        def draw(*sizes: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(sizes, device=device) * scale).to(dtype).requires_grad_()

        scale = hidden**-0.5
        return {
            "input": draw(*leading, inputs),
            "h": draw(*(() if is_cell else (1,)), batch, hidden),
            "w_ih": draw(gates * hidden, inputs, scale=scale),
            "w_hh": draw(gates * hidden, hidden, scale=0.5 * scale),
            "b_ih": draw(gates * hidden, scale=scale),
            "b_hh": draw(gates * hidden, scale=scale),
        }

    shape = [batch, inputs] if is_cell else [steps, batch, inputs]
    return RecurrentCase(
        op,
        f"{shape} -> {hidden}{' packed' if packed else ''}",
        inputs=build,
        traffic=traffic(gates, rows, inputs, hidden, dtype.itemsize),
        dtype=dtype,
        differentiable=("input", "h", "w_ih", "w_hh", "b_ih", "b_hh"),
        batch_sizes=sizes,
        tf32=True,
        **{"modes": (FORWARD_BACKWARD,), **more},
    )


_SMALL: dict[str, Any] = {"overhead": True, "modes": (FORWARD, FORWARD_BACKWARD)}
CASES = [
    *(case(op, 4, 4, 8, 16, **_SMALL) for op in _GATES),
    *(case(f"{op}_cell", 1, 4, 8, 16, **_SMALL) for op in _GATES),
    *(case(op, 35, 32, 28, 256, quick=op == "gru") for op in _GATES),
    *(case(op, 32, 1024, 28, 32) for op in _GATES),
    # To be compared with the dense ones of the same size, too.
    *(case(op, 35, 32, 28, 256, packed=True) for op in ("gru", "lstm")),
    *(case(op, 32, 1024, 28, 32, packed=True) for op in ("gru", "lstm")),
    # Of which no block of a GPU can hold the weights.
    *(case(op, 256, 64, 512, 512, dtype=torch.bfloat16, devices=("cuda",)) for op in _GATES),
]
