"""Cases of recurrent layers and cells: a layer of the language model, and a small one of many sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyops

from .registry import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic

_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class RecurrentCase(Case):
    """A layer in one direction, or a cell; states and weights, sequences to torch, are single inputs here."""

    def pyops_call(self) -> Callable[..., Tensor]:
        return self._call(getattr(pyops.functional, self.op))

    def eager_call(self) -> Callable[..., Tensor]:
        return self._call(getattr(torch, self.op))

    def _call(self, function: Callable[..., Any]) -> Callable[..., Tensor]:
        is_cell, is_lstm = self.op.endswith("_cell"), self.op.startswith("lstm")

        def cell(input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
            output = function(input, (h, h) if is_lstm else h, w_ih, w_hh, b_ih, b_hh)
            return output[0] if is_lstm else output

        def layer(input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
            weights = (w_ih, w_hh, b_ih, b_hh)
            return function(input, (h, h) if is_lstm else h, weights, True, 1, 0.0, True, False, False)[0]

        return cell if is_cell else layer


def traffic(gates: int, steps: int, batch: int, inputs: int, hidden: int) -> Callable[[str], Traffic]:
    """Input and output once each way, the gates written and read again; weights come from the cache."""

    def of(mode: str) -> Traffic:
        rows = steps * batch
        read, written = 4 * rows * inputs, 4 * rows * hidden * (1 + gates)
        flops = 2 * rows * gates * hidden * (inputs + hidden)
        if mode == FORWARD:
            return Traffic(read, written, flops)
        return Traffic(2 * read + written, written + read + 4 * rows * gates * hidden, 3 * flops)

    return of


def case(op: str, steps: int, batch: int, inputs: int, hidden: int, **more: Any) -> Case:
    gates, is_cell = _GATES[op.removesuffix("_cell")], op.endswith("_cell")

    def build(device: torch.device) -> Inputs:
        def draw(*sizes: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(sizes, device=device) * scale).requires_grad_()

        scale = hidden**-0.5
        return {
            "input": draw(*(() if is_cell else (steps,)), batch, inputs),
            "h": draw(*(() if is_cell else (1,)), batch, hidden),
            "w_ih": draw(gates * hidden, inputs, scale=scale),
            "w_hh": draw(gates * hidden, hidden, scale=0.5 * scale),
            "b_ih": draw(gates * hidden, scale=scale),
            "b_hh": draw(gates * hidden, scale=scale),
        }

    label = f"[{batch}, {inputs}]" if is_cell else f"[{steps}, {batch}, {inputs}]"
    return RecurrentCase(
        op,
        f"{label} -> {hidden}",
        inputs=build,
        traffic=traffic(gates, steps, batch, inputs, hidden),
        differentiable=("input", "h", "w_ih", "w_hh", "b_ih", "b_hh"),
        **{"modes": (FORWARD_BACKWARD,), **more},
    )


_SMALL: dict[str, Any] = {"overhead": True, "modes": (FORWARD, FORWARD_BACKWARD)}
CASES = [
    *(case(op, 4, 4, 8, 16, **_SMALL) for op in _GATES),
    *(case(f"{op}_cell", 1, 4, 8, 16, **_SMALL) for op in _GATES),
    *(case(op, 35, 32, 28, 256, quick=op == "gru") for op in _GATES),
    *(case(op, 32, 1024, 28, 32) for op in _GATES),
]
