"""pyops.convert: convolutions of rows, and what is fused into them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import pyops


class Block(nn.Module):
    """conv1d, batch norm, addition, activation; conv1d, activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(8, 8, 3, padding=2, dilation=2), nn.BatchNorm1d(8)
        self.second = nn.Conv1d(8, 6, 4, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.relu(self.norm(self.first(x)) + x)))


def _pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Block().double()
    model(torch.randn(4, 8, 90, dtype=torch.float64))
    nn.init.normal_(model.norm.weight)
    return pyops.convert(copy.deepcopy(model)), model


def test_fuses_rows_as_it_does_images() -> None:
    found, wanted = _pair()
    x = torch.randn(4, 8, 90, dtype=torch.float64)
    for mode in (True, False):
        results = []
        for model in (found.train(mode), wanted.train(mode)):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert type(found.first) is nn.Conv1d
    report = str(pyops.conversion_report(found))
    assert "first + norm" in report
    torch.testing.assert_close(found.norm.running_var, wanted.norm.running_var)


def test_folds_the_normalisation_into_the_weights() -> None:
    found, wanted = (model.eval() for model in _pair())
    x = torch.randn(4, 8, 90, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(found(x), wanted(x))
            for model in (found, wanted):
                model.norm.running_mean.add_(1)


def test_an_unbatched_row_and_its_normalisation_are_computed_one_by_one() -> None:
    """BatchNorm1d takes [K, L] for K rows of L features."""
    pair = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()).eval()
    pair[1].running_mean.copy_(torch.arange(8.0))
    converted, x = pyops.convert(copy.deepcopy(pair)), torch.randn(3, 10)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), pair(x))
