"""The elementwise losses as torch formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import acc_dtype
from ..kinds import HUBER, L1, MSE, NONE, SMOOTH_L1
from ._common import reduce


def elementwise_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    kind: int,
    parameter: float,
    reduction: int,
) -> Tensor:
    """The loss of that ``kind`` (:mod:`pyops.kinds`) of tensors of one shape.

    ``weight`` and ``pos_weight`` are broadcast to that shape. The losses of the elements are in the dtype of
    ``input``, their mean or sum is in the accumulation dtype.
    """
    x, y = input.to(acc_dtype(input.dtype)), target.to(acc_dtype(input.dtype))
    functional = torch.nn.functional
    if kind == MSE:
        loss = functional.mse_loss(x, y, reduction="none")
    elif kind == L1:
        loss = functional.l1_loss(x, y, reduction="none")
    elif kind == HUBER:
        loss = functional.huber_loss(x, y, reduction="none", delta=parameter)
    elif kind == SMOOTH_L1:
        loss = functional.smooth_l1_loss(x, y, reduction="none", beta=parameter)
    else:
        log_weight = 1 if pos_weight is None else 1 + (pos_weight.to(x.dtype) - 1) * y
        loss = (1 - y) * x - log_weight * functional.logsigmoid(x)
    divisor: Tensor | int = loss.numel()
    if weight is not None:
        weight = weight.to(x.dtype)
        loss = loss * weight
        # The weighted means of mse_loss and l1_loss are over the weights.
        divisor = weight.sum() if kind in (MSE, L1) else divisor
    loss = reduce(loss, divisor, reduction)
    return loss.to(input.dtype) if reduction == NONE else loss
