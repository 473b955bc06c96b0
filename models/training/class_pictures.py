"""Pictures of what a classifier takes for what: the confusion matrix, and boundaries in the plane."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..files import atomic_write
from ..tasks import Task
from .plots import font_families, shortened

#: Classes, beyond which numbers in cells could not be read.
_MOST_NUMBERS = 20
_POINTS = 200  # of the grid, along an axis


def save_confusion(
    path: Path, title: str, labels: Tensor, predictions: Tensor, class_names: tuple[str, ...]
) -> None:
    """Draw how many test samples of each class were taken for which, labels int64 [N], into a PNG."""
    count = len(class_names)
    numbers = confusion_matrix(labels.numpy(), predictions.numpy(), labels=range(count))
    shares = numbers / numbers.sum(1, keepdims=True).clip(min=1)
    side = min(14.0, max(5.0, 2.5 + 0.45 * count))  # wide enough for a title
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= _MOST_NUMBERS:
        for (row, column), number in [*_cells(numbers)]:
            color = "white" if shares[row, column] > 0.5 else "#c81e1e" if row != column else "#333333"
            axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=8)
    names = [shortened(name) for name in class_names]
    family = font_families("".join(names))
    axes.set_xticks(range(count), names, rotation=90, family=family, fontsize=8)
    axes.set_yticks(range(count), names, family=family, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _cells(numbers) -> list[tuple[tuple[int, int], int]]:
    """Rows and columns with what is in them, where there is something."""
    return [((int(i), int(j)), int(numbers[i, j])) for i, j in zip(*numbers.nonzero(), strict=True)]


@torch.no_grad()
def save_boundary(path: Path, title: str, net: nn.Module, task: Task, data: Dataset) -> None:
    """Draw the class that ``net`` gives to each point of the plane, and the test samples, into a PNG.

    ``data`` has rows of two numbers, on the CPU; ``net`` may be elsewhere.
    """
    samples, device = data.test_inputs, next(net.parameters()).device
    low, high = samples.min(0).values, samples.max(0).values
    margin = 0.25 * (high - low).clamp(min=1e-6)
    first, second = (
        torch.linspace(float(a), float(b), _POINTS) for a, b in zip(low - margin, high + margin, strict=True)
    )
    grid = torch.cartesian_prod(first, second)
    was_training = net.training
    classes = task.predict(net.eval()(grid.to(device))).cpu().reshape(_POINTS, _POINTS)
    net.train(was_training)
    figure = Figure(figsize=(5.2, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    colors = [f"C{i}" for i in range(len(data.class_names))]
    levels = torch.arange(len(colors) + 1) - 0.5
    axes.contourf(first, second, classes.T, levels=levels, colors=colors, alpha=0.25)
    for number, (name, color) in enumerate(zip(data.class_names, colors, strict=True)):
        points = samples[data.test_targets == number]
        axes.scatter(points[:, 0], points[:, 1], color=color, edgecolor="k", s=50, label=shortened(name))
    axes.legend(prop={"family": font_families("".join(data.class_names))})
    axes.set(xlabel="first input", ylabel="second input")
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
