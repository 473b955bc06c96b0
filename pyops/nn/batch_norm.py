"""Batch normalisation modules: torch's classes with this library's function and what may follow it."""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor

from .. import functional as F
from ..kinds import parse
from ..ops.sync_batch_norm import sync_batch_norm
from ..ops.tools.checks import check_tensor

__all__ = ["BatchNorm1d", "BatchNorm2d", "LazyBatchNorm1d", "LazyBatchNorm2d", "SyncBatchNorm"]

_Torchs = torch.nn.modules.batchnorm._BatchNorm

# What does not depend on the class: pyops.convert calls it on layers of torch's class, too.


def normalize(
    layer: _Torchs, input: Tensor, activation: str | None = None, residual: Tensor | None = None
) -> Tensor:
    """The layer's normalisation of ``input``, what follows, and its running statistics."""
    layer._check_input_dim(input)
    momentum = count_batch(layer)
    use_running = not layer.training or layer.track_running_stats
    uses_batch = layer.training or (layer.running_mean is None and layer.running_var is None)
    return F.batch_norm(
        input,
        layer.running_mean if use_running else None,
        layer.running_var if use_running else None,
        layer.weight,
        layer.bias,
        uses_batch,
        momentum,
        layer.eps,
        activation=activation,
        residual=residual,
    )


def count_batch(layer: _Torchs) -> float:
    """Count a training batch; its weight in the running statistics, 1 / count if ``momentum`` is None."""
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            return 1.0 / float(layer.num_batches_tracked)
    return 0.0 if layer.momentum is None else layer.momentum


class _BatchNorm(_Torchs):
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
        if activation is not None:  # without one, the module stays as torch's
            self.activation = activation

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        return self._norm_forward(input, self.activation, residual)

    def _norm_forward(self, input: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        return normalize(self, input, activation, residual)

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


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d):
    """:class:`torch.nn.LazyBatchNorm1d`; it becomes a :class:`BatchNorm1d` at the first call."""

    cls_to_become = BatchNorm1d
    activation: str | None = None

    # The first call looks these up before the class changes.
    forward = _BatchNorm.forward
    _norm_forward = _BatchNorm._norm_forward


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d):
    """:class:`torch.nn.LazyBatchNorm2d`; it becomes a :class:`BatchNorm2d` at the first call."""

    cls_to_become = BatchNorm2d
    activation: str | None = None

    forward = _BatchNorm.forward
    _norm_forward = _BatchNorm._norm_forward


class SyncBatchNorm(_BatchNorm):
    """As :class:`torch.nn.SyncBatchNorm`, on CPU processes (gloo) as well as on GPUs.

    In training, the statistics are those of the batches of all processes of ``process_group`` (by default all
    there are), whose sizes may differ. Without other processes it is a BatchNorm of any rank. Shapes: input
    and output (N, C, *). Extras: ``activation``, and ``residual`` in the call.

    Not a subclass of torch's: DistributedDataParallel refuses those outside of GPUs.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        options = (num_features, eps, momentum, affine, track_running_stats, device, dtype)
        super().__init__(*options, bias=bias, activation=activation)
        self.process_group = process_group

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        group = self._group() if self.training else None
        if group is None or torch.distributed.get_world_size(group) == 1:
            return super().forward(input, residual=residual)
        self._check_input_dim(input)
        momentum = count_batch(self)
        tracked = self.track_running_stats
        return sync_batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            group,
            activation=self.activation,
            residual=residual,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        check_tensor("SyncBatchNorm", "input", input)
        if input.dim() < 2 or input.shape[1] == 0:
            raise ValueError(f"SyncBatchNorm: input must have shape (N, C, *), got {tuple(input.shape)}")

    def _group(self) -> Any:
        """The processes to share statistics with; None where there are none."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return None
        return self.process_group or torch.distributed.group.WORLD

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """``module`` with this class in place of every BatchNorm, torch's or this library's.

        Parameters and buffers are shared with the layers that are replaced. A BatchNorm itself is returned as
        a new module, any other module is changed in place.
        """
        converted = module
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            converted = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                bias=module.bias is not None,
                activation=getattr(module, "activation", None),
            )
            converted.weight, converted.bias = module.weight, module.bias
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(converted, name, getattr(module, name))
            converted.train(module.training)
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted
