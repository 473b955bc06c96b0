"""Cross-entropy of a linear layer as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from .cross_entropy import cross_entropy_with_lse


def linear_cross_entropy(
    hidden: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """Cross-entropy of ``hidden @ linear_weight.T + linear_bias``, holding all logits at once.

    Hidden states [N, in], ``linear_weight`` [C, *d, in], ``linear_bias`` [C, *d] or None.
    """
    flat_bias = None if linear_bias is None else linear_bias.flatten()
    logits = torch.nn.functional.linear(hidden, linear_weight.flatten(0, -2), flat_bias)
    logits = logits.view(-1, *linear_weight.shape[:-1])
    options = (reduction, ignore_index, label_smoothing, z_loss)
    return cross_entropy_with_lse(logits, target, weight, sample_weight, *options)[0]
