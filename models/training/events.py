"""The TensorBoard events of a run: losses as it goes on, the network's graph, and pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.dataset import Dataset
from ..errors import first_line
from ..registry import Network
from .results import pictures_of_classes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def log_steps(events: SummaryWriter, step_losses: list[float], first_step: int) -> None:
    for step, loss in enumerate(step_losses[first_step:], start=first_step + 1):
        events.add_scalar("loss/step", loss, step)


def log_epoch(events: SummaryWriter, row: dict[str, float], step: int) -> None:
    """One scalar per entry of a history row: ``test_accuracy`` becomes ``accuracy/test``."""
    for key, value in row.items():
        part, _, quantity = key.partition("_")
        if quantity:
            events.add_scalar(f"{quantity}/{part}", value, step)
        elif key == "lr":
            events.add_scalar(key, value, step)


@contextmanager
def event_writer(folder: Path, step: int, resume: bool) -> Iterator[SummaryWriter]:
    """TensorBoard events in ``folder``; a new run removes old ones, a resumed run hides those that
    a killed one wrote after its last checkpoint."""
    from torch.utils.tensorboard import SummaryWriter  # half a second to import

    if not resume:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    with SummaryWriter(str(folder), purge_step=step + 1 if resume else None) as writer:
        yield writer


def log_pictures(events: SummaryWriter, folder: Path, data: Dataset, step: int) -> None:
    """The pictures of what the network predicts, which the run on ``data`` has drawn into ``folder``."""
    for path in (folder / name for name in pictures_of_classes(data)):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        events.add_image(f"test/{path.stem}", pixels, step, dataformats="HWC")


def log_graph(
    events: SummaryWriter, network: Network, data: Dataset, outputs: int, options: Mapping[str, Any]
) -> str | None:
    """The graph of ``network``'s layers, torch's, whose names are the parameters'; why not, if not.

    It is traced on the CPU, from a network of its own, all of zeros: nothing is drawn, and the one in
    training is left alone. A network of the user's may do what cannot be traced.
    """
    sample = torch.zeros(1, *data.input_shape, dtype=data.train_inputs.dtype)
    try:
        # torch prints what it raises as well, and warns of its tracer's age.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            with torch.device("meta"):
                net = network.make(data.input_shape, outputs, nn, options)
            net = net.to_empty(device="cpu").eval()
            with torch.no_grad():
                for value in (*net.parameters(), *net.buffers()):
                    value.zero_()
            events.add_graph(net, sample)
    except Exception as error:
        return first_line(error)
    return None
