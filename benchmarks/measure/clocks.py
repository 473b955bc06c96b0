"""Clocks: how long a block of calls takes on the CPU, on a GPU, and as seen by the host."""

from __future__ import annotations

import statistics
from time import perf_counter_ns
from typing import Protocol

import torch

from .contender import nothing
from .device import Call, DryRun, Gpu

#: Of CUDA's events, in seconds.
_RESOLUTION = 0.5e-6


class Clock(Protocol):
    #: Most calls in one block.
    max_calls: int
    #: What a reader must know of how a call was timed, by call.
    notes: dict[Call, str]

    def block(self, call: Call, calls: int, before_call: Call | None) -> float:
        """Seconds per call over ``calls`` calls; ``before_call`` runs before each, untimed."""
        ...


class HostClock:
    """Wall-clock time of a block of calls.

    The caches are left as the previous call left them: in training, logits were written just before.
    ``synchronize`` (CUDA) is waited for inside the timed region, once per block, so that on a GPU this
    clock gives the time per call of a stream of calls, launch overhead included.
    """

    max_calls = 1000

    def __init__(self, synchronize: Call | None = None) -> None:
        self._synchronize = synchronize or nothing
        self.notes: dict[Call, str] = {}

    def block(self, call: Call, calls: int, before_call: Call | None = None) -> float:
        synchronize = self._synchronize
        synchronize()
        if before_call is None:
            start = perf_counter_ns()
            for _ in range(calls):
                call()  # the result dies here: freeing it is part of the call's time
            synchronize()
            return (perf_counter_ns() - start) / calls / 1e9
        total = 0
        for _ in range(calls):
            before_call()
            synchronize()
            start = perf_counter_ns()
            call()
            synchronize()
            total += perf_counter_ns() - start
        return total / calls / 1e9


class GraphClock:
    """Device time of a call, without Python and a launch's way through the driver.

    A CUDA graph of several calls, before each of which the L2 cache is filled with other data, is replayed,
    and a graph of the same without the calls; the difference is theirs.

    What cannot be captured is timed call by call between events, which does see a host that falls behind;
    ``notes`` says so, by call.
    """

    max_calls = 20  # each costs a pass over the flush buffer, too

    def __init__(self, gpu: Gpu | DryRun) -> None:
        self._gpu = gpu
        self._replays: dict[tuple[Call, Call | None, int], Call] = {}
        self.notes: dict[Call, str] = {}

    def block(self, call: Call, calls: int, before_call: Call | None = None) -> float:
        if call not in self.notes:
            try:
                filled = self._replay(call, calls, before_call)
                empty = self._replay(nothing, calls, before_call)
            except RuntimeError as error:
                self.notes[call] = f"timed by events, no graph: {' '.join(str(error).split())[:200]}"
            else:
                # A call is at least as long as the clock's resolution; the difference of two could be less.
                return max(self._gpu.elapsed(filled) - self._gpu.elapsed(empty), _RESOLUTION) / calls
        return self._by_events(call, min(calls, 3), before_call)

    def _replay(self, call: Call, calls: int, before_call: Call | None) -> Call:
        """The graph of ``calls`` calls; of each call the last one asked for is kept, with its memory."""
        key = (call, before_call, calls)
        if key not in self._replays:
            for other in [k for k in self._replays if k[0] is call and call is not nothing]:
                del self._replays[other]

            def block() -> None:
                for _ in range(calls):
                    if before_call is not None:
                        before_call()
                    self._gpu.flush()
                    call()

            self._replays[key] = self._gpu.capture(block, warm_ups=1)
        return self._replays[key]

    def _by_events(self, call: Call, calls: int, before_call: Call | None) -> float:
        times = []
        for _ in range(calls):
            if before_call is not None:
                before_call()
            times.append(self._gpu.elapsed(call))
        return statistics.median(times)


def device_clock(device: torch.device) -> Clock:
    """The clock for the main table on ``device``."""
    return GraphClock(Gpu()) if device.type == "cuda" else HostClock()


def host_clock(device: torch.device) -> Clock:
    """The clock for per-call overhead on ``device``."""
    if device.type == "cuda":
        return HostClock(lambda: torch.cuda.synchronize(device))
    return HostClock()
