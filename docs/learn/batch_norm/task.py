"""Batch norm with ReLU, in training, and its gradient: images [N, C, pixels]."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ladder
import torch
from torch import Tensor

SHAPE = (16, 64, 56 * 56)
#: Arguments of the exercise beside the library: as it is given, and solved.
EXERCISE_AS_GIVEN, EXERCISE = (0.0,), (1e4,)
UNIT = "element"
#: Images, the gradient of the result, weight and bias of the channels.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs_of(shape: tuple[int, int, int], mean: float) -> Inputs:
    return torch.randn(shape) + mean, torch.randn(shape), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])


def BYTES(inputs: Inputs) -> int:
    """Forward reads the images and writes the result; backward reads images and gradient and writes one."""
    return 5 * inputs[0].nbytes


def FLOPS(inputs: Inputs) -> int:
    """5 operations for each element forward, 8 backward."""
    return 13 * inputs[0].numel()


def UNITS(inputs: Inputs) -> int:
    return inputs[0].numel()


def large_case() -> Inputs:
    torch.manual_seed(0)
    return inputs_of(SHAPE, 0.0)


def call(library: ctypes.CDLL, inputs: Inputs) -> list[Tensor]:
    """The result, and the gradients of images, weight and bias."""
    results = [torch.full_like(t, torch.nan) for t in (inputs[0], inputs[0], inputs[2], inputs[3])]
    _run(library, inputs, results, torch.empty_like(inputs[0]))
    return results


def _run(library: ctypes.CDLL, inputs: Inputs, results: list[Tensor], scratch: Tensor) -> None:
    sizes = [ctypes.c_int64(n) for n in inputs[0].shape]
    library.batch_norm_relu(
        *map(ladder.pointer, inputs), *sizes, *map(ladder.pointer, results), ladder.pointer(scratch)
    )


def check(library: ctypes.CDLL, mean: float = 1e4) -> None:
    """Means that are large beside the deviation, single pixels, sizes that no vector divides."""
    torch.manual_seed(1)
    for shape in ((2, 1, 1), (3, 2, 5), (2, 3, 16), (5, 2, 101), (2, 3, 4500)):
        for offset in (0.0, mean):
            inputs = inputs_of(shape, offset)
            exact = _exact(inputs)
            # A normalised value this close to 0 has its sign, and its gradient, from the last bit.
            inputs[1][(exact[-1].abs() < 1e-3)] = 0.0
            for got, want in zip(call(library, inputs), _exact(inputs)[:-1], strict=True):
                torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=2e-3 if offset else 1e-4)


def _exact(inputs: Inputs) -> list[Tensor]:
    x, weight, bias = (inputs[i].double().requires_grad_() for i in (0, 2, 3))
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    gradients = torch.autograd.grad(y.relu(), (x, weight, bias), inputs[1].double())
    return [y.relu().detach(), *gradients, y.detach()]


def timed(library: ctypes.CDLL, inputs: Inputs) -> Callable[[], object]:
    results = [torch.zeros_like(t) for t in (inputs[0], inputs[0], inputs[2], inputs[3])]
    scratch = torch.zeros_like(inputs[0])  # written: every page exists
    return lambda: _run(library, inputs, results, scratch)


def ours(inputs: Inputs) -> Callable[[], object]:
    import pyops.functional

    def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pyops.functional.batch_norm(x, None, None, weight, bias, True, activation="relu")

    return _autograd(batch_norm_relu, inputs)


def theirs(inputs: Inputs) -> Callable[[], object]:
    def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, None, None, weight, bias, True).relu()

    return _autograd(batch_norm_relu, inputs)


def _autograd(function: Any, inputs: Inputs) -> Callable[[], object]:
    leaves = [inputs[i].requires_grad_() for i in (0, 2, 3)]
    return lambda: torch.autograd.grad(function(*leaves), leaves, inputs[1])
