"""The building blocks of the course notes, with pyops modules inside: written with them, and converted.

Own blocks and Sequentials, nesting, fixed weights, control flow, own layers, shared parameters, lazy shapes,
rules of initialisation, files. Each must compute what the same block of torch's layers does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops.convert.swap import computing_type


class MLP(nn.Module):
    """A block with a function in its forward."""

    def __init__(self, layers: ModuleType) -> None:
        super().__init__()
        self.hidden = layers.Linear(20, 64)
        self.out = layers.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.relu(self.hidden(x)))


class MySequential(nn.Module):
    """A Sequential by hand: blocks go straight into ``_modules``."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        for i, block in enumerate(blocks):
            self._modules[str(i)] = block

    def forward(self, x: Tensor) -> Tensor:
        for block in self._modules.values():
            x = block(x)
        return x


class FixedHiddenMLP(nn.Module):
    """A weight that nobody trains, one layer used twice, and a loop that depends on values."""

    def __init__(self, layers: ModuleType) -> None:
        super().__init__()
        self.rand_weight = torch.rand(20, 20)
        self.linear = layers.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        x = nn.functional.relu(torch.mm(x, self.rand_weight) + 1)
        x = self.linear(x)
        while x.abs().sum() > 1:
            x = x / 2
        return x.sum()


class FixedWeightMLP(nn.Module):
    """The same without the loop, which a tracer can follow."""

    def __init__(self, layers: ModuleType) -> None:
        super().__init__()
        self.register_buffer("rand_weight", torch.rand(20, 20))
        self.linear = layers.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.linear(x))
        return self.linear(nn.functional.relu(x @ self.rand_weight + 1))


class NestMLP(nn.Module):
    def __init__(self, layers: ModuleType) -> None:
        super().__init__()
        self.net = layers.Sequential(
            layers.Linear(20, 64), layers.ReLU(), layers.Linear(64, 32), layers.ReLU()
        )
        self.linear = layers.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.net(x))


class CentredLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class MyDense(nn.Module):
    """An own layer with parameters."""

    def __init__(self, in_units: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_units, units) * 0.1)
        self.bias = nn.Parameter(torch.randn(units))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(torch.matmul(x, self.weight) + self.bias)


def chimera(layers: ModuleType) -> nn.Module:
    return layers.Sequential(NestMLP(layers), layers.Linear(16, 20), FixedHiddenMLP(layers))


def block_of_blocks(layers: ModuleType) -> nn.Module:
    net = layers.Sequential()
    for i in range(3):
        block = layers.Sequential(layers.Linear(20, 8), layers.ReLU(), layers.Linear(8, 20), layers.ReLU())
        net.add_module(f"block {i}", block)
    return layers.Sequential(net, layers.Linear(20, 1))


def shared(layers: ModuleType) -> nn.Module:
    layer = layers.Linear(20, 20)
    return layers.Sequential(layer, layers.ReLU(), layer, layers.ReLU(), layers.Linear(20, 1))


BLOCKS: dict[str, Callable[[ModuleType], nn.Module]] = {
    "mlp": MLP,
    "own sequential": lambda layers: MySequential(layers.Linear(20, 9), layers.ReLU(), layers.Linear(9, 4)),
    "fixed hidden": FixedHiddenMLP,
    "fixed weight": FixedWeightMLP,
    "nested": NestMLP,
    "chimera": chimera,
    "block of blocks": block_of_blocks,
    "centred": lambda layers: layers.Sequential(layers.Linear(20, 30), CentredLayer(), layers.ReLU()),
    "own layer": lambda layers: layers.Sequential(MyDense(20, 8), layers.Linear(8, 4), MyDense(4, 1)),
    "shared": shared,
}
# What becomes of the plain torch block, given the function that builds one.
WAYS = {
    "written with pyops": lambda build: build(pyops.nn),
    "converted": lambda build: pyops.convert(build(nn)),
    "converted without fusion": lambda build: pyops.convert(build(nn), fuse=False),
    "converted pyops": lambda build: pyops.convert(build(pyops.nn)),
    "converted and back": lambda build: pyops.revert(pyops.convert(build(nn))),
}


