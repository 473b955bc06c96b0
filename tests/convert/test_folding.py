"""pyops.convert: batch normalisation as part of a convolution's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pyops
from pyops.ops.tools.digest import digest_of
from tests.suite.conversion import assert_same, check, conv, images


def folded_pair(channels: int = 5, **options: object) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(conv(channels, **options), nn.BatchNorm2d(channels), nn.ReLU()).double()
    model(images())
    for parameter in model[1].parameters():
        nn.init.normal_(parameter)
    return pyops.convert(copy.deepcopy(model)).eval(), model.eval()


CHANGES = {
    "in place": lambda m: m[1].running_mean.add_(1),
    "by data": lambda m: m[1].weight.data.mul_(2),
    "weight by data": lambda m: m[0].weight.data.mul_(2),
    "one weight by data": lambda m: m[0].weight.data[2, 1, 2, 0].neg_(),
    "by numpy": lambda m: m[0].weight.detach().numpy().__imul__(3),
    "order by data": lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(3).clone()),
    "other data": lambda m: setattr(m[0].bias, "data", m[0].bias.data + 1),
    "other tensor": lambda m: setattr(m[1], "bias", nn.Parameter(m[1].bias + 1)),
    "state dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "dtype": lambda m: m.to(torch.float32).to(torch.float64),
    "training": lambda m: m.train()(torch.ones(2, 3, 4, 5, dtype=torch.float64)).shape and m.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folded_weights_follow_every_change(change: str) -> None:
    found, wanted = folded_pair()
    x = images().detach()
    with torch.no_grad():
        torch.testing.assert_close(found(x), wanted(x))
        for model in (found, wanted):
            CHANGES[change](model)
        torch.testing.assert_close(found(x), wanted(x))


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.5, 1e-3, 2.0**-16])
def test_weights_that_all_change_alike(factor: float) -> None:
    """A sum of 2^n words does not see a sign or an exponent that changes in all of them."""
    weight = torch.ones(64 * 1024)
    for values in (weight, torch.rand_like(weight) + 1, weight.double(), weight.bfloat16()):
        before = digest_of([values])
        assert digest_of([values.clone()]) == before
        assert digest_of([values * factor]) != before


def test_folded_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyops.convert import steps

    calls = []
    fold = steps._fold
    monkeypatch.setattr(steps, "_fold", lambda *modules: calls.append(1) or fold(*modules))
    found, wanted = folded_pair(bias=False)
    x = images()
    with torch.inference_mode():
        found(x)
    with torch.no_grad():
        found(x)
    assert len(calls) == 1
    for model in (found, wanted):  # in a frozen model, gradients go through to the input
        model.requires_grad_(False)
    gradients = [torch.autograd.grad(model(x).sum(), x) for model in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert len(calls) == 1


def test_a_model_in_evaluation_mode_still_has_gradients() -> None:
    found, wanted = folded_pair()
    assert_same(found, wanted, images(), mode=False)


def test_statistics_of_the_batch_are_never_folded() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    check(nn.Sequential(conv(), norm, nn.ReLU()), images(), fused=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_in_16_bits_is_as_exact_as_torch(dtype: torch.dtype) -> None:
    found, exact = folded_pair()
    x = images(4, 3, 14, 13).detach()
    rounded = copy.deepcopy(exact).to(dtype)
    found.to(dtype)
    with torch.no_grad():
        wanted = copy.deepcopy(rounded).double()(x.to(dtype).double())
        errors = [(model(x.to(dtype)).double() - wanted).abs().max() for model in (found, rounded)]
    assert errors[0] <= 2 * errors[1]
