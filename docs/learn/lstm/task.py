"""An LSTM layer over sequences [T, N, I], and its gradient back through time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ladder
import torch
from torch import Tensor

#: Steps, sequences, inputs, units.
SHAPE = (35, 32, 64, 128)
#: Arguments of the exercise beside the library: as it is given, and solved.
EXERCISE_AS_GIVEN, EXERCISE = ((1,),), ()
UNIT = "multiply-add"
#: Sequences, the gradient of the result, weights of the input and of the state, bias.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs_of(shape: tuple[int, int, int, int]) -> Inputs:
    steps, sequences, inputs, units = shape
    weights = (torch.randn(4 * units, n) / n**0.5 for n in (inputs, units))
    sequence = torch.randn(steps, sequences, inputs)
    return sequence, torch.randn(steps, sequences, units), *weights, torch.randn(4 * units)


def BYTES(inputs: Inputs) -> int:
    """Forward reads the sequences and writes the result and the gates; backward reads these and the gradient
    of the result, and writes the gradients of the gates and of the sequences."""
    x, h = inputs[0].nbytes, inputs[1].nbytes
    return (x + h + 4 * h) + (x + 2 * h + 4 * h) + (4 * h + x)


def FLOPS(inputs: Inputs) -> int:
    """Products of states and inputs with the weights, forward, and twice as many backward."""
    rows = inputs[0].shape[0] * inputs[0].shape[1]
    return 3 * 2 * rows * (inputs[2].numel() + inputs[3].numel())


def UNITS(inputs: Inputs) -> int:
    return FLOPS(inputs) // 2


def large_case() -> Inputs:
    torch.manual_seed(0)
    return inputs_of(SHAPE)


def call(library: ctypes.CDLL, inputs: Inputs) -> list[Tensor]:
    """The result, and the gradients of sequences, weights and bias."""
    results = [torch.full_like(t, torch.nan) for t in (inputs[1], inputs[0], *inputs[2:])]
    _run(library, inputs, results, _scratch(inputs))
    return results


def _scratch(inputs: Inputs) -> Tensor:
    """Space for the gates, cells and gradients of all steps, and for copies of what products read."""
    (steps, sequences, length), units = inputs[0].shape, inputs[1].shape[2]
    kept = 10 * units + length + units + 64
    return torch.zeros(steps * sequences * kept + 8 * (units + 32) * (length + units + 64))


def _run(library: ctypes.CDLL, inputs: Inputs, results: list[Tensor], scratch: Tensor) -> None:
    sizes = [ctypes.c_int64(n) for n in (*inputs[0].shape, inputs[1].shape[2])]
    library.lstm(*map(ladder.pointer, inputs), *sizes, *map(ladder.pointer, (*results, scratch)))


def check(library: ctypes.CDLL, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Single steps, sequences, inputs and units; sizes that no vector and no block divides; full gates."""
    torch.manual_seed(1)
    for length in steps:
        for shape in ((1, 1, 1), (3, 2, 5), (8, 7, 16), (9, 33, 19), (2, 3, 32)):
            for factor in (1, 40):
                inputs = inputs_of((length, *shape))
                inputs[4].mul_(factor)
                exact = _exact([t.double() for t in inputs])
                for got, want in zip(call(library, inputs), exact, strict=True):
                    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)


def _exact(inputs: list[Tensor]) -> list[Tensor]:
    leaves = [inputs[i].requires_grad_() for i in (0, 2, 3, 4)]
    out = _with_torch(torch.lstm, *leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[1])]


def _with_torch(lstm: Any, x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
    """The result of torch's function of all sorts of layers, which has two biases."""
    start = x.new_zeros(1, x.shape[1], w_hh.shape[1])
    weights = [w_ih, w_hh, bias, torch.zeros_like(bias)]
    out: Tensor = lstm(x, (start, start), weights, True, 1, 0.0, True, False, False)[0]
    return out


def timed(library: ctypes.CDLL, inputs: Inputs) -> Callable[[], object]:
    results = [torch.zeros_like(t) for t in (inputs[1], inputs[0], *inputs[2:])]  # written: every page exists
    scratch = _scratch(inputs)
    return lambda: _run(library, inputs, results, scratch)


def ours(inputs: Inputs) -> Callable[[], object]:
    import pyops.functional

    return _autograd(pyops.functional.lstm, inputs)


def theirs(inputs: Inputs) -> Callable[[], object]:
    return _autograd(torch.lstm, inputs)


def _autograd(lstm: Any, inputs: Inputs) -> Callable[[], object]:
    leaves = [inputs[i].requires_grad_() for i in (0, 2, 3, 4)]
    return lambda: torch.autograd.grad(_with_torch(lstm, *leaves), leaves, inputs[1])
