"""Layer, group and instance normalisation: torch's classes with this library's functions."""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "LayerNorm"]

# What does not depend on the class: pyops.convert calls these on layers of torch's class, too.


def layer_normalize(layer: Any, input: Tensor, activation: str | None = None) -> Tensor:
    """What a :class:`torch.nn.LayerNorm` computes, and the activation that follows."""
    options = (layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return F.layer_norm(input, *options, activation=activation)


def group_normalize(layer: Any, input: Tensor, activation: str | None = None) -> Tensor:
    """The same of a :class:`torch.nn.GroupNorm`."""
    return F.group_norm(input, layer.num_groups, layer.weight, layer.bias, layer.eps, activation=activation)


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` through :func:`pyops.functional.layer_norm`; same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_normalize(self, input)


class GroupNorm(torch.nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` through :func:`pyops.functional.group_norm`; same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return group_normalize(self, input)


def _instance_normalize(layer: Any, input: Tensor) -> Tensor:
    """The layer's normalisation; torch's forward for a sample without a batch, and for what it refuses."""
    layer._check_input_dim(input)
    if input.dim() == layer._get_no_batch_dim() or input.shape[1] != layer.num_features:
        output: Tensor = torch.nn.modules.instancenorm._InstanceNorm.forward(layer, input)
        return output
    return F.instance_norm(
        input,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        layer.training or not layer.track_running_stats,
        0.0 if layer.momentum is None else layer.momentum,
        layer.eps,
    )


class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d` through :func:`pyops.functional.instance_norm`; same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return _instance_normalize(self, input)


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """:class:`torch.nn.InstanceNorm2d` through :func:`pyops.functional.instance_norm`; same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return _instance_normalize(self, input)
