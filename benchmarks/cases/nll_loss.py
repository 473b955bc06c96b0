"""Cases of ``nll_loss``: a gather in forward, a scatter into zeros in backward."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic, numel


def case(shape: tuple[int, ...], **more) -> Case:
    rows = numel(shape) // shape[1]

    def inputs(device: torch.device) -> Inputs:
        return {
            "input": torch.randn(shape, device=device).log_softmax(1),
            "target": torch.randint(shape[1], shape[:1] + shape[2:], device=device),
        }

    def traffic(mode: str) -> Traffic:
        # Forward: one element and one class index per row. Backward: the indices, and all zeros.
        if mode == FORWARD:
            return Traffic(12 * rows, 4)
        return Traffic(20 * rows, 4 + 4 * numel(shape))

    return Case("nll_loss", str(list(shape)), inputs, traffic, **more)


CASES = [
    case((32, 10), overhead=True, modes=(FORWARD, FORWARD_BACKWARD)),
    case((4096, 1000), modes=(FORWARD, FORWARD_BACKWARD), quick=True),
    case((2048, 32000)),
    case((8, 21, 128, 128)),
    case((16384, 32000), devices=("cuda",)),
]
