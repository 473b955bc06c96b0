"""Cases of ``toy_scale``."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, Case
from .tools.traffic import elementwise_traffic


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        "toy_scale",
        f"{list(shape)}",
        inputs=lambda device: {"input": torch.randn(shape, device=device).to(dtype)},
        traffic=elementwise_traffic(shape, dtype),
        dtype=dtype,
        modes=(FORWARD,),
        torch_call=lambda input: input * 2.0,
    )


CASES = [case((2048, 2048))]
