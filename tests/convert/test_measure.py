"""pyops.convert with example_inputs: what is faster as it was stays so, and a measurement leaves nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyops
from pyops.convert import Entry, Report, measure
from pyops.convert.ops import Member
from pyops.convert.sample import Sample
from tests.suite.conversion import Net, actions_of, assert_same, conv, fused_in, images

Runs = Sequence[Callable[[], float]]


def pretend(patch: pytest.MonkeyPatch, part: Callable[[int], int], model: Callable[[int], int]) -> list[int]:
    """Let the run of this place among a part's ways, and among the model's arrangements, be the fastest.

    Every run is run. The list gets how many ways each part has, and last how many arrangements there are.
    """
    counts: list[int] = []

    def seconds_of(runs: Runs, limit: float) -> list[list[float]]:
        for run in runs:
            run()
        whole = "_Arrangement" in runs[0].__qualname__
        best = (model if whole else part)(len(runs))
        counts.append(len(runs))
        return [[0.001 if i == best else 0.002] for i in range(len(runs))]

    patch.setattr(measure, "seconds_of", seconds_of)
    patch.setattr(Sample, "now", lambda _: 0.0)  # time never runs out
    return counts


def first(count: int) -> int:
    return 0


def last(count: int) -> int:
    return count - 1


def block() -> nn.Sequential:
    return nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU()).double()


def test_parts_that_are_faster_as_they_were_stay_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = pretend(monkeypatch, last, lambda count: 1)
    model = block()
    converted = pyops.convert(copy.deepcopy(model), example_inputs=images())
    assert counts == [4, 3]
    assert actions_of(converted) == dict.fromkeys("012", "kept torch")
    assert "2 against 1 ms" in str(pyops.conversion_report(converted))
    assert not any("forward" in vars(m) for m in converted.modules())
    assert_same(converted, model, images())


def test_a_convolution_that_is_faster_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda count: 1, lambda count: 1)
    model = block()
    converted = pyops.convert(copy.deepcopy(model), example_inputs=images())
    assert actions_of(converted) == {"": "fused", "0": "kept torch", "1": "replaced", "2": "replaced"}
    assert fused_in(converted) == ["1 + 2"]
    for mode in (True, False):
        assert_same(converted, model, images(), mode=mode)


def test_what_follows_a_convolution_is_faster_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda count: 2, lambda count: 1)
    model = block()
    converted = pyops.convert(copy.deepcopy(model), example_inputs=images())
    assert actions_of(converted) == {"0": "replaced", "1": "kept torch", "2": "kept torch"}
    assert_same(converted, model, images())


def test_a_model_that_is_faster_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = pretend(monkeypatch, first, last)
    model = Net().double()
    converted = pyops.convert(copy.deepcopy(model), example_inputs=images())
    assert counts[-1] == 2
    assert not any("forward" in vars(m) for m in converted.modules())
    assert set(actions_of(converted).values()) == {"kept torch"}
    assert "the whole model takes 2 against 1 ms" in str(pyops.conversion_report(converted))
    assert_same(converted, model, images())


def test_a_model_that_is_fastest_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, last, first)
    converted = pyops.convert(Net().double(), example_inputs=images())
    assert fused_in(converted) == fused_in(pyops.convert(Net().double()))
    assert "kept torch" not in actions_of(converted).values()


def test_a_chain_is_one_part_while_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [conv(), nn.ReLU(), nn.Flatten(), nn.Linear(546, 5), nn.ReLU(), nn.Linear(5, 4)]
    model = nn.Sequential(*layers).double()
    monkeypatch.setattr(measure, "_SHORT_CHAIN", 1e9)
    counts = pretend(monkeypatch, last, lambda count: 1)
    converted = pyops.convert(copy.deepcopy(model), example_inputs=images())
    assert counts == [2, 3]
    assert set(actions_of(converted).values()) == {"kept torch", "left"}
    assert_same(converted, model, images())
    monkeypatch.setattr(measure, "_SHORT_CHAIN", 0.0)
    counts.clear()
    pyops.convert(model, example_inputs=images())
    assert counts == [4, 1, 4, 2, 3]  # the links, one of which is Flatten, and the model


@pytest.mark.parametrize("mode", [True, False])
def test_measuring_leaves_nothing_behind(mode: bool) -> None:
    model = nn.Sequential(Net(), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 4)).double().train(mode)
    x = images()
    model(x).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    tensors = [*model.buffers(), *model.parameters(), *gradients, x]
    before = [(t, t.detach().clone(), t._version) for t in tensors if t is not None]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    pyops.convert(model, example_inputs=x, seconds=0.05)
    for tensor, value, version in before:
        assert torch.equal(tensor, value)
        assert tensor._version == version
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(a is b for a, b in zip([*model.buffers(), *model.parameters()], tensors, strict=False))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_an_input_that_forward_changes_in_place_is_a_copy() -> None:
    x = images().detach()
    before = x.clone()
    pyops.convert(nn.Sequential(nn.ReLU(inplace=True), conv()).double(), example_inputs=x, seconds=0.0)
    assert torch.equal(x, before)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        return {"result": (self.layer(x) * scale, self.layer(x + 1)), "size": 4}


@pytest.mark.parametrize("as_mapping", [True, False])
def test_inputs_by_place_and_by_name(as_mapping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, last, lambda count: 1)
    given = {"x": torch.randn(3, 5), "scale": torch.randn(4)}
    model = pyops.convert(TwoInputs(), example_inputs=given if as_mapping else tuple(given.values()))
    (entry,) = pyops.conversion_report(model)
    assert (entry.name, entry.action) == ("layer", "kept torch")
    assert entry.cost is not None
    assert entry.cost.flops == 2 * (2 * 3 * 5 * 4) * 2  # no gradient of x


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="lazy layers"):
        pyops.convert(nn.Sequential(nn.LazyLinear(3)), example_inputs=torch.randn(2, 5))


def test_what_was_kept_stays_kept_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, last, lambda count: 1)
    model = pyops.convert(block(), example_inputs=images())
    for later in (pyops.convert(model), copy.deepcopy(model)):
        assert set(actions_of(later).values()) == {"kept torch"}
    pretend(monkeypatch, first, first)
    assert fused_in(pyops.convert(model, example_inputs=images())) == ["0 + 1 + 2"]
    pretend(monkeypatch, last, lambda count: 1)
    pyops.revert(pyops.convert(model, example_inputs=images()))
    assert "kept torch" not in actions_of(model).values()
    assert fused_in(pyops.convert(model)) == ["0 + 1 + 2"]


def test_what_torch_cannot_do_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> torch.Tensor:
        raise NotImplementedError("not for this dtype")

    counts = pretend(monkeypatch, last, first)
    model = nn.Sequential(nn.Softmax(1)).double()
    # Not on the class: what is put there later is meant to run in a converted model, too.
    monkeypatch.setattr(Member, "as_written", property(lambda _: unsupported))
    monkeypatch.setattr(measure, "flops_and_bytes", lambda *_: (0, 0))
    pyops.convert(model, example_inputs=images())
    assert counts == [1, 2]
    assert actions_of(model) == {"0": "replaced"}


@pytest.mark.parametrize("short_chain", [0.0, 1e9])
@pytest.mark.parametrize("mode", [True, False])
def test_the_report_tells_costs(mode: bool, short_chain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SHORT_CHAIN", short_chain)
    model = Net().train(mode)
    x = torch.randn(3, 3, 14, 13)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(mode):
        y = model(x)
        if mode:
            y.sum().backward()
    converted = pyops.convert(model, example_inputs=x, seconds=1e6)  # of every part, however busy
    report = pyops.conversion_report(converted)
    costs = [entry.cost for entry in report if entry.cost is not None]
    assert sum(cost.flops for cost in costs) == counter.get_total_flops()
    assert all(cost.bytes > 0 and cost.now > 0 and cost.before > 0 for cost in costs)
    assert report.columns == ("module", "class", "what", "GFLOP", "MB", "ms", "saved ms", "how or why")
    assert {len(row) for row in report.rows()} == {8}
    assert "ms in a step" in report.summary()


def test_the_report_in_a_notebook() -> None:
    html = pyops.conversion_report(pyops.convert(block()))._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr") == 5
    assert "0 + 1 + 2" in html
    html = Report([Entry("a<b", "C", "left", "x & y")])._repr_html_()
    assert "a&lt;b" in html
    assert "x &amp; y" in html


def test_seconds_are_measured_in_turns() -> None:
    calls: list[int] = []

    def run(i: int) -> float:
        calls.append(i)
        return 1.0 + i

    assert measure.seconds_of([lambda: run(0), lambda: run(1)], 0.0) == [[1.0] * 3, [2.0] * 3]
    assert calls == [0, 1] * 4
    assert measure.seconds_of([lambda: 0.0001], 100.0) == [pytest.approx([0.0001] * 9)]
