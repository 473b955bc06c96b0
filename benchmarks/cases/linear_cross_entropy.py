"""Cases of ``linear_cross_entropy`` against ``linear`` + ``cross_entropy`` and torch's own fusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic


def linear_then_cross_entropy(
    input: torch.Tensor, linear_weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    return F.cross_entropy(F.linear(input, linear_weight), target)


def torch_fusions() -> dict[str, Callable[..., torch.Tensor]]:
    """``torch.nn.functional.linear_cross_entropy`` (torch >= 2.13), chunked; {} where it is missing.

    Without options it is ``linear`` + ``cross_entropy``, the eager baseline, and is not repeated.
    """
    fused = getattr(F, "linear_cross_entropy", None)
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if fused is None or options is None:
        return {}
    return {
        "torch chunked": partial(fused, options=options()),
        "torch chunked compact": partial(fused, options=options(acc_policy="compact")),
    }


def case(rows: int, features: int, classes: int, dtype=torch.float32, **more) -> Case:
    def inputs(device: torch.device) -> Inputs:
        weight = torch.randn(classes, features, device=device) / features**0.5
        return {
            "input": torch.randn(rows, features, device=device).to(dtype),
            "linear_weight": weight.to(dtype),
            "target": torch.randint(classes, (rows,), device=device),
        }

    def traffic(mode: str) -> Traffic:
        # Nothing logits-sized needs to touch memory; three products (one forward) are the floor.
        operands = (rows + classes) * features * dtype.itemsize
        product = 2 * rows * features * classes
        if mode == FORWARD:
            return Traffic(operands + 8 * rows, 4, product)
        return Traffic(2 * (operands + 8 * rows), 4 + operands, 3 * product)

    return Case(
        "linear_cross_entropy",
        f"[{rows}, {features}] x [{classes}, {features}]",
        inputs,
        traffic,
        dtype=dtype,
        differentiable=("input", "linear_weight"),
        torch_call=linear_then_cross_entropy,
        baselines=torch_fusions(),
        **more,
    )


CASES = [
    case(32, 16, 10, overhead=True, modes=(FORWARD, FORWARD_BACKWARD)),
    case(512, 256, 4000, quick=True),
    case(2048, 512, 32000, modes=(FORWARD, FORWARD_BACKWARD)),
    case(4096, 4096, 128256, torch.bfloat16, devices=("cuda",)),
    case(8192, 4096, 32000, torch.bfloat16, devices=("cuda",)),
]
