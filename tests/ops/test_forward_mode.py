"""Forward-mode gradients: torch's, and never silently none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import pyops
from pyops import functional as F

W = torch.randn(5, 3, 3, 3, dtype=torch.float64)
MATRIX = torch.randn(7, 16, dtype=torch.float64)
TARGET = torch.arange(6) % 16
MEAN, VAR = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 1
CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **{
        name: lambda L, x, name=name: getattr(L, name)(x)
        for name in (
            *("relu", "leaky_relu", "elu", "selu", "sigmoid"),
            *("tanh", "silu", "gelu", "softplus", "hardswish"),
            *("relu6", "hardtanh", "hardsigmoid"),
        )
    },
    **{
        name: lambda L, x, name=name: getattr(L, name)(x, x.detach() * 2 + 1)
        for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
    },
    "binary_cross_entropy_with_logits": lambda L, x: L.binary_cross_entropy_with_logits(
        x, x.detach().sigmoid()
    ),
    "softmax": lambda L, x: L.softmax(x, 1),
    "log_softmax": lambda L, x: L.log_softmax(x, -1),
    "conv2d": lambda L, x: L.conv2d(x, W, padding=1),
    "conv1d": lambda L, x: L.conv1d(x.flatten(2), W.flatten(2), padding=1),
    "linear": lambda L, x: L.linear(x.flatten(2)[..., :16], MATRIX),
    "max_pool2d": lambda L, x: L.max_pool2d(x, 2),
    "avg_pool2d": lambda L, x: L.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda L, x: L.adaptive_avg_pool2d(x, 2),
    "interpolate": lambda L, x: L.interpolate(x, scale_factor=2),
    "batch_norm": lambda L, x: L.batch_norm(x, MEAN, VAR),
    "batch_norm, training": lambda L, x: L.batch_norm(x, None, None, training=True),
    "layer_norm": lambda L, x: L.layer_norm(x, x.shape[-1:]),
    "group_norm": lambda L, x: L.group_norm(x, 3, MEAN, VAR),
    "instance_norm": lambda L, x: L.instance_norm(x),
    "cross_entropy": lambda L, x: L.cross_entropy(x.flatten()[:96].view(6, 16), TARGET),
    "nll_loss": lambda L, x: L.nll_loss(x.flatten()[:96].view(6, 16), TARGET),
    "prelu": lambda L, x: L.prelu(x, MEAN),
    "embedding": lambda L, x: L.embedding(TARGET, x.flatten()[:96].view(16, 6)),
    "dropout": lambda L, x: L.dropout(x, 0.5, training=False),
}


def tangent(library: Any, call: str, x: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        output = CALLS[call](library, forward_ad.make_dual(x, direction))
        found = forward_ad.unpack_dual(output).tangent
        assert found is not None
        return found


@pytest.mark.parametrize("call", CALLS)
def test_tangents_are_torchs(call: str) -> None:
    torch.manual_seed(0)
    x, direction = torch.randn(2, 2, 3, 12, 9, dtype=torch.float64).unbind(0)
    with pyops.use_backend("cpp"):  # for small tensors as well
        found = tangent(F, call, x, direction)
        transformed = torch.func.jvp(lambda x: CALLS[call](F, x), (x,), (direction,))[1]
    torch.testing.assert_close(found, tangent(torch.nn.functional, call, x, direction))
    torch.testing.assert_close(transformed, found)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_tangents_of_recurrent_layers(kind: str) -> None:
    layer = getattr(pyops.nn, kind)(5, 7).double()
    x, direction = torch.randn(2, 4, 3, 5, dtype=torch.float64).unbind(0)
    step = 1e-6
    with torch.no_grad():
        wanted = (layer(x + step * direction)[0] - layer(x - step * direction)[0]) / (2 * step)
    with forward_ad.dual_level():
        output = layer(forward_ad.make_dual(x, direction))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, wanted, rtol=1e-5, atol=1e-7)
