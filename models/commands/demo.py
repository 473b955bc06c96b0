"""``pyops demo``: LeNet with pyops' layers and with torch's, side by side; then torch's, converted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from tqdm import tqdm

import pyops

from ..registry import get_network
from ..training.config import TrainConfig
from ..training.interrupts import deferred_interrupt
from ..training.plots import save_race
from ..training.run import Run
from ..training.train import new_run

_NETWORK, _DATA = "lenet", "digits"
_LIBRARIES = ("pyops", "torch")
#: A line is shown after every so many epochs.
_SHOWN_EVERY = 5

#: The way to the same speed for a model that exists.
YOUR_OWN = """\
import pyops

# any torch model: its parameters, their names and its results stay
model = pyops.convert(model)
print(pyops.conversion_report(model))
optimizer = pyops.optim.Adam(model.parameters())  # less Python in it
"""


def demo(output: str | Path = "runs/demo", epochs: int | None = None) -> dict[str, Any]:
    """Train LeNet on the digits with pyops' layers and with torch's, and print and draw a comparison.

    The two take turns, an epoch each, so that the load of the machine and its clock hit both alike; the speed
    shown while they train, in the table and in their ``metrics.json`` is one number, the samples of the
    training steps over their seconds. Results go to ``output/pyops``, ``output/torch`` and
    ``output/demo.png``.

    Returns:
        By library the ``test_accuracy``, ``train_loss`` and ``samples_per_second``; ``speedup``, the ratio of
        the last; ``step_loss_difference``, the largest difference of the losses at any step.

    Raises:
        ModelsError: as :func:`pyops.models.training.train.train`.
        KeyboardInterrupt: after Ctrl-C, at the end of a step.
    """
    folder, console = Path(output), Console()
    runs = {
        library: new_run(TrainConfig(_NETWORK, _DATA, epochs=epochs, layers=library, output=folder / library))
        for library in _LIBRARIES
    }
    console.print(f"{_NETWORK} on {_DATA}: pyops' layers and torch's take turns, an epoch each")
    _train_in_turns(runs)
    metrics = {library: run.write_results() for library, run in runs.items()}
    names = ("test_accuracy", "train_loss", "samples_per_second")
    summary: dict[str, Any] = {
        library: {name: found[name] for name in names} for library, found in metrics.items()
    }
    summary["speedup"] = _speedup(runs)
    step_losses = (metrics[library]["step_losses"] for library in _LIBRARIES)
    summary["step_loss_difference"] = max(abs(a - b) for a, b in zip(*step_losses, strict=True))
    save_race(folder / "demo.png", f"{_NETWORK} on {_DATA}, {_threads()}", metrics)
    console.print(_table(summary))
    console.print(f"Losses differ by {summary['step_loss_difference']:.1e} at most, at any step.")
    for picture in ("demo.png", "pyops/curves.png", "pyops/predictions.png"):
        console.print(f"Picture: {folder / picture}", soft_wrap=True)
    _show_conversion(console, runs["torch"])
    return summary


def _train_in_turns(runs: dict[str, Run]) -> None:
    num_epochs = runs["pyops"].num_epochs
    with ExitStack() as stack:
        events = {library: stack.enter_context(run.events()) for library, run in runs.items()}
        interrupted = stack.enter_context(deferred_interrupt(patient=False))
        terminal = sys.stderr.isatty()
        bar = stack.enter_context(
            tqdm(range(1, num_epochs + 1), desc=_NETWORK, unit=" epochs", disable=not terminal)
        )
        for epoch in bar:
            for library in _LIBRARIES if epoch % 2 else reversed(_LIBRARIES):
                runs[library].train_epoch(events[library], interrupted=interrupted)
                if interrupted():
                    raise KeyboardInterrupt
            if epoch == num_epochs or epoch % _SHOWN_EVERY == 0:
                bar.write("  ".join(_in_words(epoch, num_epochs, runs)), file=sys.stderr)


def _in_words(epoch: int, num_epochs: int, runs: dict[str, Run]) -> Iterator[str]:
    yield f"epoch {epoch}/{num_epochs}"
    for library, run in runs.items():
        trainer = run.trainer
        accuracy = trainer.progress.history["test_accuracy"][-1]
        yield f"{library}: test accuracy {accuracy:.4f}, {trainer.samples_per_second:,.0f} samples/s"
    yield f"({_speedup(runs):.2f}x)"


def _speedup(runs: dict[str, Run]) -> float:
    return runs["pyops"].trainer.samples_per_second / runs["torch"].trainer.samples_per_second


def _threads() -> str:
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{_NETWORK} on {_DATA}, {_threads()}")
    table.add_column("layers")
    for column in ("test accuracy", "final train loss", "samples/s", "speed"):
        table.add_column(column, justify="right")
    for library in _LIBRARIES:
        row = summary[library]
        table.add_row(
            library,
            f"{row['test_accuracy']:.4f}",
            f"{row['train_loss']:.5f}",
            f"{row['samples_per_second']:,.0f}",
            f"{row['samples_per_second'] / summary['torch']['samples_per_second']:.2f}x",
        )
    return table


def _show_conversion(console: Console, run: Run) -> None:
    """Convert the network of torch's layers that was trained, as a reader would convert a model."""
    console.print("\nYour own model, the same way:\n")
    console.print(Syntax(YOUR_OWN, "python", background_color="default"))
    data = run.trainer.data
    torch_net = run.trainer.net
    images = data.test_inputs[:64]
    with torch.no_grad():
        before = torch_net.eval()(images)
        converted = pyops.convert(torch_net)
        difference = (converted(images) - before).abs().max().item()
    console.print(f"{get_network(_NETWORK).name} of torch's layers, converted so:")
    console.print(pyops.conversion_report(converted))
    console.print(f"Its outputs differ from before by {difference:.1e} at most.")
