"""dropout, alone and fused, on every backend, with the mask that the suite computes: values and layouts."""

from __future__ import annotations

import math

import pytest
import torch

import pyops.functional as F
from tests.suite.backends import Backend
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.dropout import factors, fixed_seed

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def test_nan_and_infinity_pass_as_in_torch(backend: Backend) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 10, device=backend.device)
    with fixed_seed():
        torch.testing.assert_close(
            F.dropout(x, 0.5).cpu(), x.cpu() * factors(0.5, x.shape).float(), equal_nan=True
        )
        assert F.dropout(x, 1.0)[:3].isnan().all()


def test_pitfall_20_float16_does_not_overflow_before_the_product() -> None:
    x = torch.full((4096,), 1.0, dtype=torch.float16)
    y = F.dropout(x, 1 - 1e-5)  # the scale, 100000, is no float16
    assert set(y.unique().tolist()) <= {0.0, math.inf}
    assert F.dropout(x / 4, 1 - 1e-5).max().item() in (0.0, torch.tensor(25000.0).half().item())


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
@pytest.mark.parametrize("fused", [False, True])
def test_permuted_tensors_keep_their_strides(backend: Backend, layout: str, fused: bool) -> None:
    x = LAYOUTS[layout](torch.rand(2, 5, 3, 4) + 1).to(backend.device).requires_grad_()
    bias = torch.rand(5, 1, 1, device=backend.device, requires_grad=True) if fused else None
    y = F.dropout(x, 0.5, bias=bias)
    assert y.stride() == x.stride()
    wanted = (y != 0) * 2.0
    torch.testing.assert_close(y, (x if bias is None else x + bias) * wanted)
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x] if bias is None else [x, bias], upstream)
    torch.testing.assert_close(gradients[0], upstream * wanted)
    assert gradients[0].stride() == x.stride()
    if bias is not None:
        torch.testing.assert_close(gradients[1], (upstream * wanted).sum((0, 2, 3)).view(5, 1, 1))
