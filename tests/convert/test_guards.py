"""pyops.convert: what a fused forward relied on may change later, or be a module's own from the start."""

from __future__ import annotations

import copy
import gc
import os
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops.convert.plan import Plan
from tests.suite.conversion import Calls, actions_of, conv, fused_in, images

#: A model of these parts, and a change of it after the conversion.
LATER: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[nn.Module], object]]] = {
    "padding_mode": (
        lambda: [conv(), nn.MaxPool2d(2)],
        lambda m: setattr(m[0], "padding_mode", "circular"),
    ),
    "padding_mode with batch_norm": (
        lambda: [conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)],
        lambda m: setattr(m[0], "padding_mode", "reflect"),
    ),
    "return_indices": (
        lambda: [conv(), nn.ReLU(), nn.MaxPool2d(2)],
        lambda m: setattr(m[2], "return_indices", True),
    ),
    "forward of a member": (
        lambda: [conv(), nn.ReLU()],
        lambda m: setattr(m[0], "forward", lambda x: x + 1),
    ),
    "forward of an activation": (
        lambda: [nn.Flatten(), nn.Linear(546, 5), nn.ReLU()],
        lambda m: setattr(m[2], "forward", torch.sigmoid),
    ),
    "forward of a part": (
        lambda: [nn.Sequential(conv()), nn.ReLU()],
        lambda m: setattr(m[0], "forward", lambda x: x * 2),
    ),
    "forward around its own": (lambda: [conv(), nn.ReLU()], lambda m: wrap(m[0])),
    "class": (lambda: [conv(), nn.ReLU()], lambda m: setattr(m[1], "__class__", nn.Tanh)),
    "_conv_forward": (lambda: [conv(), nn.ReLU()], lambda m: setattr(m[0], "_conv_forward", tiled(m[0]))),
    "inplace": (
        lambda: [conv(), nn.BatchNorm2d(3), nn.ReLU6(), nn.Dropout(0.0)],
        lambda m: setattr(m[2], "inplace", True),
    ),
}


def wrap(module: nn.Module) -> None:
    """As tools for offloading do."""
    own = module.forward
    module.forward = lambda *inputs: own(*inputs) * 3


def tiled(layer: nn.Conv2d) -> object:
    """As it is done to make images that can be tiled."""

    def forward(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        around = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode="circular")
        return nn.functional.conv2d(around, weight, bias, self.stride, 0, self.dilation, self.groups)

    return types.MethodType(forward, layer)


def pair_of(parts: list[nn.Module]) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(*parts).double()
    return pyops.convert(copy.deepcopy(model)), model


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("mode", [True, False])
def test_changes_of_a_layer_after_the_conversion(change: str, mode: bool) -> None:
    make, apply = LATER[change]
    models = pair_of(make())
    assert fused_in(models[0])
    x = images().detach()
    for model in models:
        model.train(mode)
        model(x)
        apply(model)
    torch.testing.assert_close(*(model(x) for model in models))
    with torch.no_grad():
        torch.testing.assert_close(*(model(x) for model in models))


@pytest.mark.parametrize("change", ["forward of a member", "forward around its own", "_conv_forward"])
def test_layers_with_a_forward_of_their_own_stay_as_they_are(change: str) -> None:
    model = nn.Sequential(conv(), nn.ReLU()).double()
    LATER[change][1](model)
    x = images().detach()
    wanted = model(x)
    pyops.convert(model)
    assert type(model[0]) is nn.Conv2d
    assert actions_of(model)["0"] == "left"
    assert not fused_in(model)
    torch.testing.assert_close(model(x), wanted)


def test_a_model_with_a_forward_of_its_own_keeps_it() -> None:
    model = nn.Sequential(conv(), nn.ReLU()).double()
    wrap(model)
    x = images().detach()
    wanted = model(x)
    torch.testing.assert_close(pyops.convert(model)(x), wanted)
    assert actions_of(model)[""] == "not traced"


