"""Models to convert, and what the tests of ``pyops.convert`` share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import pyops


class Residual(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with modules that are used twice and work in place."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        y += x
        return self.relu(y)


class Net(nn.Module):
    """Sequential parts, residual blocks, functions in forward, dropout by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Residual(5, 5), Residual(5, 7, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(7, 11)
        self.out = nn.Linear(11, 4)
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.blocks(self.stem(x))), 1)
        x = nn.functional.dropout(nn.functional.relu(self.hidden(x)), self.p, self.training)
        return self.out(x)


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 3, 14, 13)), dtype=torch.float64, requires_grad=True)


def assert_same(found: nn.Module, wanted: nn.Module, *inputs: Tensor, mode: bool = True) -> None:
    """Equal outputs, gradients and buffers of two modules with equal parameters, in one mode."""
    found.train(mode)
    wanted.train(mode)
    ours, theirs = found(*inputs), wanted(*inputs)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()
    upstream = torch.randn_like(ours)
    leaves = [x for x in inputs if x.requires_grad]
    gradients = [
        torch.autograd.grad(y, [*leaves, *m.parameters()], upstream, allow_unused=True)
        for y, m in ((ours, found), (theirs, wanted))
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(found.named_buffers()), dict(wanted.named_buffers()))


def check(model: nn.Module, *inputs: Tensor, fused: int | None = None) -> nn.Module:
    """Convert a float64 copy of ``model``, compare it with ``model`` in both modes; the copy."""
    model = model.double()
    converted = pyops.convert(copy.deepcopy(model))
    if fused is not None:
        assert len(fused_in(converted)) == fused, str(pyops.conversion_report(converted))
    for mode in (True, False):
        assert_same(converted, copy.deepcopy(model), *inputs, mode=mode)
        converted.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(converted(*inputs), model.eval()(*inputs))
    return converted


def fused_in(model: nn.Module) -> list[str]:
    return [entry.detail for entry in pyops.conversion_report(model) if entry.action == "fused"]


def actions_of(model: nn.Module) -> dict[str, str]:
    return {entry.name: entry.action for entry in pyops.conversion_report(model)}


class Calls(nn.Module):
    """A forward given as a function of (self, x)."""

    def __init__(self, function: object, **modules: nn.Module) -> None:
        super().__init__()
        self.__dict__["function"] = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(out: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(3, out, 3, padding=1, **options)


def refuse_by_value(module: nn.Module, x: Tensor) -> Tensor:
    y = module.conv(x).relu()
    return y if y.sum() > 0 else y * 2
