"""Cases of the activations: elementwise, so what counts is one pass over memory each way."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case
from .tools.sizes import sweep
from .tools.traffic import elementwise_traffic

OPS = (
    *("relu", "leaky_relu", "sigmoid", "tanh", "selu", "softplus", "elu", "gelu", "silu"),
    *("hardswish", "relu6", "hardtanh", "hardsigmoid"),
)
#: Measured at every size; the others are variations of these.
MAIN = ("relu", "leaky_relu", "sigmoid", "tanh", "selu", "softplus", "gelu")


def case(op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **more) -> Case:
    more.setdefault("modes", (FORWARD_BACKWARD,))
    return Case(
        op,
        str(list(shape)),
        inputs=lambda device: {"input": torch.randn(shape, device=device).to(dtype)},
        traffic=elementwise_traffic(shape, dtype),
        dtype=dtype,
        **more,
    )


CASES = [
    *(case(op, (32, 16), overhead=True, modes=(FORWARD, FORWARD_BACKWARD)) for op in OPS),
    *(case(op, (2048, 2048), quick=op in ("relu", "tanh", "gelu")) for op in MAIN),
    *(case(op, (2048, 2048), torch.bfloat16) for op in ("relu", "gelu")),
    case("relu", (16, 64, 64, 64), channels_last=True),
    *(made for op in ("relu", "gelu") for made in sweep(lambda k, op=op: case(op, (k, 1024)))),
    *(case(op, (8192, 16384), torch.bfloat16, devices=("cuda",)) for op in MAIN),
]
