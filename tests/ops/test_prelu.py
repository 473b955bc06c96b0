"""prelu: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def test_boundaries_nan_and_infinity(kernels: Backend) -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, math.nan, math.inf, -math.inf])
    results = []
    for function, device in ((F.prelu, kernels.device), (torch.nn.functional.prelu, "cpu")):
        x = values.to(device).requires_grad_()
        weight = torch.tensor([0.25], device=device, requires_grad=True)
        y = function(x, weight)
        gradients = torch.autograd.grad(y, (x, weight), torch.full_like(y, 2.0))
        results.append([t.detach().cpu() for t in (y, *gradients)])
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradient_keep_the_memory_format(kernels: Backend, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    weight = torch.rand(5, device=kernels.device)
    y = F.prelu(x, weight)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == gradient.stride() == x.stride()


def test_gradient_of_one_argument_alone(kernels: Backend) -> None:
    x, weight = torch.randn(3, 5, device=kernels.device), torch.rand(5, device=kernels.device)
    for first, second in ((True, False), (False, True)):
        a, w = x.clone().requires_grad_(first), weight.clone().requires_grad_(second)
        F.prelu(a, w).sum().backward()
        b, v = x.clone().requires_grad_(first), weight.clone().requires_grad_(second)
        torch.nn.functional.prelu(b, v).sum().backward()
        torch.testing.assert_close((a.grad, w.grad)[not first], (b.grad, v.grad)[not first])


def test_backward_makes_no_tensor_of_products() -> None:
    with pyops.use_backend("cpp"):
        x = torch.randn(64, 40, requires_grad=True)
        weight = torch.rand(40, requires_grad=True)
        assert checks.saved_for_backward(lambda: F.prelu(x, weight), x, weight) == 0
        y = F.prelu(x, weight)
        with checks._Recorder() as recorder:
            y.sum().backward()
    assert [str(call[0]) for call in recorder.calls] == ["pyops.prelu_backward.default"]
