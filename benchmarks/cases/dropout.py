"""Cases of ``dropout``: alone, and with the bias and the activation before it.

torch draws other random numbers. Each result is compared with float64 under the mask that it shows itself.
"""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, RandomMask, Traffic, numel

BOTH = (FORWARD, FORWARD_BACKWARD)


def _plain_torch(input: torch.Tensor, p: float) -> torch.Tensor:
    return torch.nn.functional.dropout(input, p)


def _fused_torch(input: torch.Tensor, bias: torch.Tensor, p: float) -> torch.Tensor:
    return torch.nn.functional.dropout(torch.nn.functional.relu(input + bias), p)


def _without_mask(input: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return input * 1 if bias is None else torch.nn.functional.relu(input + bias)


def case(shape: tuple[int, ...], *, fused: bool = False, dtype: torch.dtype = torch.float32, **more) -> Case:
    def inputs(device: torch.device) -> Inputs:
        found = {"input": torch.randn(shape, device=device).to(dtype)}
        if fused:
            found["bias"] = torch.randn(shape[-1:], device=device).to(dtype)
        return found

    def traffic(mode: str) -> Traffic:
        # Forward: in and out. Backward: the gradient, and what the activation kept, to the gradient.
        size, bias = numel(shape) * dtype.itemsize, shape[-1] * dtype.itemsize * fused
        if mode == FORWARD:
            return Traffic(size + bias, size, numel(shape))
        return Traffic(size * (3 if fused else 2) + bias, 2 * size + bias, 2 * numel(shape))

    return Case(
        "dropout",
        f"{'bias+relu+' if fused else ''}dropout {list(shape)}",
        inputs,
        traffic,
        dtype=dtype,
        differentiable=("input", "bias") if fused else ("input",),
        options={"p": 0.5},
        pyops_options={"activation": "relu"} if fused else {},
        torch_call=_fused_torch if fused else _plain_torch,
        modes=BOTH,
        mask=RandomMask(_without_mask, 0.5),
        **more,
    )


CASES = [
    case((32, 16), overhead=True),
    case((32, 16), fused=True, overhead=True),
    case((1024, 1024), quick=True),
    case((256, 4096), fused=True, quick=True),
    case((256, 4096), fused=True, dtype=torch.bfloat16),
    case((8192, 8192), devices=("cuda",)),
    case((8192, 8192), fused=True, dtype=torch.bfloat16, devices=("cuda",), quick=True),
]
