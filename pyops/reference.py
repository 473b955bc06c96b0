"""The ops as plain torch formulas: the reference backend.

It serves devices and dtypes that no kernel serves, gradients that no kernel computes, and double
backward. Written to be read: one line per term of the formula, in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops._common import acc_dtype


def softmax(input: Tensor, dim: int, log: bool) -> Tensor:
    """Softmax or log-softmax along ``dim``."""
    return torch.log_softmax(input, dim) if log else torch.softmax(input, dim)


def nll_loss(
    log_probs: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> Tensor:
    """Negative log-likelihood of ``log_probs`` [C] or [N, C, *d]; loss in the accumulation dtype."""
    class_dim = min(log_probs.dim() - 1, 1)
    ignored = target == ignore_index
    index = target.masked_fill(ignored, 0).unsqueeze(class_dim)
    picked = log_probs.to(acc_dtype(log_probs.dtype)).gather(class_dim, index).squeeze(class_dim)
    row_weight = _row_class_weight(picked, target, weight, ignored)
    loss = torch.where(ignored, 0.0, -row_weight * picked)
    return _reduce(loss, row_weight.sum(), reduction)


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
        row_weight = _row_class_weight(lse, target, class_weights, ignored)
        loss = (1 - label_smoothing) * row_weight * nll.gather(class_dim, index).squeeze(class_dim)
        if label_smoothing > 0:
            loss = loss + label_smoothing / classes * (along_classes * nll).sum(class_dim)
        divisor = row_weight.sum()
    if z_loss != 0:
        loss = loss + z_loss * torch.logsumexp(x, class_dim).square()
    if sample_weight is not None:
        loss = loss * sample_weight.to(x.dtype)
    return _reduce(loss.masked_fill(ignored, 0.0), divisor, reduction), lse


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


def _row_class_weight(like: Tensor, target: Tensor, weight: Tensor | None, ignored: Tensor) -> Tensor:
    """Weight of each row's target class, 0 where the row is ignored."""
    if weight is None:
        return torch.ones_like(like).masked_fill(ignored, 0.0)
    # Not weight[index]: a 0-d index is read on the host.
    index = target.masked_fill(ignored, 0).reshape(-1)
    return weight.to(like.dtype).index_select(0, index).view(target.shape).masked_fill(ignored, 0.0)


def _reduce(loss: Tensor, divisor: Tensor, reduction: int) -> Tensor:
    if reduction == 0:
        return loss
    return loss.sum() / divisor if reduction == 1 else loss.sum()
