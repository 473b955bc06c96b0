"""Covariate shift: test inputs have another distribution than training inputs, but the same labelling rule.

Training inputs have density p, test inputs density q. Weighting each training sample by w(x) = q(x) / p(x)
makes the training loss estimate that of the test inputs. A logistic regression that tells test inputs (class
1, without their labels) from training inputs gives the ratio: with as many of both, w(x) = exp(logit(x)).

Here the true border is bent and the classifier straight, so that it has to choose where to be right: training
inputs lie to the left of the bend, most test inputs to its right.

Source: course notes, "Environment and distribution shift"; Shimodaira, Improving predictive inference under
covariate shift, 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyops.nn

from ..files import atomic_write, prepare_folder

_SAMPLES = 4000
_STEPS, _LR = 200, 0.1
#: Larger weights are cut: a few samples would decide everything.
_LARGEST_WEIGHT = 20.0


@dataclass(frozen=True)
class Shifted:
    """Training and test inputs, float32 [N, 2], with labels 0 and 1, int64 [N]."""

    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor


def shifted_data(seed: int = 0) -> Shifted:
    """Class 1 is above the bent line y = |x|; training inputs are centred at x = -1, test inputs at x = 1."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for center in (-1.0, 1.0):
        inputs = torch.randn(_SAMPLES, 2, generator=generator) + torch.tensor([center, 1.0])
        parts += [inputs, (inputs[:, 1] > inputs[:, 0].abs()).long()]
    return Shifted(*parts)


def importance_weights(train_inputs: torch.Tensor, test_inputs: torch.Tensor) -> torch.Tensor:
    """How much more frequent each of ``train_inputs`` [N, D] is among ``test_inputs`` [M, D]: float32 [N]."""
    inputs = torch.cat([train_inputs, test_inputs])
    is_test = torch.cat([torch.zeros(len(train_inputs), 1), torch.ones(len(test_inputs), 1)])
    net, loss = _linear(inputs.shape[1], 1), pyops.nn.BCEWithLogitsLoss()
    _minimize(net, lambda: loss(net(inputs), is_test))
    with torch.no_grad():
        ratio = net(train_inputs).squeeze(1).exp() * (len(train_inputs) / len(test_inputs))
    return ratio.clamp(max=_LARGEST_WEIGHT)


def fit(
    inputs: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None
) -> torch.nn.Module:
    """A softmax regression of two classes, with weighted samples or not."""
    net, loss = _linear(inputs.shape[1], 2), pyops.nn.CrossEntropyLoss()
    _minimize(net, lambda: loss(net(inputs), labels, sample_weight=sample_weight))
    return net


@torch.no_grad()
def accuracy(net: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    return float((net(inputs).argmax(1) == labels).double().mean())


def example(output: Path) -> list[str]:
    """Train with and without weights, draw both borders into ``output/covariate_shift.png``; lines that say
    how well each does on the test inputs."""
    data = shifted_data()
    weights = importance_weights(data.train_inputs, data.test_inputs)
    plain = fit(data.train_inputs, data.train_labels)
    weighted = fit(data.train_inputs, data.train_labels, weights)
    prepare_folder(output)
    _draw(output / "covariate_shift.png", data, weights, {"all alike": plain, "weighted": weighted})
    return [
        f"{name}: training accuracy {accuracy(net, data.train_inputs, data.train_labels):.4f}, "
        f"test accuracy {accuracy(net, data.test_inputs, data.test_labels):.4f}"
        for name, net in (("all samples alike", plain), ("importance weights", weighted))
    ]


def _linear(features: int, outputs: int) -> torch.nn.Module:
    net = pyops.nn.Linear(features, outputs)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    return net


def _minimize(net: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _draw(path: Path, data: Shifted, weights: torch.Tensor, nets: dict[str, torch.nn.Module]) -> None:
    figure = Figure(figsize=(10, 4.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    shown = left.scatter(*data.train_inputs.T.numpy(), s=4, c=weights.numpy(), cmap="viridis", norm="log")
    figure.colorbar(shown, ax=left, label="weight")
    left.set_title("training inputs")
    for label, color in ((0, "#9aa7b4"), (1, "#333333")):
        inputs = data.test_inputs[data.test_labels == label]
        right.scatter(*inputs.T.numpy(), s=4, color=color, label=f"class {label}")
    right.set_title("test inputs")
    x = torch.linspace(-4, 4, 81)
    for axes in (left, right):
        axes.plot(x, x.abs(), color="#333333", lw=1, ls=":", label="true border")
        for (name, net), color in zip(nets.items(), ("#1f77b4", "#ff7f0e"), strict=True):
            axes.plot(x, _border(net, x), color=color, lw=2, label=name)
        axes.set(xlim=(-4, 4), ylim=(-2.5, 4.5))
    right.legend(loc="lower left", markerscale=3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


@torch.no_grad()
def _border(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """y where both classes have the same logit at ``x``."""
    (a, b), c = net.weight[1] - net.weight[0], net.bias[1] - net.bias[0]
    return -(a * x + c) / b
