"""The pictures of a run. Drawn on Figure objects: no window, no global matplotlib state."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..files import atomic_write

_COLORS = {"train": "#1f77b4", "validation": "#2ca02c", "test": "#ff7f0e"}
_WRONG_COLOR, _RIGHT_COLOR = "#c81e1e", "#333333"
#: Of the largest loss to the smallest, from which on the axis is logarithmic.
_DECADES = 30
_COLUMNS, _SAMPLE_ROWS = 8, 4
_LEAST_COLUMNS = 4  # wide enough for a title
# In units of a column's width.
_GAP, _CAPTION_HEIGHT = 0.08, 0.36
_ROW_HEIGHT = 1 + _CAPTION_HEIGHT - 0.04


def save_curves(
    path: Path,
    title: str,
    history: dict[str, list[float]],
    step_losses: Sequence[float],
    panels: Mapping[str, str],
    best_epoch: int | None = None,
) -> None:
    """Draw quantities over the epochs, and the loss of every step, into the PNG ``path``.

    ``history`` maps ``epoch`` (where each entry ended, in epochs; the last may be a fraction) and
    ``PART_QUANTITY``, by part of the data, to equally long lists. ``panels`` maps the quantities that are
    drawn, of which ``loss`` has to be one, to their labels. ``best_epoch``, whose weights are kept, is
    marked.
    """
    panels = {"loss": panels["loss"], **panels}  # first
    rates = history.get("lr", [])
    count = len(panels) + (len(set(rates)) > 1)
    figure = Figure(figsize=(0.5 + 4.75 * count, 4), dpi=120, layout="constrained")
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    epochs = history["epoch"]
    steps = [epochs[-1] * (i + 1) / len(step_losses) for i in range(len(step_losses))]
    all_axes[0].plot(steps, step_losses, color=_COLORS["train"], alpha=0.25, lw=0.8, label="train, step")
    shown = -1 if best_epoch is None else best_epoch - 1
    for axes, (key, label) in zip(all_axes, panels.items(), strict=False):
        for part, color in _COLORS.items():
            if f"{part}_{key}" in history:
                axes.plot(epochs, history[f"{part}_{key}"], color=color, marker="o", ms=3, label=part)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.5", ls=":", label=f"kept: epoch {best_epoch}")
        finish_axes(axes, label)
        parts = [part for part in _COLORS if f"{part}_{key}" in history]
        values = ", ".join(f"{part} {history[f'{part}_{key}'][shown]:.4g}" for part in parts)
        axes.set_title(f"{'final' if best_epoch is None else 'kept'}: {values}", fontsize=10)
        if key == "accuracy":
            axes.set_ylim(top=1.005)
    scale_losses(all_axes[0], [value for part in _COLORS for value in history.get(f"{part}_loss", [])])
    if count > len(panels):
        all_axes[-1].plot(epochs, rates, color="C4", marker="o", ms=3, label="of the last step")
        finish_axes(all_axes[-1], "learning rate")
        scale_losses(all_axes[-1], rates)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Losses that span decades need a logarithm to be seen; others begin at zero."""
    if min(losses) > 0 and max(losses) > _DECADES * min(losses):
        axes.set_yscale("log")
    else:
        # Flat losses leave a margin of next to nothing, which cuts markers in half.
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * max(losses)))


