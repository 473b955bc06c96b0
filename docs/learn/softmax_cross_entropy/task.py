"""Softmax cross-entropy with its gradient: how a version is called, what is right, what is measured."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ladder
import torch
from torch import Tensor

SHAPE = (4096, 1000)
#: Arguments of the exercise beside the library: as it is given, and solved.
EXERCISE_AS_GIVEN, EXERCISE = (0.0,), (0.1,)
UNIT = "logit"
Inputs = tuple[Tensor, Tensor]


def BYTES(inputs: Inputs) -> int:
    """The logits are read once and their gradient is written once."""
    return 2 * inputs[0].nbytes


def FLOPS(inputs: Inputs) -> int:
    """Subtraction, exponential (counted as one), sum and scaling of each logit, and the comparison."""
    return 5 * inputs[0].numel()


def UNITS(inputs: Inputs) -> int:
    return inputs[0].numel()


def large_case() -> Inputs:
    torch.manual_seed(0)
    return torch.randn(SHAPE), torch.randint(SHAPE[1], SHAPE[:1])


def small_cases() -> list[Inputs]:
    """One class, one row, sizes that no vector divides, logits that share an offset, logits far apart."""
    torch.manual_seed(1)
    shapes = ((1, 1), (3, 1), (1, 7), (7, 10), (5, 16), (13, 101), (4, 1000))
    cases = [(torch.randn(s), torch.randint(s[1], s[:1])) for s in shapes]
    logits, target = cases[-1]
    return [*cases, (logits + 1e4, target), (logits * 40, target), (logits - 200, target)]


def call(library: ctypes.CDLL, inputs: Inputs, smoothing: float | None = None) -> tuple[float, Tensor]:
    """The loss, and the gradient of the logits."""
    logits, target = inputs
    grad = torch.full_like(logits, torch.nan)
    return _run(library, logits, target, grad, torch.empty_like(logits), smoothing), grad


def _run(
    library: ctypes.CDLL,
    logits: Tensor,
    target: Tensor,
    grad: Tensor,
    scratch: Tensor,
    smoothing: float | None,
) -> float:
    function = library.cross_entropy
    function.restype = ctypes.c_float
    sizes = [ctypes.c_int64(n) for n in logits.shape]
    extra = [] if smoothing is None else [ctypes.c_float(smoothing)]
    pointers = [ladder.pointer(t) for t in (logits, target)]
    return float(function(*pointers, *sizes, ladder.pointer(grad), ladder.pointer(scratch), *extra))


def check(library: ctypes.CDLL, smoothing: float | None = None) -> None:
    """Loss and gradient are those of float64, to what float32 holds."""
    for inputs in small_cases():
        loss, grad = call(library, inputs, smoothing)
        logits = inputs[0].double().requires_grad_()
        exact = torch.nn.functional.cross_entropy(logits, inputs[1], label_smoothing=smoothing or 0.0)
        exact.backward()
        assert abs(loss - exact.item()) <= 1e-5 * max(1.0, abs(exact.item())), (inputs[0].shape, loss, exact)
        torch.testing.assert_close(grad, logits.grad.float(), rtol=2e-5, atol=1e-7)


def timed(library: ctypes.CDLL, inputs: Inputs) -> Callable[[], object]:
    logits, target = inputs
    grad, scratch = torch.zeros_like(logits), torch.zeros_like(logits)  # written, so that every page exists
    return lambda: _run(library, logits, target, grad, scratch, None)


def ours(inputs: Inputs) -> Callable[[], object]:
    import pyops.functional

    return _autograd(pyops.functional.cross_entropy, inputs)


def theirs(inputs: Inputs) -> Callable[[], object]:
    return _autograd(torch.nn.functional.cross_entropy, inputs)


def _autograd(function: Any, inputs: Inputs) -> Callable[[], object]:
    logits = inputs[0].requires_grad_()
    return lambda: torch.autograd.grad(function(logits, inputs[1]), logits)
