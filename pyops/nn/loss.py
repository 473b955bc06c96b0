"""Loss modules: torch's classes with this library's functions and extras."""

import math
from typing import Any

import torch.nn
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from .. import functional as F

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` through :func:`pyops.functional.cross_entropy`.

    Extra arguments: ``z_loss``, ``inplace_backward`` and ``process_group``, explained there;
    ``sample_weight`` goes to the call. Shapes: input (C), (N, C) or (N, C, *d); loss 0-d, or one per row
    with ``reduction="none"``.
    """

    z_loss: float = 0.0
    inplace_backward: bool = False
    process_group: Any = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        inplace_backward: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.inplace_backward = inplace_backward
        self.process_group = process_group

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        return cross_entropy(
            self,
            input,
            target,
            z_loss=self.z_loss,
            sample_weight=sample_weight,
            inplace_backward=self.inplace_backward,
            process_group=self.process_group,
        )


def cross_entropy(loss: torch.nn.CrossEntropyLoss, input: Tensor, target: Tensor, **extras: Any) -> Tensor:
    """The loss of a layer of any class, torch's included."""
    value: Any = F.cross_entropy(
        input,
        target,
        loss.weight,
        ignore_index=loss.ignore_index,
        reduction=loss.reduction,
        label_smoothing=loss.label_smoothing,
        **extras,
    )
    assert isinstance(value, Tensor)  # a tuple only with return_lse
    return value


class NLLLoss(torch.nn.NLLLoss):
    """:class:`torch.nn.NLLLoss` through :func:`pyops.functional.nll_loss`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class MSELoss(torch.nn.MSELoss):
    """:class:`torch.nn.MSELoss` through :func:`pyops.functional.mse_loss`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(torch.nn.L1Loss):
    """:class:`torch.nn.L1Loss` through :func:`pyops.functional.l1_loss`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(torch.nn.HuberLoss):
    """:class:`torch.nn.HuberLoss` through :func:`pyops.functional.huber_loss`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """:class:`torch.nn.SmoothL1Loss` through :func:`pyops.functional.smooth_l1_loss`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` through
    :func:`pyops.functional.binary_cross_entropy_with_logits`; same shapes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


_Base: Any = getattr(torch.nn, "LinearCrossEntropyLoss", _WeightedLoss)  # since torch 2.13


class LinearCrossEntropyLoss(_Base):
    """A classifier's last linear layer and its loss: :func:`pyops.functional.linear_cross_entropy`.

    :class:`torch.nn.LinearCrossEntropyLoss`, also before torch 2.13: ``linear`` is the layer, ``weight`` one
    weight per class, and ``out_features`` the dimensions of a K-dimensional loss. ``forward(input, target)``
    takes hidden states (N, in_features) and returns the loss; :meth:`logits` gives the scores for inference.
    Extra arguments: ``z_loss`` and ``chunk_size``; ``sample_weight`` goes to the call.
    """

    z_loss: float = 0.0
    chunk_size: int | None = None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        z_loss: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        _WeightedLoss.__init__(self, weight, None, None, reduction)
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"LinearCrossEntropyLoss: weight must have shape {(num_classes,)}, got {tuple(weight.shape)}"
            )
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(
                f"LinearCrossEntropyLoss: label_smoothing must be between 0.0 and 1.0, got {label_smoothing}"
            )
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        rows = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)
        if z_loss != 0.0:
            self.z_loss = z_loss
        if chunk_size is not None:
            self.chunk_size = chunk_size

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        extras = {"z_loss": self.z_loss, "sample_weight": sample_weight, "chunk_size": self.chunk_size}
        return linear_cross_entropy(self, input, target, **extras)

    def logits(self, input: Tensor) -> Tensor:
        """Scores (N, num_classes, *out_features) of hidden states (N, in_features)."""
        scores = torch.nn.functional.linear(input, self.linear.weight, self.linear.bias)
        return scores.unflatten(-1, (self.num_classes, *self.out_features)) if self.out_features else scores

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction!r}"
        )


def linear_cross_entropy(loss: Any, input: Tensor, target: Tensor, **extras: Any) -> Tensor:
    """The loss of a :class:`LinearCrossEntropyLoss` of any class, torch's included."""
    shape, bias = (loss.num_classes, *loss.out_features), loss.linear.bias
    value: Tensor = F.linear_cross_entropy(
        input,
        loss.linear.weight.reshape(*shape, loss.linear.in_features),
        target,
        linear_bias=None if bias is None else bias.reshape(shape),
        weight=loss.weight,
        reduction=loss.reduction,
        ignore_index=loss.ignore_index,
        label_smoothing=loss.label_smoothing,
        options=loss.options,
        **extras,
    )
    return value
