"""``pyops predict``: what a trained network says of images, or of the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.images import image_files, read_image
from ..data.table_encoding import Encoding, read_table
from ..errors import DataError, NetworkError
from ..files import atomic_write, prepare_folder
from ..registry import get_network
from ..training.finished_run import FinishedRun, read_run
from ..training.plots import Tile, save_tiles, shortened
from ..training.results import COLUMNS

PICTURE, TABLE = "predicted.png", "predicted.csv"
_BATCH = 256
_MOST_TILES = 128


@dataclass(frozen=True)
class Prediction:
    """A label with the probability that the network gives it."""

    path: Path
    label: str
    probability: float


def predict(
    run_folder: str | Path, images: Sequence[str | Path], output: Path | None = None, *, invert: bool = False
) -> list[Prediction]:
    """Labels of image files, which are also drawn with their labels into a PNG.

    Args:
        run_folder: output folder of a finished run of an image classifier.
        images: files, and folders whose images are taken; read in gray or colour and resized as the network
            was trained.
        output: the PNG, ``RUN_FOLDER/predicted.png`` by default.
        invert: exchange dark and bright, as for pen on paper: the training digits are bright on dark.

    Raises:
        ModelsError: no such run, not of an image classifier, or no such images.
    """
    run = read_run(run_folder)
    _check_classifier(run)
    paths = _expanded(images)
    channels, height, width = run.metrics["input_shape"]
    pixels = torch.stack([read_image(path, channels, (height, width)) for path in paths])
    if invert:
        pixels = 1 - pixels
    labels, chances = _classify(run, _outputs(run, pixels))
    names = run.metrics["class_names"]
    found = [
        Prediction(path, names[label], chance)
        for path, label, chance in zip(paths, labels, chances, strict=True)
    ]
    path = run.folder / PICTURE if output is None else output
    prepare_folder(path.parent)
    tiles = [
        Tile(image, f"{shortened(one.path.name, 18)}\n{shortened(one.label)} ({one.probability:.0%})")
        for image, one in zip(pixels, found, strict=True)
    ]
    left_out = f", the first {_MOST_TILES} of {len(tiles)}" if len(tiles) > _MOST_TILES else ""
    save_tiles(path, f"{run.title}: predictions{left_out}", tiles[:_MOST_TILES], ink=False)
    return found


def _check_classifier(run: FinishedRun) -> None:
    if len(run.metrics["input_shape"]) != 3 or not run.metrics["class_names"]:
        raise NetworkError(f"{run.folder} is a run of {run.title}, which does not classify images")


def _expanded(images: Sequence[str | Path]) -> list[Path]:
    paths = []
    for path in map(Path, images):
        files = image_files(path) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no images")
        paths += files
    if not paths:
        raise DataError("no images: name files or folders")
    return paths


@torch.no_grad()
def _outputs(run: FinishedRun, inputs: torch.Tensor) -> torch.Tensor:
    net = run.load_network()
    return torch.cat([net(batch) for batch in inputs.split(_BATCH)])


def _classify(run: FinishedRun, outputs: torch.Tensor) -> tuple[list[int], list[float]]:
    task = get_network(run.metrics["network"]).task
    labels = task.predict(outputs)
    if task.binary:
        chances = outputs.sigmoid().squeeze(1)
        chances = torch.where(labels == 1, chances, 1 - chances)
    else:
        chances = outputs.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return labels.tolist(), chances.tolist()


def predict_table(run_folder: str | Path, table: Path, output: Path | None = None) -> Path:
    """Write the CSV file ``table`` with predictions beside its rows; where to.

    Added are a column ``predicted_TARGET``, and of classes ``probability``.

    Args:
        run_folder: output folder of a finished run on a CSV table.
        table: has the columns that training had; the target may be missing, others are passed through.
        output: ``RUN_FOLDER/predicted.csv`` by default.

    Raises:
        ModelsError: no such run, not on a table, or a table without the columns or with other types.
    """
    run = read_run(run_folder)
    if not (run.folder / COLUMNS).is_file():
        raise NetworkError(f"{run.folder} is a run of {run.title}, which was not trained on a CSV table")
    encoding = Encoding.from_json(run.folder / COLUMNS)
    rows = read_table(table, 1)
    encoding.check(rows, str(table))
    outputs = _outputs(run, encoding.encode(rows))
    heading = f"predicted_{encoding.target}"
    if names := run.metrics["class_names"]:
        labels, chances = _classify(run, outputs)
        rows[heading], rows["probability"] = [names[label] for label in labels], chances
    else:
        rows[heading] = outputs.flatten().tolist()
    path = run.folder / TABLE if output is None else output
    prepare_folder(path.parent)
    with atomic_write(path) as file:
        file.write(rows.to_csv(index=False).encode())
    return path
