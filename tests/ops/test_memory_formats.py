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


_CHANGED_AFTERWARDS: dict[str, Callable] = {
    **_CALLS,
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, 4),
    "max_pool2d with indices": lambda f, x: f.max_pool2d(x, 2, return_indices=True)[0],
    "mse_loss": lambda f, x: f.mse_loss(x, torch.zeros(x.shape), reduction="none"),
    "softmax": lambda f, x: f.softmax(x, 1),
    "log_softmax": lambda f, x: f.log_softmax(x, 1),
}


@pytest.mark.parametrize("name", _CHANGED_AFTERWARDS)
def test_results_of_channels_last_images_are_no_views(name: str) -> None:
    """``relu_`` behind them raised (conv2d), or copied the whole gradient (CopySlices)."""
    call = _CHANGED_AFTERWARDS[name]
    x = torch.randn(4, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with pyops.use_backend("cpp"):
        assert not call(F, x)._is_view()
        torch.manual_seed(0)
        result = call(F, ours)
    assert not result._is_view()
    assert result.is_contiguous(memory_format=torch.channels_last)
    if "softmax" in name:  # backward needs it
        return
    kept = result.detach().clone() > 0
    result.relu_()
    assert "CopySlices" not in str(result.grad_fn)
    result.sum().backward()
    if name == "dropout":
        wanted = kept * 2.0
    else:
        (wanted,) = torch.autograd.grad(call(torch.nn.functional, theirs).relu_().sum(), theirs)
    torch.testing.assert_close(ours.grad, wanted, rtol=1e-4, atol=1e-4)


def test_fused_results_of_channels_last_images_are_no_views() -> None:
    x = torch.randn(4, 8, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 8, 3, 3, requires_grad=True)
    for result in (
        F.conv2d(x, weight, activation="leaky_relu"),
        F.conv2d_max_pool2d(x, weight, kernel_size=2, activation="leaky_relu"),
        F.dropout(x, 0.5, activation="leaky_relu", residual=torch.zeros_like(x)),
    ):
        result.mul_(2.0).sum().backward()
    with torch.no_grad():
        kept = F.conv2d(x, weight), F.conv2d_max_pool2d(x, weight, kernel_size=2)
    assert not any(result._is_view() for result in kept)
