"""Cases of ``interpolate``, mode nearest: every input element is copied, and its outputs summed backward."""

from __future__ import annotations

from typing import Any

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic, numel


def case(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    **more: Any,
) -> Case:
    def inputs(device: torch.device) -> Inputs:
        x = torch.randn(shape, device=device).to(dtype)
        return {"input": x.to(memory_format=torch.channels_last) if channels_last else x}

    def traffic(mode: str) -> Traffic:
        small, large = (numel(s) * dtype.itemsize for s in (shape, shape[:2] + size))
        if mode == FORWARD:
            return Traffic(small, large)
        return Traffic(small + large, large + small, numel(shape[:2] + size))

    return Case(
        "interpolate",
        f"{list(shape)} to {list(size)}{' channels_last' if channels_last else ''}",
        inputs,
        traffic,
        dtype=dtype,
        modes=(FORWARD, FORWARD_BACKWARD),
        options={"size": size},
        **more,
    )


CASES = [
    case((1, 8, 8, 8), (16, 16), overhead=True),
    case((8, 64, 56, 56), (112, 112), quick=True),
    case((8, 64, 56, 56), (112, 112), channels_last=True, quick=True),
    case((8, 64, 56, 56), (112, 112), torch.bfloat16),
    case((8, 64, 56, 56), (100, 75)),
    case((32, 256, 56, 56), (112, 112), torch.bfloat16, devices=("cuda",)),
]
