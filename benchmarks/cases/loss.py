"""Cases of the elementwise losses: 4 million elements, as of a batch of images, and few."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic, numel

BCE = "binary_cross_entropy_with_logits"
BATCH = (64, 1, 250, 250)
LABELS = (4096, 1000)


def case(
    op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, factors: bool = False, **more
) -> Case:
    def inputs(device: torch.device) -> Inputs:
        input, target = (torch.randn(shape, device=device) for _ in range(2))
        built = {"input": input.to(dtype), "target": (target if op != BCE else target.sigmoid()).to(dtype)}
        if factors:
            for name in ("weight", "pos_weight"):
                built[name] = (torch.rand(shape[1], device=device) + 0.5).to(dtype)
        return built

    def traffic(mode: str) -> Traffic:
        # A mean's upstream gradient is one number: input and target are read once, the gradient is written.
        bytes_each = numel(shape) * dtype.itemsize
        flops = (20 if op == BCE else 4) * numel(shape)
        if mode == FORWARD:
            return Traffic(2 * bytes_each, dtype.itemsize, flops)
        return Traffic(2 * bytes_each, bytes_each, 2 * flops)

    label = f"{list(shape)}{' + factors' if factors else ''}"
    return Case(op, label, inputs, traffic, dtype=dtype, **more)


CASES = [
    *(
        made
        for op in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", BCE)
        for made in (
            case(op, (32, 16), overhead=True, modes=(FORWARD, FORWARD_BACKWARD)),
            case(op, BATCH, quick=op in ("huber_loss", BCE), modes=(FORWARD, FORWARD_BACKWARD)),
            case(op, (8192, 16384), torch.bfloat16, devices=("cuda",)),
        )
    ),
    case("huber_loss", BATCH, torch.bfloat16),
    case(BCE, LABELS, torch.bfloat16),
    case(BCE, LABELS, factors=True),
]
