"""A linear layer with activation and dropout as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import activation
from .dropout import dropout


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    kind: int,
    a: float,
    b: float,
) -> Tensor:
    """dropout(activation(input @ weight.T + bias)); no dropout without a ``seed``."""
    output = activation(torch.nn.functional.linear(input, weight, bias), kind, a, b)
    return output if seed is None else dropout(output.contiguous(), seed, p)
