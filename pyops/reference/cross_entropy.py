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


def row_statistics(logits: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of logits [N, C, *d]: each row's maximum and log of its shifted sum, [2, rows], and the sum over its
    classes of ``weight`` times -log p, [rows]."""
    x = logits.to(acc_dtype(logits.dtype)).movedim(1, -1).flatten(0, -2)
    maximum = x.amax(1)
    log_sum = (x - maximum[:, None]).exp().sum(1).log()
    nll = log_sum[:, None] - (x - maximum[:, None])
    return torch.stack([maximum, log_sum]), (nll if weight is None else nll * weight).sum(1)


def gradient_of_slice(
    logits: Tensor, stats: Tensor, through_lse: Tensor, spread: Tensor, weight: Tensor | None, ignored: Tensor
) -> Tensor:
    """``through_lse`` p_c + ``spread`` (mean of ``weight`` p_c - w_c / C), with the C classes of the logits
    and p_c by ``stats``, which may be those of more classes. An ignored row without ``through_lse`` is 0."""
    x = logits.to(stats.dtype).movedim(1, -1)
    rows = x.flatten(0, -2)
    weight = stats.new_ones(rows.size(1)) if weight is None else weight
    p = ((rows - stats[0, :, None]) - stats[1, :, None]).exp()
    grad = (through_lse + spread * weight.mean())[:, None] * p - spread[:, None] * weight / rows.size(1)
    grad = grad.masked_fill((ignored & (through_lse == 0))[:, None], 0.0)
    return grad.view(x.shape).movedim(-1, 1).to(logits.dtype).contiguous()
