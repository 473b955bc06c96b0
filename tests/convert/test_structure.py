"""pyops.convert: models of every shape, changed, and of modules that pyops does not have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops.convert.plan import Plan
from pyops.convert.swap import computing_type
from tests.suite.conversion import Net, actions_of, assert_same, check, conv, fused_in, images


def test_parts_of_a_sequential_compute_what_they_did() -> None:
    model = nn.Sequential(
        conv(), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(126, 5), nn.ReLU()
    ).double()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    assert len(converted) == 6
    assert [name for name, _ in converted.named_modules()] == [name for name, _ in model.named_modules()]
    for stop in range(1, 7):
        torch.testing.assert_close(converted[:stop](x), model[:stop](x))
    torch.testing.assert_close(converted[1:3](x), model[1:3](x))
    torch.testing.assert_close(converted[1](converted[0](x)), model[1](model[0](x)))
    y = x
    for layer in converted:
        y = layer(y)
    torch.testing.assert_close(y, model(x))
    tail = pyops.convert(converted[:2])
    assert fused_in(tail) == ["0 + 1"]
    torch.testing.assert_close(tail(x), model[:2](x))


EDITS = {
    "append": lambda m: m.append(nn.Sigmoid()),
    "insert": lambda m: m.insert(1, nn.Sigmoid()),
    "remove": lambda m: m.__delitem__(1),
    "replace": lambda m: m.__setitem__(1, nn.Sigmoid()),
    "replace a convolution": lambda m: m.__setitem__(0, copy.deepcopy(m[0])),
}


@pytest.mark.parametrize("edit", EDITS)
def test_modules_added_and_removed_after_the_conversion(edit: str) -> None:
    model = nn.Sequential(conv(), nn.Tanh(), conv(), nn.ReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    for m in (model, converted):
        EDITS[edit](m)
    x = images()
    assert "convert again" in str(pyops.conversion_report(converted))
    torch.testing.assert_close(converted(x), model(x))
    assert "fused anew" in str(pyops.conversion_report(converted))
    assert len(fused_in(pyops.convert(converted))) == (1 if edit == "remove" else 2)
    torch.testing.assert_close(converted(x), model(x))


def test_another_head_as_in_fine_tuning() -> None:
    model = pyops.convert(Net())
    model.out = nn.Linear(11, 9)
    x = torch.randn(2, 3, 14, 13)
    assert model(x).shape == (2, 9)
    assert actions_of(model)["out"] == "left"
    assert fused_in(pyops.convert(model))[0] == "hidden + relu + dropout"
    torch.testing.assert_close(model(x), pyops.revert(model)(x))


def test_shared_modules_and_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(), conv()
            self.second.weight = self.first.weight
            self.again = self.first
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.again(self.act(self.second(self.act(self.first(x))))))

    converted = check(Shared(), images())
    assert fused_in(converted) == ["first + act", "second + act"]
    assert converted.again is converted.first
    assert converted.second.weight is converted.first.weight
    assert sum(p.numel() for p in converted.parameters()) == 81 + 6


def test_modules_in_lists_and_dicts() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([conv(), conv()])
            self.acts = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})

        def forward(self, x: Tensor) -> Tensor:
            for layer, act in zip(self.convs, self.acts.values(), strict=False):
                x = act(layer(x))
            return torch.cat([x, *(layer(x) for layer in self.convs)], 1)

    model = Branches().double()
    converted = check(model, images(), fused=2)
    for m in (model, converted):
        m.convs[1] = nn.Conv2d(3, 3, 1, dtype=torch.float64)
        m.convs[1].load_state_dict(model.convs[1].state_dict())
    x = images()
    torch.testing.assert_close(converted(x), model(x))


class ScaledConv2d(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses_of_torchs_modules_are_left() -> None:
    model = nn.Sequential(ScaledConv2d(3, 3, 1), nn.ReLU())
    converted = check(model, images(), fused=0)
    assert type(converted[0]) is ScaledConv2d
    assert "a subclass of torch.nn.Conv2d" in str(pyops.conversion_report(converted))


def test_a_subclass_of_sequential_with_a_forward_of_its_own() -> None:
    class Around(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + input

    converted = check(Around(conv(), nn.BatchNorm2d(3)), images(), fused=1)
    assert fused_in(converted) == ["0 + 1 + add"]


def test_modules_that_pyops_does_not_have_are_left_and_reported() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU()))
    model = nn.Sequential(quantised, scripted, nn.Bilinear(5, 5, 3), nn.LocalResponseNorm(2))
    kinds = [type(m) for m in model]
    report = str(pyops.conversion_report(pyops.convert(model)))
    assert [type(m) for m in model] == kinds
    assert report.count("no kernel") == 4
    assert "torch.jit.script" in report
    assert model[1](model[0](torch.randn(2, 4))).shape == (2, 5)


def test_transformers_keep_working() -> None:
    """Their layers call functions on the weights of their children, and leave them out in evaluation."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    converted = check(model, x)
    assert computing_type(converted.linear1) is pyops.nn.Linear
    assert actions_of(converted)["self_attn.out_proj"] == "left"


