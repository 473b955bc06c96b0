"""Convolution of planes by kernels of 3 x 3 taps, with a border of 1, and its two gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ladder
import torch
from torch import Tensor

#: Images, input channels, output channels, height, width.
SHAPE = (4, 64, 64, 32, 32)
#: Arguments of the exercise beside the library: as it is given, and solved.
EXERCISE_AS_GIVEN, EXERCISE = (), ((1, 2, 3),)
UNIT = "multiply-add"
#: Images, the gradient of the result, weights.
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs_of(shape: tuple[int, int, int, int, int], stride: int = 1) -> Inputs:
    images, inputs, outputs, height, width = shape
    size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    weight = torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5
    return torch.randn(images, inputs, height, width), torch.randn(images, outputs, *size), weight


def BYTES(inputs: Inputs) -> int:
    """Forward reads images and weights; backward reads these and a gradient; each writes what it forms."""
    x, grad_out, weight = (t.nbytes for t in inputs)
    return 3 * x + 2 * grad_out + 3 * weight


def FLOPS(inputs: Inputs) -> int:
    """A multiplication and an addition for each tap of each output, in each of three passes."""
    return 3 * 2 * inputs[1].numel() * inputs[2][0].numel()


def UNITS(inputs: Inputs) -> int:
    return FLOPS(inputs) // 2


def large_case() -> Inputs:
    torch.manual_seed(0)
    return inputs_of(SHAPE)


def call(library: ctypes.CDLL, inputs: Inputs, stride: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the gradients of images and weights."""
    x, grad_out, weight = inputs
    out, grad, grad_weight = (torch.full_like(t, torch.nan) for t in (grad_out, x, weight))
    _run(library, inputs, (out, grad, grad_weight, _scratch(inputs)), stride)
    return out, grad, grad_weight


def _scratch(inputs: Inputs) -> Tensor:
    """Space for padded copies of images and gradient."""
    images, height, width = inputs[0].shape[0], *inputs[0].shape[2:]
    channels = inputs[0].shape[1] + inputs[1].shape[1] + 8
    return torch.zeros(images * channels * (height + 2) * (width + 48))


def _run(library: ctypes.CDLL, inputs: Inputs, results: tuple[Tensor, ...], stride: int = 1) -> None:
    (images, channels, *size), outputs = inputs[0].shape, inputs[2].shape[0]
    sizes = [ctypes.c_int64(n) for n in (images, channels, outputs, *size)]
    arguments = [*map(ladder.pointer, inputs), *sizes, *map(ladder.pointer, results)]
    if stride == 1:
        library.conv2d(*arguments)
    else:
        library.conv2d_strided(ctypes.c_int64(stride), *arguments)


def check(library: ctypes.CDLL, strides: tuple[int, ...] = (1,)) -> None:
    """Single pixels, single channels, sizes that no vector and no block divides, rows longer than a tile."""
    torch.manual_seed(1)
    for shape in ((1, 1, 1, 1, 1), (2, 3, 2, 1, 5), (1, 2, 9, 4, 1), (3, 5, 11, 6, 7), (1, 4, 8, 3, 33)):
        for stride in strides:
            inputs = inputs_of(shape, stride)
            x, weight = (inputs[i].double().requires_grad_() for i in (0, 2))
            out = torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)
            gradients = torch.autograd.grad(out, (x, weight), inputs[1].double())
            for got, want in zip(call(library, inputs, stride), (out, *gradients), strict=True):
                torch.testing.assert_close(got, want.detach().float(), rtol=1e-4, atol=1e-4)


def timed(library: ctypes.CDLL, inputs: Inputs) -> Callable[[], object]:
    results = tuple(torch.zeros_like(inputs[i]) for i in (1, 0, 2))  # written: every page exists
    results = (*results, _scratch(inputs))
    return lambda: _run(library, inputs, results)


def ours(inputs: Inputs) -> Callable[[], object]:
    import pyops.functional

    return _autograd(pyops.functional.conv2d, inputs)


def theirs(inputs: Inputs) -> Callable[[], object]:
    return _autograd(torch.nn.functional.conv2d, inputs)


def _autograd(function: Any, inputs: Inputs) -> Callable[[], object]:
    x, weight = inputs[0].requires_grad_(), inputs[2].requires_grad_()
    return lambda: torch.autograd.grad(function(x, weight, padding=1), (x, weight), inputs[1])
