"""Loss modules: torch's classes with this library's functions and extras."""

import torch.nn
from torch import Tensor

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

    Extra arguments: ``z_loss`` and ``inplace_backward``, explained there; ``sample_weight`` goes to the
    call. Shapes: input (C), (N, C) or (N, C, *d); loss 0-d, or one per row with ``reduction="none"``.
    """

    z_loss: float = 0.0
    inplace_backward: bool = False

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
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.inplace_backward = inplace_backward

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        loss = F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            sample_weight=sample_weight,
            inplace_backward=self.inplace_backward,
        )
        assert isinstance(loss, Tensor)  # a tuple only with return_lse
        return loss


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


class LinearCrossEntropyLoss(torch.nn.Module):
    """A classifier's last linear layer and its loss: :func:`pyops.functional.linear_cross_entropy`.

    Parameters are those of :class:`torch.nn.Linear`: ``weight`` (out_features, in_features) and, with
    ``bias``, ``bias`` (out_features), initialised alike. ``forward(input, target)`` takes hidden states
    (N, in_features) and returns the loss; :meth:`logits` gives the scores for inference.
    """

    weight: Tensor
    bias: Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        class_weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        linear = torch.nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.register_buffer("class_weight", class_weight)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.chunk_size = chunk_size

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        return F.linear_cross_entropy(
            input,
            self.weight,
            target,
            linear_bias=self.bias,
            weight=self.class_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            sample_weight=sample_weight,
            chunk_size=self.chunk_size,
        )

    def logits(self, input: Tensor) -> Tensor:
        """Scores (N, out_features) of hidden states (N, in_features)."""
        return torch.nn.functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.weight.size(1)}, out_features={self.weight.size(0)}, "
            f"bias={self.bias is not None}, reduction={self.reduction!r}"
        )
