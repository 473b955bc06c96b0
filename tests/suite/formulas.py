"""The ops as formulas, one line per term. Run in float64 they are the reference of every accuracy check.

They take the arguments of the public functions, and are differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted.exp() / shifted.exp().sum(dim, keepdim=True)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def as_rows(tensor: Tensor) -> Tensor:
    """[C] or [N, C, *d] as rows of classes [M, C]."""
    class_dim = min(tensor.dim() - 1, 1)
    rows = torch.Size(row_shape(tensor)).numel()
    return tensor.movedim(class_dim, -1).reshape(rows, tensor.size(class_dim))


def row_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of ``tensor`` without its class dimension."""
    class_dim = min(tensor.dim() - 1, 1)
    return (*tensor.shape[:class_dim], *tensor.shape[class_dim + 1 :])


def reduce(row_loss: Tensor, divisor: Tensor | int, reduction: str, shape: tuple[int, ...]) -> Tensor:
    if reduction == "none":
        return row_loss.reshape(shape)
    return row_loss.sum() / divisor if reduction == "mean" else row_loss.sum()


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    rows, y = as_rows(input), target.reshape(-1)
    counted = y != ignore_index
    weight = rows.new_ones(rows.size(1)) if weight is None else weight
    y = torch.where(counted, y, 0)
    if rows.size(1) == 0:  # every row must be ignored
        return reduce(rows.sum(1), rows.new_zeros(()), reduction, row_shape(input))
    row_loss = torch.where(counted, -weight[y] * rows.gather(1, y[:, None])[:, 0], 0.0)
    divisor = torch.where(counted, weight[y], 0.0).sum()
    return reduce(row_loss, divisor, reduction, row_shape(input))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    x = as_rows(input)
    rows, classes = x.shape
    lse = x.logsumexp(1)
    weight = x.new_ones(classes) if weight is None else weight
    e = label_smoothing
    if target.is_floating_point():
        counted = torch.ones(rows, dtype=torch.bool)
        nll = -x.log_softmax(1)
        smoothed = as_rows(target) * (1 - e) + e / max(classes, 1)
        row_loss = (weight * smoothed * nll).sum(1)
        divisor = torch.tensor(float(rows), dtype=x.dtype)
    else:
        y = target.reshape(-1)
        counted = y != ignore_index
        y = torch.where(counted, y, 0)
        # Rows that do not count must not: their logits may be anything.
        nll = -torch.where(counted[:, None], x, 0.0).log_softmax(1)
        if classes == 0:
            row_loss, divisor = x.sum(1), x.new_zeros(())
        else:
            row_loss = (1 - e) * weight[y] * nll.gather(1, y[:, None])[:, 0]
            divisor = torch.where(counted, weight[y], 0.0).sum()
        if e > 0:
            row_loss = row_loss + e / classes * (weight * nll).sum(1)
    if z_loss:
        row_loss = row_loss + z_loss * torch.where(counted, lse, 0.0) ** 2
    if sample_weight is not None:
        row_loss = row_loss * sample_weight.expand(row_shape(input)).reshape(-1)
    loss = reduce(torch.where(counted, row_loss, 0.0), divisor, reduction, row_shape(input))
    return (loss, lse.reshape(row_shape(input))) if return_lse else loss


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    chunk_size: int | None = None,
    **options,
) -> Tensor:
    return cross_entropy(linear_logits(input, linear_weight, linear_bias), target, **options)


def linear_logits(input: Tensor, linear_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (C) or (N, C, *d) of hidden states (in) or (N, in) and a weight (C, *d, in)."""
    flat = torch.nn.functional.linear(input, linear_weight.flatten(0, -2))
    logits = flat.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    return logits if bias is None else logits + bias
