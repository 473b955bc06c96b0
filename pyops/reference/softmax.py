"""Softmax as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(input: Tensor, dim: int, log: bool) -> Tensor:
    """Softmax or log-softmax along ``dim``."""
    return torch.log_softmax(input, dim) if log else torch.softmax(input, dim)
