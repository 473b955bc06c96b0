"""Batch normalisation modules: torch's classes with this library's function and what may follow it."""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor

from .. import functional as F
from ..ops.activation import parse


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the modules share; torch's class of the same rank checks the input's dimensions.

    Extra argument: ``activation``, the name of the activation that follows; ``residual`` goes to the call
    and is added before it. Both are explained at :func:`pyops.functional.batch_norm`.
    """

    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        parse(type(self).__name__, activation)
        options = (num_features, eps, momentum, affine, track_running_stats, device, dtype)
        super().__init__(*options, **_bias_option(bias))
        if activation is not None:  # torch's module as it is where nothing follows
            self.activation = activation

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        return self._norm_forward(input, self.activation, residual)

    def _norm_forward(self, input: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        self._check_input_dim(input)
        momentum = self._count_batch()
        use_running = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            self._uses_batch(),
            momentum,
            self.eps,
            activation=activation,
            residual=residual,
        )

    def _uses_batch(self) -> bool:
        """Whether the batch's own statistics are used: in training, and where there are no others."""
        return self.training or (self.running_mean is None and self.running_var is None)

    def _count_batch(self) -> float:
        """Count a training batch; its weight in the running statistics, 1 / count if ``momentum`` is None."""
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        more = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + more


def _bias_option(bias: bool) -> dict[str, bool]:
    """torch's argument of that name, which older versions do not have."""
    return {} if bias else {"bias": False}


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` through :func:`pyops.functional.batch_norm`.

    Shapes: input and output (N, C) or (N, C, L). Extras: ``activation``, and ``residual`` in the call.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` through :func:`pyops.functional.batch_norm`.

    Shapes: input and output (N, C, H, W). Extras: ``activation``, and ``residual`` in the call.
    """
