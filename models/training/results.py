"""What a run writes when it is over."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..data.dataset import Dataset, Unlabelled
from ..data.text import decoded
from ..files import atomic_write
from ..networks.language_model import LanguageModel
from ..tasks import Task
from .class_pictures import save_boundary, save_confusion
from .plots import save_curves, save_predictions
from .trainer import Trainer

METRICS, MODEL = "metrics.json", "model.safetensors"
PREDICTIONS, CONFUSION = "predictions.png", "confusion.png"
#: Of a run on a CSV table: how its rows were made numbers.
COLUMNS = "columns.json"
_CONTINUATION = 300  # characters


def write_results(folder: Path | None, title: str, trainer: Trainer, about: dict[str, Any]) -> dict[str, Any]:
    """Write the model, the pictures and, last, the metrics, which are also returned.

    ``about`` says what was trained: the first entries of the metrics. Of several processes all take part, and
    those without a ``folder`` write nothing.
    """
    progress = trainer.progress
    test = trainer.evaluate()
    history = trainer.history_until_now(test)
    final = {key: values[-1] for key, values in history.items() if key not in ("epoch", "lr")}
    if trainer.has_stopped_early:
        trainer.restore_best()
        test = trainer.evaluate()
        final |= trainer.named("test", test.loss, test.score)
    metrics = {
        **about,
        "epochs": progress.epoch,
        "steps": progress.step,
        **({"best_epoch": progress.best_epoch} if trainer.has_stopped_early else {}),
        **final,
        **_distance_to_solution(trainer),
        "training_seconds": progress.seconds,
        "samples_per_second": trainer.samples_per_second,
        "torch_version": torch.__version__,
        "history": history,
        "step_losses": progress.step_losses,
    }
    if folder is not None:
        _write_files(folder, title, trainer, metrics, test.predictions)
    return metrics


def _write_files(
    folder: Path, title: str, trainer: Trainer, metrics: dict[str, Any], predictions: torch.Tensor
) -> None:
    progress, task = trainer.progress, trainer.task
    with atomic_write(folder / MODEL) as file:
        file.write(safetensors.torch.save(trainer.net.state_dict()))
    panels = {name: name.replace("_", " ") for name in task.shown} | {"loss": task.loss.label}
    best = progress.best_epoch if trainer.has_stopped_early else None
    save_curves(folder / "curves.png", title, metrics["history"], progress.step_losses, panels, best)
    data = trainer.data.to(torch.device("cpu"))
    drawn = pictures_of_classes(data)
    if PREDICTIONS in drawn:
        path = folder / PREDICTIONS
        targets = data.test_targets
        save_predictions(path, title, data.test_inputs, targets, predictions, data.class_names)
    if CONFUSION in drawn:
        path = folder / CONFUSION
        save_confusion(path, f"{title}: test samples", data.test_targets, predictions, data.class_names)
        if data.kind == "rows" and data.input_shape == (2,):
            save_boundary(folder / "boundary.png", title, trainer.net, task, data)
    if data.encoding is not None:
        with atomic_write(folder / COLUMNS) as file:
            file.write(data.encoding.to_json().encode())
    if data.unlabelled is not None:
        _write_submission(folder / "submission.csv", trainer, data.unlabelled, data.class_names)
    if isinstance(trainer.net, LanguageModel):
        _write_continuation(folder / "continuation.txt", trainer.net, data, trainer.device, metrics["seed"])
    write_json(folder / METRICS, metrics)


def pictures_of_classes(data: Dataset) -> tuple[str, ...]:
    """Names of the pictures of what a network takes the test samples of ``data`` for."""
    if not data.class_names or data.kind == "text":
        return ()
    return (PREDICTIONS, CONFUSION) if data.kind == "images" else (CONFUSION,)


def _write_continuation(
    path: Path, net: LanguageModel, data: Dataset, device: torch.device, seed: int
) -> None:
    """Write the beginning of the test text and the model's continuation of it."""
    prompt = torch.cat([data.test_inputs[0], data.test_targets[0, -1:]])
    drawn = net.continued(prompt.to(device), _CONTINUATION, torch.Generator().manual_seed(seed))
    with atomic_write(path) as file:
        file.write(f"{decoded(prompt, data.class_names)}|{decoded(drawn, data.class_names)}\n".encode())


@torch.no_grad()
def _write_submission(path: Path, trainer: Trainer, rows: Unlabelled, class_names: Sequence[str]) -> None:
    """Write the predictions of rows without targets, in the form that Kaggle takes."""
    outputs = trainer.net(rows.inputs.to(trainer.device))
    predictions = trainer.task.predict(outputs).flatten().tolist()
    values = [class_names[value] for value in predictions] if class_names else predictions
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([rows.heading, rows.target])
    writer.writerows(zip(rows.names, values, strict=True))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def in_words(task: Task, results: dict[str, Any], part: str, *, spread: bool = False) -> str:
    """What sums up ``results``, in words; with the standard deviation of each if ``spread``."""
    words = []
    for name in task.shown:
        key = f"{part}_{name}"
        deviation = f" +- {results[f'{key}_std']:.4f}" if spread else ""
        words.append(f"{part} {name.replace('_', ' ')} {results[key]:.4f}{deviation}")
    return ", ".join(words)


def learned(trainer: Trainer, most: int = 16) -> str | None:
    """The parameters in words, where they are so few that they can be read."""
    parameters = dict(trainer.net.named_parameters())
    if sum(value.numel() for value in parameters.values()) > most:
        return None
    words = []
    for name, value in parameters.items():
        numbers = ", ".join(f"{number:.4g}" for number in value.detach().flatten().tolist())
        words.append(f"{name.rpartition('.')[2]} {numbers}")
    return "learned " + "; ".join(words)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` atomically; infinity and NaN are errors, they are no JSON."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def _distance_to_solution(trainer: Trainer) -> dict[str, float]:
    """How far a linear network is from the map that made its data, where one did: the largest difference."""
    solution, found = trainer.data.solution, list(trainer.net.parameters())
    if solution is None or [p.shape for p in found] != [p.shape for p in solution]:
        return {}
    distances = [
        (ours.detach().cpu() - truth).abs().max() for ours, truth in zip(found, solution, strict=True)
    ]
    return {"parameter_error": float(max(distances))}
