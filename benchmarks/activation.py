"""Cases of the activations: elementwise, so what counts is one pass over memory each way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .registry import FORWARD, FORWARD_BACKWARD, Case, Traffic, numel

OPS = ("relu", "leaky_relu", "sigmoid", "tanh", "selu", "softplus", "elu", "gelu", "silu", "hardswish")
#: Measured at every size; the others are variations of these.
MAIN = ("relu", "leaky_relu", "sigmoid", "tanh", "selu", "softplus", "gelu")


def traffic(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[str], Traffic]:
    """Forward reads and writes the tensor once; backward reads what was kept and the gradient, writes one."""
    size = numel(shape) * dtype.itemsize
    flops = 4 * numel(shape)

    def of(mode: str) -> Traffic:
        if mode == FORWARD:
            return Traffic(size, size, flops)
        return Traffic(3 * size, 2 * size, 2 * flops)

    return of


def case(op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **more) -> Case:
    more.setdefault("modes", (FORWARD_BACKWARD,))
    return Case(
        op,
        str(list(shape)),
        inputs=lambda device: {"input": torch.randn(shape, device=device).to(dtype)},
        traffic=traffic(shape, dtype),
        dtype=dtype,
        **more,
    )


CASES = [
    *(case(op, (32, 16), overhead=True, modes=(FORWARD, FORWARD_BACKWARD)) for op in OPS),
    *(case(op, (2048, 2048), quick=op in ("relu", "tanh", "gelu")) for op in MAIN),
    *(case(op, (2048, 2048), torch.bfloat16) for op in ("relu", "gelu")),
    case("relu", (16, 64, 64, 64), channels_last=True),
    *(case(op, (8192, 16384), torch.bfloat16, devices=("cuda",)) for op in MAIN),
]
