"""pyops.convert: plans are made anew when something has changed, a few times."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops.convert.again import MOST_TRIES
from pyops.convert.plan import Plan
from tests.suite.conversion import Calls, actions_of, assert_same, conv, fused_in, images


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.scale = conv(), nn.ReLU(), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)) * self.scale


def changes_of(model: nn.Module) -> list[str]:
    return [e.detail for e in pyops.conversion_report(model) if e.action == "fused anew"]


def pair_of() -> tuple[nn.Module, nn.Module]:
    model = Scaled().double()
    return pyops.convert(copy.deepcopy(model)), model


def test_what_forward_reads_changes_and_is_fused_anew(plans_used: list[Plan]) -> None:
    found, wanted = pair_of()
    x = images()
    assert_same(found, wanted, x)
    found.scale = wanted.scale = 3.0
    assert "has changed: convert again" in str(pyops.conversion_report(found))
    for mode in (True, False):
        assert_same(found, wanted, x, mode=mode)
    assert changes_of(found) == ["because scale, which forward reads, has changed"]
    assert fused_in(found) == ["conv + relu"]
    assert len(plans_used) == 3
    found.scale = wanted.scale = 2.0  # the first plan is still there
    assert_same(found, wanted, x)
    assert len(plans_used) == 4
    assert len(changes_of(found)) == 1


def test_what_changes_at_every_call_is_left_after_a_few_times(plans_used: list[Plan]) -> None:
    found, wanted = pair_of()
    for i in range(MOST_TRIES + 3):
        found.scale = wanted.scale = 3.0 + i
        assert_same(found, wanted, images())
    assert len(plans_used) == len(changes_of(found)) == MOST_TRIES
    assert "has changed: convert again" in str(pyops.conversion_report(found))
    assert fused_in(pyops.convert(found)) == ["conv + relu"]
    assert changes_of(found) == []
    found.scale = wanted.scale = 1.5  # it counts from here
    assert_same(found, wanted, images())
    assert len(changes_of(found)) == 1


def test_a_layer_in_the_place_of_another() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(), nn.Tanh()).double()
    found = pyops.convert(copy.deepcopy(model))
    model[3] = nn.Sigmoid()
    found[3] = nn.Sigmoid()
    assert_same(found, model, images())
    assert changes_of(found) == ["because a module was added, replaced or removed"]
    assert fused_in(found) == ["0 + 1"]  # the new layer is not converted
    assert fused_in(pyops.convert(found)) == ["0 + 1", "2 + 3"]


def test_a_forward_that_can_no_longer_be_traced(
    plans_used: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wanted = pair_of()
    traced: list[None] = []

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        traced.append(None)
        return self.conv(x) if float(x.detach().sum()) > 1e9 else x

    monkeypatch.setattr(Scaled, "forward", forward)
    for _ in range(MOST_TRIES + 2):
        assert_same(found, wanted, images())
    assert not plans_used
    assert changes_of(found) == []
    assert len(traced) == 2 * (MOST_TRIES + 2) + MOST_TRIES


IN_THE_WAY: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "jit.trace": lambda m, x: torch.jit.trace(m, x, check_trace=False)(x),
    "func": lambda m, x: torch.func.vmap(m)(x),
    "fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "by name": lambda m, x: m(x=x),
    "a hook": lambda m, x: (m.relu.register_forward_hook(lambda *_: None), m(x))[1],
}


@pytest.mark.parametrize("way", IN_THE_WAY)
def test_calls_that_are_no_reason(way: str) -> None:
    found, wanted = pair_of()
    if way != "a hook":
        found.scale = wanted.scale = 5.0
    x = images().detach()
    torch.testing.assert_close(IN_THE_WAY[way](found, x), wanted(x))
    assert changes_of(found) == []
    assert found._pyops_conversion.tries == 0


def test_another_mode_of_a_part_is_no_change() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5)).double()
    found = pyops.convert(copy.deepcopy(model))
    for m in (model, found):
        m[3].eval()
        m[1].eval()
    torch.testing.assert_close(found(x := images()), model(x))
    assert changes_of(found) == []


def test_copies_begin_anew() -> None:
    found, wanted = pair_of()
    found.scale = wanted.scale = 3.0
    assert_same(found, wanted, images())
    clone = copy.deepcopy(found)
    assert changes_of(clone) == []
    assert fused_in(clone) == ["conv + relu"]
    assert changes_of(pyops.revert(found)) == []


OTHER = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
RESULTS: list[Tensor] = []


class Asks(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def run_in_another_thread(module: nn.Module, x: Tensor) -> Tensor:
    def run() -> None:
        module.note = 1
        with torch.no_grad():
            RESULTS.append(OTHER(torch.ones(2, 5)) if not torch.is_grad_enabled() else torch.zeros(()))
        module.__dict__.pop("note")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return module.conv(x).relu()


def test_a_model_runs_while_another_thread_traces() -> None:
    RESULTS.clear()
    pyops.convert(Asks(run_in_another_thread, conv=conv()))
    assert RESULTS
    for result in RESULTS:
        torch.testing.assert_close(result, OTHER(torch.ones(2, 5)))


def test_a_class_that_was_given_another_forward_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: self._conv_forward(x, self.weight, None) * 2)
    model = nn.Sequential(conv(), nn.ReLU()).double()
    x = images()
    wanted = model(x)
    torch.testing.assert_close(pyops.convert(model)(x), wanted)
    assert actions_of(model) == {"0": "left", "1": "replaced"}
    assert "given another forward" in str(pyops.conversion_report(model))


def test_a_chain_that_ends_in_a_pair() -> None:
    layers = [conv(), nn.ReLU(), conv(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)]
    model = nn.Sequential(*layers).double()
    x = images()
    wanted = model(x)
    pyops.convert(model)
    for _ in range(2):
        torch.testing.assert_close(model(x), wanted)
