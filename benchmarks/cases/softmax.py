"""Cases of ``softmax`` and ``log_softmax``: last dimension and class dimension of images."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case
from .tools.sizes import sweep
from .tools.traffic import rows_traffic

BOTH = (FORWARD, FORWARD_BACKWARD)


def case(op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **more) -> Case:
    return Case(
        op,
        str(list(shape)),
        inputs=lambda device: {"input": torch.randn(shape, device=device).to(dtype)},
        traffic=rows_traffic(shape, dtype, dense_output=True),
        dtype=dtype,
        options={"dim": 1},
        modes=BOTH,
        **more,
    )


CASES = [
    made
    for op in ("softmax", "log_softmax")
    for made in (
        case(op, (32, 10), overhead=True),
        case(op, (4096, 1000), quick=True),
        case(op, (4096, 1000), torch.bfloat16),
        case(op, (2048, 32000), devices=("cpu",)),
        case(op, (8, 21, 128, 128), channels_last=True),
        case(op, (16384, 32000), devices=("cuda",)),
        case(op, (16384, 32000), torch.bfloat16, devices=("cuda",), quick=True),
    )
] + sweep(lambda k: case("softmax", (4 * k, 256)))
