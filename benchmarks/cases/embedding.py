"""Cases of ``embedding``: a gather forward; backward writes the whole table's gradient."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic


def case(
    rows: int, dim: int, positions: int, dtype: torch.dtype = torch.float32, label: str = "", **more
) -> Case:
    def inputs(device: torch.device) -> Inputs:
        index = torch.randint(rows, (positions,), device=device)
        if label:  # as words are: few rows have most of the positions
            index = (rows * torch.rand(positions, device=device) ** 6).long()
        return {"input": index, "weight": torch.randn(rows, dim, device=device).to(dtype)}

    def traffic(mode: str) -> Traffic:
        gathered = positions * dim * dtype.itemsize
        if mode == FORWARD:
            return Traffic(gathered + 8 * positions, gathered)
        table = rows * dim * dtype.itemsize
        return Traffic(2 * gathered + 16 * positions, gathered + table, positions * dim)

    return Case(
        "embedding",
        f"V={rows} D={dim} N={positions}{label}",
        inputs,
        traffic,
        dtype=dtype,
        modes=(FORWARD, FORWARD_BACKWARD),
        differentiable=("weight",),
        **more,
    )


CASES = [
    case(60, 16, 32, overhead=True),
    case(28, 256, 1120, quick=True),
    case(50_000, 256, 8192, quick=True),
    case(50_000, 256, 8192, torch.bfloat16),
    case(50_000, 256, 8192, label=" skewed"),
    case(50_000, 1024, 65_536, torch.bfloat16, devices=("cuda",)),
    case(50_000, 1024, 65_536, torch.bfloat16, label=" skewed", devices=("cuda",)),
]
