"""Cases of layer, group and instance normalisation: rows of a transformer, groups of images."""

from __future__ import annotations

from typing import Any

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case
from .tools.traffic import elementwise_traffic


def case(
    op: str, shape: tuple[int, ...], parameters: int, dtype: torch.dtype = torch.float32, **more: Any
) -> Case:
    options = more.pop("options", {})

    def inputs(device: torch.device) -> dict[str, Any]:
        return {
            "input": torch.randn(shape, device=device).to(dtype),
            "weight": torch.rand(parameters, device=device).to(dtype),
            "bias": torch.rand(parameters, device=device).to(dtype),
        }

    return Case(
        op,
        str(list(shape)),
        inputs=inputs,
        traffic=elementwise_traffic(shape, dtype),
        dtype=dtype,
        options=options,
        differentiable=("input", "weight", "bias"),
        modes=(FORWARD, FORWARD_BACKWARD),
        **more,
    )


def rows(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **more: Any) -> Case:
    return case("layer_norm", shape, shape[-1], dtype, options={"normalized_shape": shape[-1:]}, **more)


def groups(shape: tuple[int, ...], count: int, **more: Any) -> Case:
    return case("group_norm", shape, shape[1], options={"num_groups": count}, **more)


CASES = [
    rows((32, 64), overhead=True),
    groups((8, 16, 4, 4), 4, overhead=True),
    case("instance_norm", (8, 16, 4, 4), 16, overhead=True),
    rows((4096, 768), quick=True),
    rows((16384, 1024)),
    rows((4096, 768), torch.bfloat16),
    groups((16, 64, 56, 56), 32, quick=True),
    case("instance_norm", (16, 64, 56, 56), 64),
    rows((32768, 4096), torch.bfloat16, devices=("cuda",)),
]
