"""Triton's products in TF32: operands are rounded to it; tensor cores would cut off what they ignore."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

pytest.importorskip("triton")

import pyops
from tests.suite.triton_cases import fp32_precision

if reason := pyops.backends.missing_reason("triton", "cuda" if torch.cuda.is_available() else "cpu"):
    pytest.skip(reason, allow_module_level=True)

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}  # rounding changes about 5e-4, cutting off twice as much


@pytest.fixture(autouse=True)
def tf32():
    with ExitStack() as stack:
        for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
            stack.enter_context(fp32_precision(switch, "tf32"))
        stack.enter_context(pyops.use_backend("triton"))
        torch.manual_seed(0)
        yield


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """10 bits of mantissa, ties away from zero, as float64."""
    bits = x.detach().float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def test_gemm() -> None:
    a, b = torch.randn(5, 40, device=_DEVICE), torch.randn(40, 7, device=_DEVICE)
    out = torch.empty(5, 7, device=_DEVICE)
    torch.ops.pyops_triton.gemm_(out, a, b, 0.0)
    wanted = _rounded(a) @ _rounded(b)
    torch.testing.assert_close(out, wanted.float(), **_TOLERANCE)
    assert not torch.allclose(out, (a.double() @ b.double()).float(), **_TOLERANCE)


def test_gemm_of_numbers_that_are_not_finite() -> None:
    infinity, nan = float("inf"), float("nan")
    a = torch.tensor([[infinity], [-infinity], [nan], [3.4e38]], device=_DEVICE)
    out = torch.empty(4, 1, device=_DEVICE)
    torch.ops.pyops_triton.gemm_(out, a, torch.ones(1, 1, device=_DEVICE), 0.0)
    assert out[:3, 0].isnan().tolist() == [False, False, True]
    assert out[:2, 0].tolist() == [infinity, -infinity]
    assert out[3, 0] == _rounded(a[3:]).float().item()


@pytest.mark.parametrize("channels_last", [False, True])
def test_conv2d_and_its_gradients(channels_last: bool) -> None:
    format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 20, 5, 5, device=_DEVICE).to(memory_format=format).requires_grad_()
    weight = torch.randn(3, 20, 3, 3, device=_DEVICE).requires_grad_()
    y = pyops.functional.conv2d(x, weight, padding=1)
    grad = torch.randn_like(y)
    y.backward(grad)
    conv2d, gradients = torch.nn.functional.conv2d, torch.nn.grad
    rx, rw, rg = _rounded(x), _rounded(weight), _rounded(grad)
    torch.testing.assert_close(y, conv2d(rx, rw, padding=1).float(), rtol=1e-5, atol=1e-5)
    grad_x = gradients.conv2d_input(x.shape, rw, rg, padding=1).float()
    torch.testing.assert_close(x.grad, grad_x, rtol=1e-5, atol=1e-5)
    grad_weight = gradients.conv2d_weight(rx, weight.shape, rg, padding=1).float()
    torch.testing.assert_close(weight.grad, grad_weight, rtol=1e-5, atol=1e-5)


def test_conv2d_with_pooling_in_the_same_kernel() -> None:
    x, weight = torch.randn(2, 3, 6, 6, device=_DEVICE), torch.randn(4, 3, 3, 3, device=_DEVICE)
    y = pyops.functional.conv2d_max_pool2d(x, weight, kernel_size=2)
    sums = torch.nn.functional.conv2d(_rounded(x), _rounded(weight))
    torch.testing.assert_close(y, torch.nn.functional.max_pool2d(sums, 2).float(), rtol=1e-5, atol=1e-5)


def test_recurrent_states() -> None:
    h, weight = torch.randn(1, 3, 8, device=_DEVICE), torch.randn(8, 8, device=_DEVICE)
    layer = pyops.nn.RNN(4, 8, nonlinearity="relu", bias=False, device=_DEVICE)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(weight)
        layer.weight_ih_l0.zero_()
        y, _ = layer(torch.zeros(1, 3, 4, device=_DEVICE), h)
    torch.testing.assert_close(y[0], (_rounded(h[0]) @ _rounded(weight).t()).relu().float(), **_TOLERANCE)