def test_an_attribute_by_the_name_of_an_option_is_the_models_own() -> None:
    """torch's layers have no activation: what a model calls so means something else."""
    layer = nn.Linear(546, 5)
    layer.activation = nn.Tanh()
    found, wanted = pair_of([nn.Flatten(), layer, nn.ReLU()])
    assert fused_in(found)
    x = images().detach()
    torch.testing.assert_close(found(x), wanted(x))
    torch.testing.assert_close(found[1](x.flatten(1)), wanted[1](x.flatten(1)))


def test_an_activation_given_to_a_layer_of_pyops_after_the_conversion() -> None:
    found = pyops.convert(nn.Sequential(nn.Flatten(), pyops.nn.Linear(546, 5), nn.ReLU()).double())
    assert fused_in(found)
    x = images().detach()
    wanted = nn.functional.linear(x.flatten(1), found[1].weight, found[1].bias).tanh().relu()
    found[1].activation = "tanh"
    torch.testing.assert_close(found(x), wanted)


def test_a_class_that_gets_another_forward_after_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [pair_of([conv(), nn.ReLU()])[0], pyops.convert(nn.Sequential(nn.Softmax(1)).double())]
    x = images().detach()
    wanted = [model[0](x) for model in models]
    for model in models:
        model(x)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: self._conv_forward(x, self.weight, None) * 2)
    monkeypatch.setattr(nn.Softmax, "forward", lambda self, x: x.relu())
    bias = models[0][0].bias.view(-1, 1, 1)
    torch.testing.assert_close(models[0](x), ((wanted[0] - bias) * 2).relu())
    torch.testing.assert_close(models[1](x), x.relu())


def double(x: Tensor) -> Tensor:
    return x * SCALE if is_fast() else -x


def is_fast() -> bool:
    return SETTINGS["fast"] and OPTIONS.fast()


class Options:
    level = 1

    def __init__(self) -> None:
        self.chosen = True

    def fast(self) -> bool:
        return self.chosen and self.level > 0


SCALE = 2.0
SETTINGS = {"fast": True}
OPTIONS = Options()


class Helped(nn.Module):
    """A forward whose result depends on functions, classes, objects and constants around it."""

    switch = True

    def __init__(self, factor: Callable[[], float]) -> None:
        super().__init__()
        self.conv = conv()
        self.__dict__["factor"] = factor

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    @property
    def doubled(self) -> bool:
        return type(self).switch

    @staticmethod
    def shift(x: Tensor) -> Tensor:
        return x + 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.shift(self.body(x))
        return double(x) * self.factor() if self.doubled else x - 1


CONTEXTS: dict[str, Callable[[pytest.MonkeyPatch, nn.Module], object]] = {
    "global of a helper": lambda patch, m: patch.setitem(globals(), "SCALE", 3.0),
    "helper": lambda patch, m: patch.setitem(globals(), "double", lambda x: x + 7),
    "helper of a helper": lambda patch, m: patch.setitem(globals(), "is_fast", lambda: False),
    "dict": lambda patch, m: patch.setitem(SETTINGS, "fast", False),
    "object": lambda patch, m: patch.setattr(OPTIONS, "chosen", False),
    "class of an object": lambda patch, m: patch.setattr(Options, "level", 0),
    "method of an object": lambda patch, m: patch.setattr(Options, "fast", lambda self: False),
    "other object": lambda patch, m: patch.setitem(globals(), "OPTIONS", types.SimpleNamespace(fast=bool)),
    "class attribute": lambda patch, m: patch.setattr(Helped, "switch", False),
    "class attribute in the instance": lambda patch, m: patch.setattr(Helped, "doubled", False),
    "method": lambda patch, m: patch.setattr(Helped, "body", lambda self, x: self.conv(x)),
    "method of the instance": lambda patch, m: m.__dict__.__setitem__("body", lambda x: m.conv(x).tanh()),
    "static method": lambda patch, m: patch.setattr(Helped, "shift", staticmethod(lambda x: x - 5)),
    "forward": lambda patch, m: patch.setattr(Helped, "forward", lambda self, x: self.conv(x)),
    "closure": lambda patch, m: m.factor(0.25),
}


