"""Peak memory of one call, beyond what was allocated when it started."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
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


def _cpu_allocated_peak(call: Callable[[], Any], before: Any) -> int:
    """Highest running sum of the allocations and releases that torch's profiler records, plus the highest
    of pyops' own outputs, which it does not see. The two peaks may fall apart: at most this much."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else two log lines per profile, on stderr
    if before is not None:
        before()
    gc.collect()
    set_output_cache_limit(output_cache_stats().limit)  # starts a new peak
    before_call = output_cache_stats().in_use
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
        del result
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type() == torch.autograd.DeviceType.CPU:
            current += event.nbytes()
            highest = max(highest, current)
    return highest + output_cache_stats().peak_in_use - before_call


def _resident_peak(call: Callable[[], Any], before: Any) -> int | None:
    """Growth of VmHWM; Linux lets a process reset its own mark by writing 5 to ``clear_refs``."""
    try:
        if before is not None:
            before()
        gc.collect()
        limit = output_cache_stats().limit
        set_output_cache_limit(0)  # idle outputs would be used again without growing the process
        set_output_cache_limit(limit)
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
