"""Peak memory of one call, beyond what was allocated when it started."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyops.memory import output_cache_stats, set_output_cache_limit


@dataclass(frozen=True)
class Peak:
    """``allocated``: bytes through torch's allocator; ``resident``: growth of the process (CPU only)."""

    allocated: int | None
    resident: int | None = None


def peak(call: Callable[[], Any], device: torch.device, before: Callable[[], Any] | None) -> Peak:
    """Measure one call. Two numbers on the CPU, because each misses something:

    torch's allocator does not see the scratch memory of libraries (oneDNN, MKL) and of C++ containers;
    the resident set does, but only when pages are touched, and not when the C library reuses old ones.
    """
    if device.type == "cuda":
        return Peak(_cuda_peak(call, device, before))
    return Peak(_cpu_allocated_peak(call, before), _resident_peak(call, before))


def _cuda_peak(call: Callable[[], Any], device: torch.device, before: Any) -> int:
    if before is not None:
        before()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - start


@dataclass(frozen=True)
class Allocation:
    """Memory of torch's CPU allocator, and the calls that asked for it, the innermost first."""

    bytes: int
    calls: tuple[str, ...]


def allocated_at_peak(call: Callable[[], Any]) -> list[Allocation]:
    """What a call had allocated when it had most, the largest first.

    pyops' own large outputs are torch's for this one call, so that both libraries' memory is in one sequence
    of events. The bytes are those that were asked for: they depend neither on the machine's load nor on what
    was freed before.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else two log lines per profile, on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    gc.collect()
    gc.disable()  # the garbage of others is no part of the call
    try:
        with _without_output_cache(), torch.profiler.profile(activities=activities, profile_memory=True) as p:
            result = call()
            del result
    finally:
        gc.enable()
    assert p.profiler is not None
    current = highest = 0
    alive: dict[int, Any] = {}
    most: list[Any] = []
    for event in _allocations(p.profiler.kineto_results.experimental_event_tree()):
        size, address = event.extra_fields.alloc_size, event.extra_fields.ptr
        if size > 0:
            alive[address] = event
            current += size
        elif address in alive:  # else it is older than the call
            current -= alive.pop(address).extra_fields.alloc_size
        if current > highest:
            highest, most = current, list(alive.values())
    found = [Allocation(event.extra_fields.alloc_size, _callers(event)) for event in most]
    return sorted(found, key=lambda a: -a.bytes)


@contextmanager
def _without_output_cache() -> Iterator[None]:
    limit = output_cache_stats().limit
    set_output_cache_limit(0)
    try:
        yield
    finally:
        set_output_cache_limit(limit)


def _allocations(roots: list[Any]) -> list[Any]:
    """The allocations and releases on the CPU below these events, in order of time."""
    found, left = [], roots[::-1]
    while left:
        event = left.pop()
        left += event.children[::-1]
        if event.tag == torch._C._profiler._EventType.Allocation and event.extra_fields.device.type == "cpu":
            found.append(event)
    return sorted(found, key=lambda event: event.start_time_ns)


def _callers(event: Any) -> tuple[str, ...]:
    names = []
    while (event := event.parent) is not None:
        names.append(event.name)
    return tuple(names)


def _cpu_allocated_peak(call: Callable[[], Any], before: Any) -> int:
    if before is not None:
        before()
    return sum(allocation.bytes for allocation in allocated_at_peak(call))


def _resident_peak(call: Callable[[], Any], before: Any) -> int | None:
    """Growth of VmHWM; Linux lets a process reset its own mark by writing 5 to ``clear_refs``."""
    try:
        if before is not None:
            before()
        gc.collect()
        with _without_output_cache():  # idle outputs would be used again without growing the process
            pass
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        start = _status_bytes("VmRSS")
        result = call()
        del result
        return max(0, _status_bytes("VmHWM") - start)
    except (OSError, KeyError, TypeError):
        return None


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
