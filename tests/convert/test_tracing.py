"""pyops.convert: forwards that cannot be looked into, or that change what they do."""

from __future__ import annotations

import copy
import gc
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops.convert.plan import Plan
from tests.suite.conversion import Calls, actions_of, check, conv, fused_in, images, refuse_by_value


class Asks(Calls):
    """Its forward is of this file, as the functions are that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def refuse_by_random(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() * random.random()


def refuse_by_noise(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() + torch.rand(())


def refuse_by_state(module: nn.Module, x: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1
    return module.conv(x).relu() * module.calls


def refuse_by_no_grad(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = module.conv(x).relu()
    return y + x


def refuse_by_autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module.conv(x).relu()


def refuse_by_checkpoint(module: nn.Module, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(lambda y: module.conv(y).relu(), x, use_reentrant=False)


def refuse_by_grad_mode(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() if torch.is_grad_enabled() else x


@pytest.mark.parametrize("name", [name for name in globals() if name.startswith("refuse_by")])
def test_what_cannot_be_traced_runs_layer_by_layer(name: str) -> None:
    model = Asks(globals()[name], conv=conv())
    converted = pyops.convert(copy.deepcopy(model))
    assert actions_of(converted) == {"": "not traced", "conv": "replaced"}
    x = torch.randn(2, 3, 6, 5)
    for grad in (True, False):
        outputs = []
        for m in (converted, model):
            random.seed(0)
            torch.manual_seed(0)
            with torch.set_grad_enabled(grad):
                outputs.append(m(x))
        torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)
        assert outputs[0].requires_grad == outputs[1].requires_grad


def test_an_untraceable_part_does_not_keep_others_from_fusing() -> None:
    inner = Calls(refuse_by_value, conv=conv())
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), inner, conv(), nn.BatchNorm2d(3))
    converted = check(model, images(), fused=2)
    assert actions_of(converted)["1"] == "not traced"
    assert "control flow" in str(pyops.conversion_report(converted))


def test_type_of_the_input_may_be_asked_for() -> None:
    """As densely connected networks do, which take a tensor or several."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(x, torch.Tensor) or not torch.is_tensor(x):
            x = torch.cat(x, 1)
        return module.conv(x).relu()

    converted = check(Asks(forward, conv=conv()), images(), fused=1)
    x = images()
    torch.testing.assert_close(converted([x[:, :1], x[:, 1:]]), converted(x))


class Options(nn.Module):
    """A forward with optional and named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, residual: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = self.conv(x).relu() * scale
        return y if residual is None else y + residual


def test_optional_arguments(plans_used: list[Plan]) -> None:
    model = Options().double()
    converted = pyops.convert(copy.deepcopy(model))
    x, r = images(), images()
    calls = [((x,), {}), ((x, r), {}), ((x,), {"residual": r}), ((x,), {"scale": 2.0}), ((), {"x": x})]
    for arguments, named in calls:
        torch.testing.assert_close(converted(*arguments, **named), model(*arguments, **named))
    assert len(plans_used) == 1


def test_modes_of_single_modules_count(plans_used: list[Plan]) -> None:
    """A part in evaluation mode inside a model in training, as in frozen batch normalisation."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(546, 4)).double()
    converted = pyops.convert(copy.deepcopy(model))
    for m in (model, converted):
        m.train()
        m[1].eval()
    x = images()
    for m in (model, converted):
        m[1].requires_grad_(False)
    outputs = [m(x) for m in (converted, model)]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(converted[1].running_mean, model[1].running_mean)
    assert len(plans_used) == 1


class Switch(nn.Module):
    """A forward that depends on an attribute and on its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.extra = "relu"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.relu() if self.extra == "relu" else x.sigmoid()
        return x if self.training else x * 2


def test_attributes_that_forward_reads_are_watched(plans_used: list[Plan]) -> None:
    model = Switch().double()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    for mode in (True, False):
        torch.testing.assert_close(converted.train(mode)(x), model.train(mode)(x))
    assert len(plans_used) == 2
    converted.extra = model.extra = "sigmoid"
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 3
    assert plans_used[1] is not plans_used[2]


SWITCH = True


def test_global_constants_that_forward_reads_are_watched(
    plans_used: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu() if SWITCH else x

    converted = pyops.convert(Reader())
    x = torch.randn(1, 3, 4, 5)
    assert converted(x) is not x
    assert len(plans_used) == 1
    monkeypatch.setitem(globals(), "SWITCH", False)
    assert converted(x) is x


@dataclass(frozen=True)
class Unhashable:
    """Has a hash that raises."""

    values: dict


SOMETHING = Unhashable({})


def test_any_global_variable_may_be_near() -> None:
    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    assert "SOMETHING" in Near.forward.__globals__
    check(Near(), images(), fused=1)


def test_an_activation_whose_option_changes(plans_used: list[Plan]) -> None:
    model = nn.Sequential(conv(), nn.LeakyReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    converted[1].negative_slope = model[1].negative_slope = 0.5
    x = images()
    torch.testing.assert_close(converted(x), model(x))
    assert not plans_used


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("before", [True, False])
def test_hooks_see_what_they_saw(register: str, which: int, before: bool) -> None:
    def run(convert: bool) -> list:
        torch.manual_seed(0)
        model = nn.Sequential(conv(), nn.Sigmoid(), nn.Conv2d(3, 3, 1), nn.Tanh()).double()
        seen: list[object] = []
        if convert and not before:
            pyops.convert(model)
        handle = getattr(model[which], register)(lambda module, *tensors: seen.extend(tensors))
        if convert and before:
            pyops.convert(model)
            assert fused_in(model) == ["2 + 3"]
            assert f"a hook wants to see {which}" in str(pyops.conversion_report(model)).replace("_", "")
        elif convert:
            assert not fused_in(model)
            assert "a hook was added" in str(pyops.conversion_report(model))
        seen.append(model(images()))
        seen[-1].sum().backward()
        handle.remove()
        if convert and not before:
            assert fused_in(model) == ["0 + 1", "2 + 3"]
        return seen

    torch.testing.assert_close(run(convert=True), run(convert=False))


def test_hooks_of_a_part_that_was_looked_into() -> None:
    """A group that crosses into a Sequential runs there without calling it, unless somebody listens."""
    model = Calls(
        lambda m, x: nn.functional.relu(m.body(x) + x), body=nn.Sequential(conv(), nn.BatchNorm2d(3))
    ).double()
    converted = pyops.convert(copy.deepcopy(model))
    assert fused_in(converted) == ["body.0 + body.1 + add + relu", "0 + 1"]
    seen: list[Tensor] = []
    handle = converted.body.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = images()
    torch.testing.assert_close(converted(x), model(x))
    assert len(seen) == 1
    pyops.convert(converted)
    assert fused_in(converted) == ["0 + 1"]
    handle.remove()


_collections = 0


def test_what_a_garbage_collection_calls_is_no_part_of_forward() -> None:
    """Where hypothesis had run, whose callback counts in a variable of its own, nothing was fused."""

    def count(phase: str, info: dict[str, int]) -> None:
        global _collections
        _collections += 1

    thresholds = gc.get_threshold()
    gc.callbacks.append(count)
    gc.set_threshold(1)
    try:
        model = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*thresholds)
    assert _collections
    assert gc.isenabled()
    assert fused_in(model) == ["0 + 1"]


def test_global_hooks() -> None:
    model = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        model(torch.randn(1, 3, 4, 4))
    finally:
        hook.remove()
    assert seen == ["Conv2d", "ReLU", "Sequential"]
