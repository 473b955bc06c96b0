"""Cases of ``linear``, alone and with an activation, against torch's calls in a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic
from .tools.sizes import sweep

BOTH = (FORWARD, FORWARD_BACKWARD)


def linear_then_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.relu(F.linear(input, weight, bias))


def case(rows: int, features: int, outputs: int, dtype=torch.float32, *, relu: bool = False, **more) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return {
            "input": torch.randn(rows, features, device=device).to(dtype),
            "weight": (torch.randn(outputs, features, device=device) / features**0.5).to(dtype),
            "bias": torch.randn(outputs, device=device).to(dtype),
        }

    def traffic(mode: str) -> Traffic:
        size, product = dtype.itemsize, 2 * rows * features * outputs
        operands = (rows * features + outputs * features + outputs) * size
        result = rows * outputs * size
        if mode == FORWARD:
            return Traffic(operands, result, product)
        # The gradient is read, and the output where relu is differentiated; every operand has a gradient.
        return Traffic(2 * operands + (2 if relu else 1) * result, result + operands, 3 * product)

    return Case(
        "linear",
        f"[{rows}, {features}] x [{outputs}, {features}]{' + relu' if relu else ''}",
        inputs,
        traffic,
        dtype=dtype,
        modes=BOTH,
        differentiable=("input", "weight", "bias"),
        pyops_options={"activation": "relu"} if relu else {},
        torch_call=linear_then_relu if relu else None,
        **more,
    )


CASES = [
    case(32, 16, 16, overhead=True),
    case(32, 16, 16, relu=True, overhead=True),
    case(256, 784, 256, relu=True, quick=True),
    case(256, 784, 256),
    case(32, 784, 256),
    case(1, 784, 256),
    case(2048, 1024, 1024),
    case(256, 784, 256, torch.bfloat16, relu=True),
    *sweep(lambda k: case(4 * k, 256, 256)),
    case(8192, 4096, 4096, torch.bfloat16, relu=True, devices=("cuda",)),
]