def factor() -> Callable[..., float]:
    value = 0.5

    def get(new: float | None = None) -> float:
        nonlocal value
        if new is not None:
            value = new
        return value

    return get


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_around_a_forward_may_change(
    context: str, monkeypatch: pytest.MonkeyPatch, plans_used: list[Plan]
) -> None:
    model = Helped(factor()).double()
    converted = pyops.convert(copy.deepcopy(model))
    converted.__dict__["factor"] = model.factor
    pyops.convert(converted)
    x = images().detach()
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 1, str(pyops.conversion_report(converted))
    for m in (converted, model) if "instance" in context else (model,):
        CONTEXTS[context](monkeypatch, m)
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_report_says_what_has_changed(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on to say "fused", and the model was slower."""
    model = pyops.convert(Helped(factor()))
    assert fused_in(model) == ["conv + relu"]
    assert "fused: conv + relu" in repr(model)
    CONTEXTS[context](monkeypatch, model)
    (entry,) = (entry for entry in pyops.conversion_report(model) if entry.name == "")
    assert entry.action == "not fused"
    assert entry.detail.startswith("conv + relu: ")
    assert "convert again" in entry.detail
    assert "fused: " not in repr(model)


def test_converting_again_plans_anew(monkeypatch: pytest.MonkeyPatch, plans_used: list[Plan]) -> None:
    model = pyops.convert(Helped(factor()))
    monkeypatch.setattr(Helped, "switch", False)
    x = torch.randn(2, 3, 6, 5)
    wanted = pyops.revert(copy.deepcopy(model))(x)
    assert not plans_used
    torch.testing.assert_close(pyops.convert(model)(x), wanted)
    assert len(plans_used) == 1
    assert fused_in(model) == ["conv + relu"]


class Asks(Calls):
    """Its forward is of this file, as the functions are that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def asks_for_gradients() -> bool:
    return torch.is_grad_enabled()


COUNT = 0


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def add(self) -> int:
        self.calls += 1
        return self.calls


COUNTS = Counter()


def count() -> int:
    global COUNT
    COUNT += 1
    return COUNT


REFUSED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "mode, by a helper": lambda m, x: m.conv(x).relu() if asks_for_gradients() else x,
    "environment": lambda m, x: m.conv(x).relu() if os.environ.get("PYOPS_TEST_SWITCH") else x,
    "print": lambda m, x: (print("called"), m.conv(x).relu())[1],
    "global variable": lambda m, x: m.conv(x).relu() * count(),
    "object": lambda m, x: m.conv(x).relu() * COUNTS.add(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_would_do_once_is_not_traced(name: str) -> None:
    converted = pyops.convert(Asks(REFUSED[name], conv=conv()))
    assert actions_of(converted) == {"": "not traced", "conv": "replaced"}


def test_the_state_of_torch_distributed_may_change(
    monkeypatch: pytest.MonkeyPatch, plans_used: list[Plan]
) -> None:
    """What is wrapped before the processes join, and asks how many there are."""
    dist = torch.distributed

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        size = dist.get_world_size() if dist.is_initialized() else 1
        return module.conv(x).relu() * size

    model = Asks(forward, conv=conv())
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 1
    for name, value in {"is_initialized": True, "get_rank": 0, "get_world_size": 4}.items():
        monkeypatch.setattr(dist, name, lambda *_, value=value: value)
    torch.testing.assert_close(converted(x), model(x))


def test_a_helper_of_another_file_may_ask_for_the_type(plans_used: list[Plan]) -> None:
    helpers = types.ModuleType("helpers_of_a_test")
    code = "import torch\ndef joined(x): return x if isinstance(x, torch.Tensor) else torch.cat(x, 1)"
    exec(code, vars(helpers))
    model = Asks(lambda m, x: m.conv(helpers.joined(x)).relu(), conv=conv())
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 1
    torch.testing.assert_close(converted([x[:, :1], x[:, 1:]]), model(x))
    assert vars(helpers)["torch"] is torch
    assert "isinstance" not in vars(helpers)


def test_guards_keep_no_model_alive() -> None:
    converted = pyops.convert(Helped(factor()))
    gc.collect()  # what tracing left
    gc.disable()
    try:
        freed = weakref.ref(converted)
        del converted
        assert freed() is None
    finally:
        gc.enable()
