"""How many operations an op counts as in :mod:`torch.utils.flop_counter`: as many as torch's op in its place.

What torch does not count (activations, normalisation, pooling, losses) is not counted here. The formulas are
registered when the counter is imported, because it imports Triton.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

from . import _library

_COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def watch() -> None:
    """Register the formulas now, or when the counter is imported."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AtImport())


class _AtImport:
    """The finder of one import, which it leaves to the others."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(counter: Any) -> None:
    for namespace in ("pyops", "pyops_triton"):
        known = _library.op_names(namespace)
        for name, formula in _formulas(counter).items():
            target = getattr(getattr(torch.ops, namespace), name) if name in known else None
            if target is not None and target not in counter.flop_registry:
                counter.register_flop_formula(target)(formula)


def _formulas(counter: Any) -> dict[str, Callable[..., int]]:
    """By op. The arguments are the op's, shapes in the place of tensors."""

    def convolution(input: Shape, weight: Shape, output: Shape) -> int:
        flops: int = counter.conv_flop_count(_batched(input), weight, _batched(output))
        return flops

    def conv2d(input: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
        return convolution(input, weight, out_shape[0])

    def conv2d_backward(grad: Shape, input: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
        needs = rest[_NEEDS_OF_CONV2D : _NEEDS_OF_CONV2D + 2]
        grad, input = _batched(grad), _batched(input)
        flops = counter.conv_flop_count(grad, weight, input, transposed=True) if needs[0] else 0
        if needs[1]:
            images, gradients, kernels = ([s[1], s[0], *s[2:]] for s in (input, grad, weight))
            flops += counter.conv_flop_count(images, gradients, kernels)
        return int(flops)

    def conv2d_max_pool2d(
        input: Shape,
        weight: Shape,
        bias: Any,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
        *_: Any,
        **__: Any,
    ) -> int:
        size = [
            (input[i - 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        return convolution(input, weight, [*_batched(input)[:1], weight[0], *size])

    return {
        "conv2d_forward": conv2d,
        "conv2d_backward": conv2d_backward,
        "conv2d_max_pool2d_forward": conv2d_max_pool2d,
        "linear_forward": _linear,
        "linear_backward": _linear_backward,
        "gemm_": _gemm,
        "linear_cross_entropy_with_grad": _linear_cross_entropy,
        "recurrent_forward": _recurrent,
        "recurrent_backward": _recurrent_backward,
    }


#: Arguments of conv2d_backward between the weight and the gradients that are needed.
_NEEDS_OF_CONV2D = 9


def _batched(shape: Shape) -> Shape:
    return [1, *shape] if len(shape) == 3 else shape


def _linear(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(input) * weight[0]


def _linear_backward(grad: Shape, input: Any, weight: Shape, *rest: Any, **_: Any) -> int:
    needs_input, needs_weight = rest[-3:-1]
    return 2 * prod(grad) * weight[1] * (bool(needs_input) + bool(needs_weight))


def _gemm(out: Shape, a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(out) * a[1]


def _linear_cross_entropy(hidden: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    needs_hidden, needs_weight = rest[-3:-1]
    return 2 * prod(hidden) * weight[0] * (1 + bool(needs_hidden) + bool(needs_weight))


def _steps_times_batch(input: Shape) -> int:
    return prod(input[:-1])


def _recurrent(input: Shape, weight_ih: Shape, weight_hh: Shape, *_: Any, **__: Any) -> int:
    return 2 * _steps_times_batch(input) * (prod(weight_ih) + prod(weight_hh))


def _recurrent_backward(
    grad_output: Any, grad_h: Any, grad_c: Any, input: Shape, weight_ih: Shape, weight_hh: Shape, h_0: Shape,
    *rest: Any, **_: Any,
) -> int:  # fmt: skip
    needs_input, needs_weight, _, needs_state = rest[-4:]
    rows = _steps_times_batch(input)
    # Nothing goes on to a first state without a gradient.
    rows_of_state = rows if needs_state else rows - h_0[-2]
    flops = rows * (bool(needs_input) + bool(needs_weight)) * prod(weight_ih)
    flops += (rows_of_state + rows * bool(needs_weight)) * prod(weight_hh)
    return 2 * flops
