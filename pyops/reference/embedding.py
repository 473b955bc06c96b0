"""Embedding as a torch formula."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding(weight: Tensor, indices: Tensor, padding_idx: int, scale_grad_by_freq: bool) -> Tensor:
    """Rows of ``weight`` [V, D] that ``indices`` [*] name, of shape [*, D]."""
    return torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, False)
