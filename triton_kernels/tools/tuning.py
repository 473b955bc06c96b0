"""The fastest of a few ways to launch a kernel, found by timing them once.

A kernel's launcher gives candidates in the order of its own guess. They are timed on the first call with a
key, which leaves out the batch size, on the caller's own tensors: kernels only write outputs, so that running
them again changes nothing. Candidates must add up the same blocks in the same order, so that results do not
depend on the choice. The first candidate is taken without timing where that cannot be done (the interpreter,
compiling without a GPU, while a CUDA graph is captured) or is not wanted (``PYOPS_TRITON_TUNE=0`` in the
environment).
"""

import os
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import torch
from triton.runtime.errors import OutOfResources

from .launch import is_recording

Candidate = TypeVar("Candidate")

_chosen: dict[Hashable, object] = {}
_REPETITIONS = 5


def fastest(
    key: Hashable,
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], None],
    device: torch.device,
) -> Candidate:
    """The candidate for which ``run`` is fastest on ``device``; timed once for each ``key``."""
    key = (key, tuple(candidates), device)
    found = _chosen.get(key)
    if found is None:
        if len(candidates) == 1 or not _can_time(device):
            return candidates[0]
        found = min(candidates, key=lambda candidate: _milliseconds(lambda: run(candidate)))
        _chosen[key] = found
    return found  # type: ignore[return-value]


def _can_time(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and not is_recording()
        and not torch.cuda.is_current_stream_capturing()
        and os.environ.get("PYOPS_TRITON_TUNE", "1") != "0"
    )


def _milliseconds(run: Callable[[], None]) -> float:
    """Median duration; infinity for a kernel that asks for more than the GPU has."""
    try:
        run()
    except OutOfResources:
        return float("inf")
    durations = []
    for _ in range(_REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        durations.append(start.elapsed_time(end))
    return median(durations)
