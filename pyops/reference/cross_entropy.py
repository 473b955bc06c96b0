"""Cross-entropy as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ._common import reduce, row_class_weight


def cross_entropy_with_lse(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of ``logits`` [C] or [N, C, *d], both in the accumulation dtype.

    The formula is that of ``csrc/math/cross_entropy.h``.
    """
    class_dim = min(logits.dim() - 1, 1)
    classes = logits.size(class_dim)
    x = logits.to(acc_dtype(logits.dtype))
    lse = torch.logsumexp(x, class_dim)
    class_weights = x.new_ones(classes) if weight is None else weight.to(x.dtype)
    along_classes = class_weights.view(-1, *[1] * (x.dim() - class_dim - 1))
    if target.is_floating_point():
        ignored = torch.zeros_like(lse, dtype=torch.bool)
        nll = -torch.log_softmax(x, class_dim)
        smoothed = target * (1 - label_smoothing) + label_smoothing / max(classes, 1)
        loss = (along_classes * smoothed * nll).sum(class_dim)
        divisor = torch.full_like(lse, 1.0).sum()
    else:
        ignored = target == ignore_index
        # Masking the logits and not only the loss keeps inf and NaN of ignored rows out of the gradient.
        x = x.masked_fill(ignored.unsqueeze(class_dim), 0.0)
        nll = -torch.log_softmax(x, class_dim)
        index = target.masked_fill(ignored, 0).unsqueeze(class_dim)
        row_weight = row_class_weight(lse, target, class_weights, ignored)
        loss = (1 - label_smoothing) * row_weight * nll.gather(class_dim, index).squeeze(class_dim)
        if label_smoothing > 0:
            loss = loss + label_smoothing / classes * (along_classes * nll).sum(class_dim)
        divisor = row_weight.sum()
    if z_loss != 0:
        loss = loss + z_loss * torch.logsumexp(x, class_dim).square()
    if sample_weight is not None:
        loss = loss * sample_weight.to(x.dtype)
    return reduce(loss.masked_fill(ignored, 0.0), divisor, reduction), lse
