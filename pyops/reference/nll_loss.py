"""The negative log-likelihood as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ._common import reduce, row_class_weight


def nll_loss(
    log_probs: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> Tensor:
    """Negative log-likelihood of ``log_probs`` [C] or [N, C, *d]; loss in the accumulation dtype."""
    class_dim = min(log_probs.dim() - 1, 1)
    ignored = target == ignore_index
    index = target.masked_fill(ignored, 0).unsqueeze(class_dim)
    picked = log_probs.to(acc_dtype(log_probs.dtype)).gather(class_dim, index).squeeze(class_dim)
    row_weight = row_class_weight(picked, target, weight, ignored)
    loss = torch.where(ignored, 0.0, -row_weight * picked)
    return reduce(loss, row_weight.sum(), reduction)
