"""Optimisers by name: torch's, in their fused variants where the device has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .errors import TrainError, unknown_name
from .registry import Recipe

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def optimizer_names() -> list[str]:
    """Names that a recipe's ``optimizer`` may be."""
    return sorted(_OPTIMIZERS)


def make_optimizer(net: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of ``recipe`` for the parameters of ``net``, which lie on ``device``.

    Raises:
        TrainError: no such optimiser; the nearest names are suggested.
    """
    if recipe.optimizer not in _OPTIMIZERS:
        raise TrainError(unknown_name("optimizer", recipe.optimizer, _OPTIMIZERS))
    options: dict[str, Any] = {"lr": recipe.lr, "fused": device.type in ("cpu", "cuda")}
    return _OPTIMIZERS[recipe.optimizer](net.parameters(), **options)
