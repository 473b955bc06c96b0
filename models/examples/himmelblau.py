"""Gradient descent on Himmelblau's function of two variables.

    f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2

It has four minima, all of value 0, and gradient descent finds the one whose valley it starts in: the end
of a network's training depends on its beginning in the same way.

Source: course notes, "Minimising a function of two variables" (which have the second square wrong);
Himmelblau, Applied nonlinear programming, 1972.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..errors import TrainError
from ..files import atomic_write, prepare_folder

#: One minimum is at integers, the others are rounded.
MINIMA = ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127))
#: The notes start from the first; the others lie in the other valleys.
STARTS = ((0.0, 0.0), (-1.0, 1.0), (-1.0, -1.0), (2.0, -1.0))
_RANGE = 6.0


def himmelblau(point: torch.Tensor) -> torch.Tensor:
    """The function at ``point`` [..., 2]: [...]."""
    x, y = point.unbind(-1)
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


@dataclass(frozen=True)
class Descent:
    """The points [steps + 1, 2] that a descent went through, and the value at the last."""

    path: torch.Tensor
    value: float


def descend(start: Sequence[float], *, steps: int = 1000, lr: float = 0.05) -> Descent:
    """Minimise from ``start`` with Adam.

    Raises:
        TrainError: the value is no longer finite.
    """
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([point], lr=lr)
    path = [point.detach().clone()]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        value = himmelblau(point)
        if not value.isfinite():
            raise TrainError(f"himmelblau became {value.item()} at step {step}: try another start")
        value.backward()
        optimizer.step()
        path.append(point.detach().clone())
    return Descent(torch.stack(path), float(himmelblau(point.detach())))


def example(output: Path) -> list[str]:
    """Descend from :data:`STARTS`, draw the paths into ``output/himmelblau.png``; a line for each."""
    descents = [descend(start) for start in STARTS]
    prepare_folder(output)
    _draw(output / "himmelblau.png", descents)
    return [
        f"from ({start[0]:g}, {start[1]:g}) to ({end[0]:.4f}, {end[1]:.4f}), f = {descent.value:.1e}"
        for start, descent in zip(STARTS, descents, strict=True)
        for end in (descent.path[-1].tolist(),)
    ]


def _draw(path: Path, descents: Sequence[Descent]) -> None:
    figure = Figure(figsize=(6.4, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    line = torch.linspace(-_RANGE, _RANGE, 241, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="xy")
    values = himmelblau(torch.stack([x, y], -1)).numpy() + 1e-3  # a logarithm follows
    levels = torch.logspace(-1, 3, 17).tolist()
    shown = axes.contourf(x.numpy(), y.numpy(), values, levels, norm=LogNorm(), cmap="Blues", extend="both")
    figure.colorbar(shown, label="f(x, y)", format="%.3g")
    for number, descent in enumerate(descents):
        axes.plot(*descent.path.T.numpy(), color="#c81e1e", lw=1.2, label="" if number else "descent")
        axes.plot(*descent.path[0].numpy(), "o", color="#333333", ms=5, label="" if number else "start")
    axes.plot(*zip(*MINIMA, strict=True), "*", color="#ff7f0e", ms=11, ls="none", label="minimum")
    axes.set(xlabel="x", ylabel="y", title="Himmelblau's function: Adam from four starts")
    axes.legend(loc="upper right")
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