def finish_axes(axes: Axes, label: str, *, legend: bool = True) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def save_race(path: Path, title: str, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw what runs reached by when, and their speed, into the PNG ``path``.

    ``runs`` are metrics (as in ``metrics.json``) by name; the speed of the last is 1. The time is that of the
    training steps alone, as in ``samples_per_second``.
    """
    figure = Figure(figsize=(13, 4.2), dpi=120, layout="constrained")
    losses, accuracies, speeds = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    last = [*runs][-1]
    for number, (name, run) in enumerate(runs.items()):
        history, style = run["history"], {"color": f"C{number}", "label": name}
        seconds = run["train_samples"] / run["samples_per_second"]  # of an epoch
        times = [epoch * seconds for epoch in history["epoch"]]
        losses.plot(times, history["train_loss"], marker="o", ms=3, **style)
        accuracies.plot(times, history["test_accuracy"], marker="o", ms=3, **style)
        speed = run["samples_per_second"]
        bar = speeds.barh(name, speed, color=f"C{number}", height=0.6)
        ratio = speed / runs[last]["samples_per_second"]
        speeds.bar_label(
            bar, [f"{speed:,.0f}\n{ratio:.2f}x"], label_type="center", color="white", weight="bold"
        )
    for axes, label in ((losses, "training loss"), (accuracies, "test accuracy")):
        finish_axes(axes, label)
        axes.set_xlabel("seconds of training")
    losses.set_yscale("log")
    speeds.invert_yaxis()
    speeds.set_xlabel("samples per second")
    speeds.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    speeds.xaxis.set_major_locator(MaxNLocator(4))
    speeds.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


@dataclass(frozen=True)
class Tile:
    """An image [1 or 3, H, W] in [0, 1], on the CPU, with its caption of two lines; red where ``wrong``."""

    image: torch.Tensor
    caption: str
    wrong: bool = False


def save_predictions(
    path: Path,
    title: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    predictions: torch.Tensor,
    class_names: Sequence[str],
) -> None:
    """Draw the first test images with true and predicted labels, then a row of wrong ones, if any.

    Args:
        images: [N, 1 or 3, H, W] in [0, 1]. labels, predictions: int64 [N]. All on the CPU.
    """
    wrong = (predictions != labels).nonzero().flatten().tolist()
    shown = list(range(min(len(labels), _COLUMNS * _SAMPLE_ROWS)))
    mistakes = [i for i in wrong if i not in shown][:_COLUMNS]

    def tile(i: int) -> Tile:
        truth, prediction = int(labels[i]), int(predictions[i])
        text = f"true {shortened(class_names[truth])}\npredicted {shortened(class_names[prediction], 9)}"
        return Tile(images[i], text, truth != prediction)

    last_row = "; last row: further wrong ones" if mistakes else ""
    title = f"{title}: {len(wrong)} of {len(labels)} test images wrong{last_row}"
    save_tiles(path, title, [tile(i) for i in shown], [tile(i) for i in mistakes])


def save_tiles(
    path: Path, title: str, tiles: Sequence[Tile], last_row: Sequence[Tile] = (), *, ink: bool = True
) -> None:
    """Draw rows of ``tiles`` into the PNG ``path``; those of ``last_row`` get a row of their own.

    Gray images are drawn as ink on paper, bright pixels dark, or without ``ink`` as they are.
    """
    rows = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
    rows += [last_row] if last_row else []
    columns = max(_LEAST_COLUMNS, *map(len, rows))
    # All tiles share one axes: forty axes of their own take a second to draw.
    figure = Figure(figsize=(columns * 1.2, len(rows) * _ROW_HEIGHT * 1.2 + 0.5), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    axes.set_axis_off()
    for row, in_row in enumerate(rows):
        for column, tile in enumerate(in_row):
            _draw_tile(axes, tile, column * 1.0, row * _ROW_HEIGHT, "gray_r" if ink else "gray")
    axes.set(xlim=(-0.08, columns), ylim=(len(rows) * _ROW_HEIGHT - _CAPTION_HEIGHT, -_CAPTION_HEIGHT))
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_tile(axes: Axes, tile: Tile, left: float, top: float, gray_map: str) -> None:
    """Draw a tile at (left, top) with its caption above."""
    color = _WRONG_COLOR if tile.wrong else _RIGHT_COLOR
    gray = tile.image.shape[0] == 1
    size = 1 - _GAP
    axes.imshow(
        tile.image[0].numpy() if gray else tile.image.permute(1, 2, 0).numpy(),
        extent=(left, left + size, top + size, top),
        cmap=gray_map if gray else None,
        vmin=0,
        vmax=1,
    )
    width = 2.5 if tile.wrong else 0.8
    axes.add_patch(Rectangle((left, top), size, size, fill=False, ec=color, lw=width))
    axes.text(
        left + size / 2, top - 0.04, tile.caption, color=color, fontsize=8, ha="center", va="bottom",
        family=font_families(tile.caption),
    )  # fmt: skip


#: Fonts that have what matplotlib's own lacks, in the order in which they are asked for.
_WIDE_FONTS = (
    "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei",
    "PingFang SC", "Hiragino Sans GB", "SimHei", "Arial Unicode MS", "Droid Sans Fallback",
)  # fmt: skip


def font_families(text: str) -> list[str]:
    """Fonts for ``text``: matplotlib's own, and behind it what is installed for characters it lacks."""
    if text.isascii():
        return ["sans-serif"]
    return ["sans-serif", *(name for name in _WIDE_FONTS if name in get_font_names())]


def shortened(text: str, length: int = 14) -> str:
    """``text`` where it fits under a picture of its width, else its beginning and end."""
    if _columns(text) <= length:
        return text
    head = tail = ""
    for left, right in zip(text, reversed(text), strict=True):
        if _columns(head + left + tail) >= length:
            break
        head += left
        if _columns(head + right + tail) >= length:
            break
        tail = right + tail
    return f"{head}\N{HORIZONTAL ELLIPSIS}{tail}"


def _columns(text: str) -> int:
    """How wide ``text`` is; Chinese characters count twice."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
