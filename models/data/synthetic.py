"""Synthetic data: a linear map with noise, and XOR."""

from __future__ import annotations

import torch

from .dataset import Dataset

_LINEAR_ROWS, _LINEAR_NOISE = 1000, 0.01


def load_linear() -> Dataset:
    """y = X w + b + noise with w = (2, -3.4), b = 4.2, X from N(0, 1) and noise from N(0, 0.01^2)."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.tensor([[2.0, -3.4]]), torch.tensor([4.2])
    inputs = torch.randn(2 * _LINEAR_ROWS, 2, generator=generator)
    noise = torch.randn(2 * _LINEAR_ROWS, 1, generator=generator) * _LINEAR_NOISE
    targets = inputs @ weight.T + bias + noise
    train, test = slice(_LINEAR_ROWS), slice(_LINEAR_ROWS, None)
    return Dataset(
        "linear", inputs[train], targets[train], inputs[test], targets[test], solution=(weight, bias)
    )


def load_xor() -> Dataset:
    """The four corners of a square; the class is whether the coordinates differ. Tested on themselves."""
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    return Dataset("xor", inputs, labels, inputs, labels, ("equal", "different"))