def seeded(way: str, build: Callable[[ModuleType], nn.Module]) -> nn.Module:
    """The block built one of the ways, with the same random numbers every time."""
    torch.manual_seed(7)
    return WAYS[way](build)


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients."""
    y = net(x)
    return (y, *torch.autograd.grad(y.square().sum(), list(net.parameters())))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_torchs(name: str, way: str) -> None:
    torch.manual_seed(7)
    wanted = BLOCKS[name](nn)
    found = seeded(way, BLOCKS[name])
    assert [line for line in repr(found).splitlines() if "fused: " not in line] == repr(wanted).splitlines()
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in wanted.named_parameters()]
    assert list(found.state_dict()) == list(wanted.state_dict())
    x = torch.rand(50, 20)
    torch.testing.assert_close(run(found, x), run(wanted, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("mlp", ["hidden + relu"]),
        ("own sequential", ["0 + 1"]),
        ("fixed hidden", []),
        ("fixed weight", ["linear + tanh"]),
        ("chimera", ["0 + 1", "2 + 3"]),
        ("block of blocks", ["0 + 1", "2 + 3"] * 3),
        ("centred", []),
        ("shared", ["0 + 1", "0 + 3"]),
    ],
)
def test_what_of_a_block_is_fused(name: str, groups: list[str]) -> None:
    report = pyops.conversion_report(pyops.convert(BLOCKS[name](nn)))
    assert [entry.detail for entry in report if entry.action == "fused"] == groups
    untraced = [entry.module for entry in report if entry.action == "not traced"]
    assert untraced == (["FixedHiddenMLP"] if name in ("fixed hidden", "chimera") else [])


@pytest.mark.parametrize("way", WAYS)
def test_training_ends_where_torchs_does(way: str) -> None:
    def train(net: nn.Module) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        torch.manual_seed(8)
        for _ in range(10):
            optimizer.zero_grad()
            x = torch.rand(40, 20)
            (net(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
        return net.state_dict()

    torch.manual_seed(7)
    wanted = train(block_of_blocks(nn))
    torch.testing.assert_close(train(seeded(way, block_of_blocks)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_found_by_index_name_and_dict(way: str) -> None:
    net = seeded(way, block_of_blocks)
    layer = net[0][1][2]
    assert layer.bias is net.get_parameter("0.block 1.2.bias")
    assert torch.equal(net.state_dict()["0.block 1.2.bias"], layer.bias)
    assert layer.weight.grad is None
    net(torch.rand(3, 20)).sum().backward()
    assert layer.weight.grad.shape == (20, 8)


@pytest.mark.parametrize("way", WAYS)
def test_shared_layers_are_one(way: str) -> None:
    net = seeded(way, shared)
    assert net[0] is net[2]
    assert len(list(net.parameters())) == 4
    before = net(torch.ones(1, 20))
    with torch.no_grad():
        net[0].weight[0, 0] = 100
    assert net[2].weight[0, 0] == 100
    assert not torch.equal(net(torch.ones(1, 20)), before)
    clone = copy.deepcopy(net)
    assert clone[0] is clone[2]
    assert clone[0] is not net[0]


@pytest.mark.parametrize("way", WAYS)
def test_lazy_shapes(way: str) -> None:
    def build(layers: ModuleType) -> nn.Module:
        return layers.Sequential(
            layers.LazyConv2d(4, 3), layers.ReLU(), layers.Flatten(), layers.LazyLinear(10), layers.Tanh()
        )

    x = torch.rand(2, 3, 8, 7)
    outputs = []
    for net in (seeded(way, build), build(nn)):
        assert isinstance(net[3].weight, nn.UninitializedParameter)
        torch.manual_seed(9)
        outputs.append(net(x))
        assert net[3].weight.shape == (10, 120)
        outputs.append(net(x))
    torch.testing.assert_close(outputs[:2], outputs[2:])


def test_lazy_layers_become_the_librarys_own() -> None:
    for way, library in (
        ("written with pyops", pyops.nn),
        ("converted", pyops.nn),
        ("converted and back", nn),
    ):
        net = seeded(way, lambda layers: layers.Sequential(layers.LazyLinear(5), layers.ReLU()))
        net(torch.rand(2, 3))
        assert computing_type(net[0]) is library.Linear


RULES: dict[str, Callable[[nn.Module], None]] = {
    "normal": lambda layer: nn.init.normal_(layer.weight, std=0.01),
    "constant": lambda layer: nn.init.constant_(layer.weight, 0.1),
    "xavier": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "he": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "zeros": lambda layer: nn.init.zeros_(layer.bias),
    "own": lambda layer: nn.init.uniform_(layer.weight, -10, 10).data.mul_(layer.weight.data.abs() >= 5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_of_initialisation(rule: str, way: str) -> None:
    """``apply`` reaches every layer, and ``isinstance`` knows it; the next call uses the new values."""

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            RULES[rule](module)

    found, wanted = seeded(way, block_of_blocks), seeded("converted and back", block_of_blocks)
    x = torch.rand(4, 20)
    found(x)
    for net in (found, wanted):
        torch.manual_seed(3)
        net.apply(initialise)
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(found(x), wanted(x), rtol=1e-4, atol=1e-4)


def test_different_rules_for_different_layers() -> None:
    net = seeded("converted", block_of_blocks)
    net[0][0].apply(lambda m: nn.init.constant_(m.weight, 1) if isinstance(m, nn.Linear) else None)
    net[1].apply(lambda m: nn.init.constant_(m.weight, 42))
    assert torch.equal(net[0][0][0].weight, torch.ones(8, 20))
    assert not torch.equal(net[0][1][0].weight, torch.ones(8, 20))
    assert torch.equal(net[1].weight, torch.full((1, 20), 42.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BLOCKS)
def test_save_and_load(name: str, way: str, tmp_path: Path) -> None:
    """Parameters go from any form of a block to any other; a whole block comes back as it was."""
    net = seeded(way, BLOCKS[name])
    x = torch.rand(3, 20)
    torch.save(net.state_dict(), tmp_path / "parameters")
    for other_way in WAYS:
        torch.manual_seed(7)
        fresh = seeded(other_way, BLOCKS[name])
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        fresh.load_state_dict(torch.load(tmp_path / "parameters"))
        torch.testing.assert_close(fresh(x), net(x), rtol=1e-4, atol=1e-5)
    torch.save(net, tmp_path / "whole")
    loaded = torch.load(tmp_path / "whole", weights_only=False)
    assert pyops.conversion_report(loaded) == pyops.conversion_report(net)
    torch.testing.assert_close(loaded(x), net(x))
