"""Which of a few ways to launch a kernel: the fastest, found by timing them once, or the first that fits.

A kernel's launcher gives candidates in the order of its own guess, as named tuples with a ``num_stages``. All
must add up the same blocks in the same order, so that results do not depend on the choice. A candidate that
asks for more than the GPU has is left out for good. After the last one, all are tried with fewer stages,
which take less shared memory.

Candidates are timed on the first call with a key, which leaves out the batch size, on the caller's own
tensors and stream: kernels only write outputs, so that running them again changes nothing. The first one that
fits is taken without timing where that cannot be done (the interpreter, compiling without a GPU, while a CUDA
graph is captured: a later call will time them) or is not wanted (``PYOPS_TRITON_TUNE=0`` in the environment).
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from statistics import median
from threading import Lock
from typing import Any, TypeVar

import torch
from triton.runtime.errors import OutOfResources

from .launch import is_recording

Candidate = TypeVar("Candidate", bound=Any)

_fastest: dict[Hashable, Any] = {}
_too_large: set[Hashable] = set()
_timing = Lock()  # two threads that time on one GPU would time each other

_REPETITIONS = 3
_LAUNCHES = 5  # in each repetition
# What the GPU spins for while the CPU queues all launches: a millisecond, some 60 microseconds for each.
_HEAD_START_CYCLES = 2_000_000


def run_fastest(
    key: Hashable,
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], None],
    device: torch.device,
) -> None:
    """``run`` the candidate that is fastest on ``device``; timed once for each ``key``."""
    place = (key, tuple(candidates), device)
    if len(candidates) > 1 and place not in _fastest and _can_time(device):
        with _timing:
            if place not in _fastest:
                _fastest[place] = _find_fastest(key, candidates, run, device)
    first = _fastest.get(place, candidates[0])
    run_first(key, [first, *(c for c in candidates if c != first)], run, device)


def forget_times() -> None:
    """Let the next calls time again: what else ran on the GPU may have spoiled the choice."""
    _fastest.clear()


def run_first(
    key: Hashable,
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], None],
    device: torch.device,
) -> None:
    """``run`` the first candidate that ``device`` has the resources for, also in later calls with ``key``.

    Raises:
        OutOfResources: it has them for none, however few the stages.
    """
    error = None
    for candidate in _with_fewer_stages(candidates):
        if (key, candidate, device) in _too_large:
            continue
        try:
            run(candidate)
        except OutOfResources as reason:
            _too_large.add((key, candidate, device))
            error = reason
        else:
            return
    if error is not None:
        raise error
    run(candidates[0])  # known to raise


def _with_fewer_stages(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    yield from candidates
    for stages in range(max(c.num_stages for c in candidates) - 1, 0, -1):
        yield from (c._replace(num_stages=stages) for c in candidates if c.num_stages > stages)


def _find_fastest(
    key: Hashable,
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], None],
    device: torch.device,
) -> Candidate:
    durations = {}
    for candidate in candidates:
        try:
            durations[candidate] = _milliseconds(lambda c=candidate: run(c), device)
        except OutOfResources:
            _too_large.add((key, candidate, device))
    return min(durations, key=durations.__getitem__, default=candidates[0])


def _can_time(device: torch.device) -> bool:
    if device.type != "cuda" or is_recording() or os.environ.get("PYOPS_TRITON_TUNE", "1") == "0":
        return False
    with torch.cuda.device(device):
        return not torch.cuda.is_current_stream_capturing()


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """Median duration of a launch, among other launches and without the CPU's part in it.

    On the stream that ``run`` launches on. Only this thread waits, and only for its own work.
    """
    with torch.cuda.device(device):
        run()  # compiles
        stream = torch.cuda.current_stream(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPETITIONS + 1)]
        torch.cuda._sleep(_HEAD_START_CYCLES)
        events[0].record(stream)
        for event in events[1:]:
            for _ in range(_LAUNCHES):
                run()
            event.record(stream)
        events[-1].synchronize()
        durations = [start.elapsed_time(end) for start, end in pairwise(events)]
        return median(durations) / _LAUNCHES
