"""Cases of the recurrent layers, one layer forward in time: a language model's shapes, small layers, packed
sequences of lengths uniform in 1..T."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyops.functional

from .registry import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic

_GATES = {"rnn_tanh": 1, "lstm": 4, "gru": 3}
_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _call(function: Callable[..., Any], torchs: bool) -> Callable[..., Tensor]:
    """``function``, torch's or pyops', of tensors by name."""

    def call(
        input: Tensor,
        h_0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        c_0: Tensor | None = None,
        batch_sizes: Tensor | None = None,
    ) -> Tensor:
        hx = h_0 if c_0 is None else (h_0, c_0)
        options = ([weight_ih, weight_hh, bias_ih, bias_hh], True, 1, 0.0, True, False)
        if batch_sizes is None:
            return function(input, hx, *options, False)[0]
        if torchs:
            return function(input, batch_sizes, hx, *options)[0]
        return function(input, hx, *options, batch_sizes=batch_sizes)[0]

    return call


@dataclass(frozen=True)
class RecurrentCase(Case):
    def pyops_call(self) -> Callable[..., Tensor]:
        return _call(getattr(pyops.functional, self.op), torchs=False)


def _batch_sizes(steps: int, batch: int) -> Tensor:
    """Of sequences of lengths uniform in 1..steps, one of them of all steps."""
    lengths = torch.randint(1, steps + 1, (batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = steps
    return torch.stack([(lengths > t).sum() for t in range(steps)])


def case(
    op: str, steps: int, batch: int, inputs: int, hidden: int, *, packed: bool = False, **more: Any
) -> Case:
    gates = _GATES[op] * hidden
    sizes = _batch_sizes(steps, batch) if packed else None
    rows = steps * batch if sizes is None else int(sizes.sum())

    def make(device: torch.device) -> Inputs:
        def uniform(*shape: int) -> Tensor:
            return (torch.rand(shape, device=device) * 2 - 1) * hidden**-0.5

        shape = (steps, batch, inputs) if sizes is None else (rows, inputs)
        drawn: Inputs = {
            "input": torch.randn(shape, device=device),
            "h_0": torch.zeros(1, batch, hidden, device=device),
            "weight_ih": uniform(gates, inputs),
            "weight_hh": uniform(gates, hidden),
            "bias_ih": uniform(gates),
            "bias_hh": uniform(gates),
        }
        if op == "lstm":
            drawn["c_0"] = torch.zeros(1, batch, hidden, device=device)
        if sizes is not None:
            drawn["batch_sizes"] = sizes
        return drawn

    def traffic(mode: str) -> Traffic:
        parameters = gates * (inputs + hidden + 2)
        flops = 2 * rows * gates * (inputs + hidden)
        if mode == FORWARD:
            return Traffic(4 * (rows * inputs + parameters), 4 * rows * hidden, flops)
        # Input, output and its gradient are read again, gradients of input and parameters written.
        read = 2 * (rows * inputs + parameters) + 2 * rows * hidden
        return Traffic(4 * read, 4 * (rows * (inputs + hidden) + parameters), 3 * flops)

    return RecurrentCase(
        op,
        f"T={steps} N={batch} I={inputs} H={hidden}{' packed' if packed else ''}",
        make,
        traffic,
        modes=(FORWARD, FORWARD_BACKWARD),
        differentiable=("input", *_PARAMETERS),
        torch_call=_call(getattr(torch, op), torchs=True),
        **more,
    )


CASES = [
    sized
    for op in _GATES
    for sized in (
        case(op, 35, 32, 28, 256, quick=True),
        case(op, 35, 32, 28, 256, packed=True),
        case(op, 32, 1024, 28, 32),
        case(op, 100, 1, 128, 128),
        case(op, 128, 64, 512, 512, devices=("cuda",)),
    )
]
