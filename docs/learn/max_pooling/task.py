"""Max pooling of planes by windows of 3 x 3, 2 apart, with a border of 1, and its gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ladder
import torch
from torch import Tensor

SHAPE = (256, 112, 112)
WINDOW = {"kernel_size": 3, "stride": 2, "padding": 1}
#: Arguments of the exercise beside the library: as it is given, and solved.
EXERCISE_AS_GIVEN, EXERCISE = (False,), (True,)
UNIT = "element"
#: Planes [planes, height, width] and the gradient of what is pooled from them.
Inputs = tuple[Tensor, Tensor]


def inputs_of(shape: tuple[int, int, int], step: float = 0.0) -> Inputs:
    """``step`` rounds the numbers, so that some are equal."""
    planes = torch.randn(shape)
    planes = (planes / step).round() * step if step else planes
    return planes, torch.randn(shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2)


def BYTES(inputs: Inputs) -> int:
    """Forward reads the planes and writes the maxima, backward reads and writes as much the other way."""
    return 2 * (inputs[0].nbytes + inputs[1].nbytes)


def FLOPS(inputs: Inputs) -> int:
    """A comparison for each element of a window in either direction."""
    return 2 * 9 * inputs[1].numel()


def UNITS(inputs: Inputs) -> int:
    return inputs[0].numel()


def large_case() -> Inputs:
    torch.manual_seed(0)
    return inputs_of(SHAPE)


def small_cases() -> list[Inputs]:
    """Single rows and columns, even and odd sizes, rows longer than vectors, and equal numbers."""
    torch.manual_seed(1)
    shapes = ((1, 1, 1), (2, 1, 7), (2, 6, 1), (3, 2, 2), (3, 7, 5), (2, 8, 8), (1, 13, 33), (2, 5, 130))
    return [inputs_of(shape, step) for shape in shapes for step in (0.0, 1.0)]


def call(library: ctypes.CDLL, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The maxima, and the gradient of the planes."""
    out, grad = torch.full_like(inputs[1], torch.nan), torch.full_like(inputs[0], torch.nan)
    _run(library, inputs, out, grad, torch.empty(out.shape, dtype=torch.int64))
    return out, grad


def _run(library: ctypes.CDLL, inputs: Inputs, out: Tensor, grad: Tensor, scratch: Tensor) -> None:
    sizes = [ctypes.c_int64(n) for n in inputs[0].shape]
    library.max_pool(*map(ladder.pointer, inputs), *sizes, *map(ladder.pointer, (out, grad, scratch)))


def check(library: ctypes.CDLL, with_nan: bool = False) -> None:
    """The maxima are exact; a gradient is the sum of at most four numbers."""
    for inputs in small_cases():
        if with_nan:
            inputs[0].view(-1)[:: 1 + inputs[0].numel() // 3] = torch.nan
        out, grad = call(library, inputs)
        planes = inputs[0].clone().requires_grad_()
        exact = torch.nn.functional.max_pool2d(planes, **WINDOW)
        exact.backward(inputs[1])
        torch.testing.assert_close(out, exact, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(grad, planes.grad, rtol=1e-5, atol=1e-6)


def timed(library: ctypes.CDLL, inputs: Inputs) -> Callable[[], object]:
    out, grad = torch.zeros_like(inputs[1]), torch.zeros_like(inputs[0])  # written: every page exists
    scratch = torch.zeros(out.shape, dtype=torch.int64)
    return lambda: _run(library, inputs, out, grad, scratch)


def ours(inputs: Inputs) -> Callable[[], object]:
    import pyops.functional

    return _autograd(pyops.functional.max_pool2d, inputs)


def theirs(inputs: Inputs) -> Callable[[], object]:
    return _autograd(torch.nn.functional.max_pool2d, inputs)


def _autograd(function: Any, inputs: Inputs) -> Callable[[], object]:
    planes = inputs[0].requires_grad_()
    return lambda: torch.autograd.grad(function(planes, **WINDOW), planes, inputs[1])