def test_parametrised_weights() -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(546, 6), nn.Tanh())
        nn.utils.parametrizations.weight_norm(model[0])
        nn.utils.parametrizations.orthogonal(model[3])
        return model.double()

    model, converted = make(), pyops.convert(make())
    assert list(converted.state_dict()) == list(model.state_dict())
    assert fused_in(converted) == ["0 + 1", "3 + 4"]
    assert_same(converted, model, images())
    x = images()
    torch.testing.assert_close(copy.deepcopy(converted)(x), model(x))
    nn.utils.parametrize.remove_parametrizations(converted[0], "weight")
    assert computing_type(converted[0]) is pyops.nn.Conv2d
    torch.testing.assert_close(converted(x), model(x))
    pyops.revert(converted)
    assert type(converted[3]).__bases__ == (nn.Linear,)
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_makes() -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(13, 6)), nn.Tanh(), nn.utils.spectral_norm(conv())
        ).double()

    def forward(model: nn.Module) -> Tensor:
        torch.manual_seed(2)
        model.train()
        return model(torch.randn(2, 3, 4, 13, dtype=torch.float64))

    model, converted = make(), pyops.convert(make())
    torch.testing.assert_close(forward(converted), forward(model))
    assert computing_type(converted[0]) is pyops.nn.Linear
    assert not fused_in(converted)


def test_lazy_modules_fuse_after_their_first_call(plans_used: list[Plan]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.Tanh())
    torch.manual_seed(1)
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(2, 3, 6, 5)
    outputs = []
    for m in (converted, model):
        torch.manual_seed(2)
        outputs.append(m(x))
    torch.testing.assert_close(*outputs)
    assert not plans_used
    assert computing_type(converted[0]) is pyops.nn.Conv2d
    assert computing_type(converted[3]) is pyops.nn.Linear
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 1
    assert fused_in(converted) == ["0 + 1", "3 + 4"]
    pyops.revert(converted)
    assert type(converted[0]) is nn.Conv2d


def test_synchronised_batch_normalisation() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU()))
    converted = pyops.convert(copy.deepcopy(model))
    assert type(converted[1]) is pyops.nn.SyncBatchNorm
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))
    assert type(pyops.revert(converted)[1]) is nn.SyncBatchNorm


def test_pyops_modules_with_an_activation_of_their_own() -> None:
    model = nn.Sequential(pyops.nn.Conv2d(3, 3, 1, activation="tanh"), nn.ReLU())
    assert not fused_in(check(model, images()))


def test_classes_that_list_their_subclasses_hear_nothing() -> None:
    known: list[str] = []

    class Listed(nn.Module):
        def __init_subclass__(cls) -> None:
            known.append(cls.__qualname__)

    class Member(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    before = list(known)
    check(Member(), images(), fused=1)
    assert known == before
