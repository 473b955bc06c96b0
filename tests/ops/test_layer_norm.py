"""layer_norm, group_norm, instance_norm: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pyops
import pyops.functional as F
from tests.suite.backends import Backend
from tests.suite.conversion import fused_in

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

T = torch.nn.functional


def test_a_mean_far_from_zero_does_not_drown_the_deviations(kernels: Backend) -> None:
    x = torch.randn(5, 300, device=kernels.device) + 30000.0
    exact = x.double()
    wanted = T.layer_norm(exact, (300,))
    error = (F.layer_norm(x, (300,)).double() - wanted).abs().max()
    assert error <= 1.5 * 2**-10  # half a unit of the mean's last place is 1e-3 of a deviation


def test_constant_rows_give_the_bias_and_finite_gradients(kernels: Backend) -> None:
    x = torch.full((3, 21), 7.25, device=kernels.device, requires_grad=True)
    bias = torch.arange(21.0, device=kernels.device)
    y = F.layer_norm(x, (21,), None, bias)
    assert torch.equal(y, bias.expand(3, 21))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_spoil_their_own_row_only(kernels: Backend, value: float) -> None:
    x = torch.randn(4, 40, device=kernels.device)
    x[1, 33] = value
    y = F.layer_norm(x, (40,))
    assert y[1].isnan().any()
    torch.testing.assert_close(y[[0, 2, 3]], T.layer_norm(x, (40,))[[0, 2, 3]])


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "relu6", "hardswish", "softplus"])
def test_every_way_to_derive_an_activation(kernels: Backend, activation: str) -> None:
    x = torch.randn(6, 4, 5, dtype=torch.float64, device=kernels.device) * 4
    weight, bias = (torch.randn(4, dtype=torch.float64, device=kernels.device) for _ in range(2))
    results = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        if fused:
            y = F.group_norm(leaves[0], 2, *leaves[1:], activation=activation)
        else:
            y = getattr(T, activation)(T.group_norm(leaves[0], 2, *leaves[1:]))
        results.append([y, *torch.autograd.grad(y, leaves, torch.cos(x))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradient_of_one_argument_alone(kernels: Backend, needs: tuple[bool, ...]) -> None:
    drawn = [torch.randn(shape, device=kernels.device) for shape in ((9, 12), (12,), (12,))]
    results = []
    for library in (F, T):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(drawn, needs, strict=True)]
        library.layer_norm(leaves[0], (12,), *leaves[1:]).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_float32_parameters_of_a_16_bit_input(kernels: Backend) -> None:
    x = torch.randn(6, 33, dtype=torch.bfloat16, device=kernels.device)
    weight = torch.rand(33, device=kernels.device, requires_grad=True)
    y = F.layer_norm(x, (33,), weight)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype is torch.float32
    wanted = T.layer_norm(x.float(), (33,), weight.detach())
    torch.testing.assert_close(y.float(), wanted, rtol=2**-7, atol=2**-7)


def test_what_kernels_do_not_take_is_torchs() -> None:
    with pyops.use_backend("cpp"):
        empty = torch.randn(0, 3, requires_grad=True)
        assert F.layer_norm(empty, (3,)).shape == (0, 3)
        image = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
        y = F.group_norm(image, 2, activation="relu")
        assert y.stride() == T.group_norm(image, 2).stride()
        torch.testing.assert_close(y, T.group_norm(image, 2).relu())
        mean, var = torch.zeros(4), torch.ones(4)
        found = F.instance_norm(image, mean, var, activation="relu")
        assert mean.count_nonzero() > 0
        torch.testing.assert_close(found, T.instance_norm(image).relu())


def test_convert_fuses_the_activation_behind_a_norm() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.InstanceNorm2d(8), nn.Flatten(),
        nn.Linear(8 * 16, 6), nn.LayerNorm(6), nn.GELU(),
    ).double()  # fmt: skip
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    found, wanted = converted(x), model(x)
    torch.testing.assert_close(found, wanted)
    assert fused_in(converted) == ["1 + 2", "6 + 7"]
    assert type(converted[1]) is nn.GroupNorm
    for y in (found, wanted):
        y.square().sum().backward()
    for ours, theirs in zip(converted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert "left" not in {entry.action for entry in pyops.conversion_report(converted)[:2]}
