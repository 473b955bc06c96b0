"""Outputs and gradients lie in memory as torch's do, also for inputs with gaps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import pyops
import pyops.functional as F


def _channels_of_wider_images() -> torch.Tensor:
    """Half of the channels of channels_last images: neither contiguous nor dense."""
    return torch.randn(4, 16, 32, 32).contiguous(memory_format=torch.channels_last)[:, :8]


_CALLS: dict[str, Callable] = {
    "conv2d": lambda f, x: f.conv2d(x, torch.ones(6, 8, 3, 3)),
    "gelu": lambda f, x: f.gelu(x),
    "selu": lambda f, x: f.selu(x),
    "prelu": lambda f, x: f.prelu(x, torch.ones(1)),
    "dropout": lambda f, x: f.dropout(x, 0.5),
    "max_pool2d": lambda f, x: f.max_pool2d(x, 2),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2),
    "interpolate": lambda f, x: f.interpolate(x, scale_factor=2),
}


@pytest.mark.parametrize("name", _CALLS)
def test_results_of_images_with_gaps_lie_as_torchs(name: str) -> None:
    """Those of conv2d and of activations were contiguous, so a channels_last network left its format."""
    x = _channels_of_wider_images()
    with pyops.use_backend("cpp"):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours.data = theirs.data = x
        result, wanted = _CALLS[name](F, ours), _CALLS[name](torch.nn.functional, theirs)
        assert result.stride() == wanted.stride()
        if name != "dropout":
            torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
        result.sum().backward()
        wanted.sum().backward()
    assert ours.grad is not None and theirs.grad is not None  # noqa: PT018
    assert ours.grad.stride() == theirs.grad.stride()


def test_fused_dropout_of_images_with_gaps() -> None:
    x, bias = _channels_of_wider_images(), torch.randn(8, 1, 1)
    y = F.dropout(x, 0.5, bias=bias, activation="relu", residual=x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    kept = (y - x) != 0
    torch.testing.assert_close(y, x + kept * torch.relu(x + bias) * 2)
