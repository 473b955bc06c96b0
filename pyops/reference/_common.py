"""What the reference formulas share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kinds import MEAN, NONE


def reduce(loss: Tensor, divisor: Tensor | int, reduction: int) -> Tensor:
    """The losses, their sum over ``divisor`` or their sum, by the reduction's number."""
    if reduction == NONE:
        return loss
    return loss.sum() / divisor if reduction == MEAN else loss.sum()


def row_class_weight(like: Tensor, target: Tensor, weight: Tensor | None, ignored: Tensor) -> Tensor:
    """Weight of each row's target class, 0 where the row is ignored."""
    if weight is None:
        return torch.ones_like(like).masked_fill(ignored, 0.0)
    # Not weight[index]: a 0-d index is read on the host.
    index = target.masked_fill(ignored, 0).reshape(-1)
    return weight.to(like.dtype).index_select(0, index).view(target.shape).masked_fill(ignored, 0.0)
