"""The pictures of a run. Drawn on Figure objects: no window, no global matplotlib state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .files import atomic_write

_COLORS = {"train": "#1f77b4", "validation": "#2ca02c", "test": "#ff7f0e"}
_WRONG_COLOR, _RIGHT_COLOR = "#c81e1e", "#333333"
_COLUMNS, _SAMPLE_ROWS = 8, 4
# In units of a column's width.
_GAP, _CAPTION_HEIGHT = 0.08, 0.36
_ROW_HEIGHT = 1 + _CAPTION_HEIGHT - 0.04


def save_curves(
    path: Path,
    title: str,
    history: dict[str, list[float]],
    step_losses: Sequence[float],
    panels: Mapping[str, str],
) -> None:
    """Draw quantities over the epochs, and the loss of every step, into the PNG ``path``.

    ``history`` maps ``epoch`` (where each entry ended, in epochs; the last may be a fraction) and
    ``PART_QUANTITY``, by part of the data, to equally long lists. ``panels`` maps the quantities that are
    drawn, of which ``loss`` has to be one, to their labels.
    """
    figure = Figure(figsize=(0.5 + 4.75 * len(panels), 4), dpi=120, layout="constrained")
    panels = {"loss": panels["loss"], **panels}  # first
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    epochs = history["epoch"]
    steps = [epochs[-1] * (i + 1) / len(step_losses) for i in range(len(step_losses))]
    all_axes[0].plot(steps, step_losses, color=_COLORS["train"], alpha=0.25, lw=0.8, label="train, step")
    for axes, (key, label) in zip(all_axes, panels.items(), strict=True):
        for part, color in _COLORS.items():
            if f"{part}_{key}" in history:
                axes.plot(epochs, history[f"{part}_{key}"], color=color, marker="o", ms=3, label=part)
        _finish_axes(axes, label)
        axes.set_title(f"final: test {history[f'test_{key}'][-1]:.4g}", fontsize=10)
        if key == "accuracy":
            axes.set_ylim(top=1.005)
    all_axes[0].set_title(f"final: train {history['train_loss'][-1]:.4g}", fontsize=10)
    all_axes[0].set_ylim(bottom=0)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _finish_axes(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


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
    sample_rows = -(-len(shown) // _COLUMNS)
    cells = [(i, divmod(k, _COLUMNS)) for k, i in enumerate(shown)]
    cells += [(i, (sample_rows, column)) for column, i in enumerate(mistakes)]
    rows = sample_rows + bool(mistakes)

    # All tiles share one axes: forty axes of their own take a second to draw.
    figure = Figure(figsize=(_COLUMNS * 1.2, rows * _ROW_HEIGHT * 1.2 + 0.5), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    axes.set_axis_off()
    for i, (row, column) in cells:
        truth, prediction = int(labels[i]), int(predictions[i])
        text = f"true {class_names[truth]}\npredicted {class_names[prediction]}"
        _draw_tile(axes, images[i], text, truth == prediction, column * 1.0, row * _ROW_HEIGHT)
    axes.set(xlim=(-0.08, _COLUMNS), ylim=(rows * _ROW_HEIGHT - _CAPTION_HEIGHT, -_CAPTION_HEIGHT))
    last_row = "; last row: further wrong ones" if mistakes else ""
    figure.suptitle(f"{title}: {len(wrong)} of {len(labels)} test images wrong{last_row}")
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_tile(axes: Axes, image: torch.Tensor, caption: str, right: bool, left: float, top: float) -> None:
    """Draw ``image`` [1 or 3, H, W] at (left, top) with its caption above; framed red if wrong."""
    color = _RIGHT_COLOR if right else _WRONG_COLOR
    gray = image.shape[0] == 1
    size = 1 - _GAP
    axes.imshow(
        image[0].numpy() if gray else image.permute(1, 2, 0).numpy(),
        extent=(left, left + size, top + size, top),
        cmap="gray_r" if gray else None,
        vmin=0,
        vmax=1,
    )
    axes.add_patch(Rectangle((left, top), size, size, fill=False, ec=color, lw=0.8 if right else 2.5))
    axes.text(left + size / 2, top - 0.04, caption, color=color, fontsize=8, ha="center", va="bottom")
