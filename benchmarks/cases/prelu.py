"""Cases of ``prelu``: one slope, one per column, one per channel of images."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case
from .tools.traffic import elementwise_traffic


def case(shape: tuple[int, ...], slopes: int, dtype: torch.dtype = torch.float32, **more) -> Case:
    def inputs(device: torch.device) -> dict[str, torch.Tensor]:
        return {
            "input": torch.randn(shape, device=device).to(dtype),
            "weight": torch.full((slopes,), 0.25, dtype=dtype, device=device),
        }

    return Case(
        "prelu",
        f"{list(shape)} {slopes} slopes",
        inputs=inputs,
        traffic=elementwise_traffic(shape, dtype),
        dtype=dtype,
        differentiable=("input", "weight"),
        modes=(FORWARD, FORWARD_BACKWARD),
        **more,
    )


CASES = [
    case((32, 16), 16, overhead=True),
    case((2048, 2048), 1, quick=True),
    case((2048, 2048), 2048),
    case((16, 64, 64, 64), 64, channels_last=True),
    case((8192, 16384), 16384, torch.bfloat16, devices=("cuda",)),
]
