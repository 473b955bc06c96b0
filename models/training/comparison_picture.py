"""The curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import atomic_write
from .plots import finish_axes, font_families, scale_losses, shortened

#: A run's history: ``epoch`` and ``PART_QUANTITY`` to equally long lists.
History = Mapping[str, Sequence[float]]

_MARKERS = "osD^vPX"
#: Points of the last run's line, what each below it has more, and at most the thickest.
_THIN, _WIDER, _MOST_WIDER = 1.4, 2.2, 6.6


def save_comparison(
    path: Path, runs: Mapping[str, History], quantities: Sequence[str], part: str = "test"
) -> None:
    """Draw ``quantities`` of histories over each other into the PNG ``path``, as :func:`comparison` does."""
    with atomic_write(path) as file:
        comparison(runs, quantities, part).savefig(file, format="png")


def comparison(runs: Mapping[str, History], quantities: Sequence[str], part: str) -> Figure:
    """A row of panels for the ``part`` of the data, one for the training part, and one with the differences
    to the first run, where the runs were measured at the same epochs.

    Curves that coincide are all seen: an earlier run's is wider, and shows on both sides of a later one's.
    """
    first, *others = runs.values()
    aligned = all(list(other["epoch"]) == list(first["epoch"]) for other in others)
    parts = [part, "train", *(["difference"] if aligned else [])]
    size = (0.8 + 4.75 * len(quantities), 0.9 + 2.7 * len(parts))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    rows = figure.subplots(len(parts), len(quantities), squeeze=False)
    for row, shown in zip(rows, parts, strict=True):
        for axes, quantity in zip(row, quantities, strict=True):
            if shown == "difference":
                _draw_differences(axes, runs, f"{part}_{quantity}")
            else:
                _draw_runs(axes, runs, f"{shown}_{quantity}")
    handles = rows[0, 0].get_lines()
    families = font_families("".join(runs))
    figure.legend(
        handles, [shortened(name, 36) for name in runs], loc="outside lower center", frameon=False,
        ncols=min(len(runs), 3), prop={"family": families},
    )  # fmt: skip
    return figure


def _style(number: int, count: int) -> dict[str, Any]:
    wider = min(_WIDER, _MOST_WIDER / max(1, count - 1)) * (count - 1 - number)
    marker = _MARKERS[number % len(_MARKERS)]
    return {"color": f"C{number}", "lw": _THIN + wider, "marker": marker, "ms": 3.5 + 1.6 * wider}


def _draw_runs(axes: Axes, runs: Mapping[str, History], key: str) -> None:
    for number, history in enumerate(runs.values()):
        axes.plot(history["epoch"], history[key], **_style(number, len(runs)))
    finish_axes(axes, _words(key), legend=False)
    if key.endswith("loss"):
        scale_losses(axes, [value for history in runs.values() for value in history[key]])


def _draw_differences(axes: Axes, runs: Mapping[str, History], key: str) -> None:
    (name, first), *_ = runs.items()
    axes.axhline(0, color="0.5", lw=0.8)
    for number, history in enumerate(runs.values()):
        if number:
            differences = [value - base for value, base in zip(history[key], first[key], strict=True)]
            axes.plot(history["epoch"], differences, **_style(number, len(runs)))
    finish_axes(axes, f"{_words(key)}\nminus that of {shortened(name, 24)}", legend=False)
    axes.yaxis.label.set_family(font_families(name))


def _words(key: str) -> str:
    return key.replace("train_", "training ").replace("_", " ")
