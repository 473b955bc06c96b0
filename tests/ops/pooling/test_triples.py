"""Windows 3 elements wide and 2 apart in NCHW order, and outputs past the caches: loops of the CPU alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pyops.functional as F
from pyops import backends

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

Pool = Callable[..., Tensor]


def _with_gradient(pool: Pool, x: Tensor, *options: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = pool(leaf, *options, ceil_mode=ceil_mode)
    upstream = torch.arange(y.numel(), dtype=y.dtype).view_as(y) % 7 + 1
    return y.detach(), torch.autograd.grad(y, leaf, upstream)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_every_width(padding: int, ceil_mode: bool, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, 2.0, -3.0, float("inf"), -float("inf"), float("nan")])
    for width in range(3, 72):
        x = values[torch.randint(len(values), (3, 5, width))].to(dtype)
        with backends.use_backend("cpp"):
            found = _with_gradient(F.max_pool2d, x, 3, 2, padding, ceil_mode=ceil_mode)
        wanted = _with_gradient(torch.nn.functional.max_pool2d, x, 3, 2, padding, ceil_mode=ceil_mode)
        torch.testing.assert_close(found, wanted, equal_nan=True, rtol=0, atol=0)
        x = torch.randn(3, 5, width).to(dtype)
        with backends.use_backend("cpp"):
            found = _with_gradient(F.avg_pool2d, x, 3, 2, padding, ceil_mode=ceil_mode)
        wanted = _with_gradient(torch.nn.functional.avg_pool2d, x, 3, 2, padding, ceil_mode=ceil_mode)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 35, 231, 229), (5, 229, 201, 47)])
def test_large_outputs_have_the_bits_of_small_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Large outputs go through a buffer, in which rows do not begin where vectors do."""
    x = torch.randn(shape).to(dtype)
    pools: list[Pool] = [
        lambda t, ceil_mode: F.max_pool2d(t, 3, 2, 1),
        lambda t, ceil_mode: F.max_pool2d(t, 2),
        lambda t, ceil_mode: F.max_pool2d(t.contiguous(memory_format=torch.channels_last), 3, 1, 1),
        lambda t, ceil_mode: F.avg_pool2d(t, 3, 2, 1),
        lambda t, ceil_mode: F.adaptive_avg_pool2d(t, (200, 40)),
    ]
    for pool in pools:
        large = _with_gradient(pool, x, ceil_mode=False)
        for part in range(shape[0]):
            leaf = x[part : part + 1].clone().requires_grad_()
            y = pool(leaf, ceil_mode=False)
            upstream = torch.arange(large[0].numel(), dtype=dtype).view(large[0].shape) % 7 + 1
            (gradient,) = torch.autograd.grad(y, leaf, upstream[part : part + 1])
            assert torch.equal(large[0][part : part + 1], y)
            assert torch.equal(large[1][part : part + 1], gradient)
