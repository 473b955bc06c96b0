"""A linear layer with activation and dropout as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kinds import Activation
from .activation import activate
from .dropout import dropout


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    p: float,
    activation: Activation,
) -> Tensor:
    """dropout(activation(input @ weight.T + bias)); no dropout without a ``seed``."""
    output = activate(torch.nn.functional.linear(input, weight, bias), activation)
    return output if seed is None else dropout(output.contiguous(), seed, p)
