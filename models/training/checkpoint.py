"""Checkpoints: all that a run needs to continue bit for bit as if it had never stopped."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import TrainError, first_line
from ..files import atomic_write

_FORMAT = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values only) atomically to ``path``."""
    with atomic_write(path) as file:
        try:
            torch.save({"format": _FORMAT, **state}, file)
        except RuntimeError as error:  # torch hides a failed write() in an error of its zip writer
            raise TrainError(f"cannot write {path}: {first_line(error)}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, onto the CPU.

    Raises:
        TrainError: there is no such file, it is damaged, or it is no checkpoint of this program.
    """
    if not path.is_file():
        raise TrainError(f"nothing to resume: {path} does not exist")
    try:
        # torch.load does not look at the archive's checksums, so a flipped bit would pass unseen.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise TrainError(f"{path}: damaged checkpoint: checksum of {damaged!r} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TrainError:
        raise
    except Exception as error:  # damage surfaces as any of a dozen exception types
        raise TrainError(f"{path}: damaged checkpoint: {first_line(error)}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != _FORMAT:
        raise TrainError(
            f"{path}: not a checkpoint of this version of pyops (format {found!r}, expected {_FORMAT}): "
            "resume with the version that wrote it, or start anew"
        )
    return state


def random_states(device: torch.device) -> dict[str, Any]:
    """States of the global random generators of Python, NumPy, torch and the CUDA ``device``."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_keys = numpy_state["state"]["key"].astype(np.int64)
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": torch.from_numpy(numpy_keys)}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set the generators to the states that :func:`random_states` recorded."""
    numpy_state = states["numpy"]
    numpy_keys = numpy_state["state"]["key"].numpy().astype(np.uint32)
    random.setstate(states["python"])
    np.random.set_state(numpy_state | {"state": numpy_state["state"] | {"key": numpy_keys}})
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
