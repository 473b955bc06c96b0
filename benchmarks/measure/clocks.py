"""Clocks: how long a block of calls takes on the CPU, on a GPU, and as seen by the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Protocol

import torch

from .machine import l2_bytes

Call = Callable[[], Any]


class Clock(Protocol):
    #: Most calls in one block.
    max_calls: int

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
        self._synchronize = synchronize or _nothing

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


class EventClock:
    """Device time of each call by CUDA events, with the L2 cache overwritten before every call.

    The overwrite also gives the host a head start, so that launch overhead mostly hides behind it;
    what does not hide is really paid by whoever calls the op eagerly.
    """

    max_calls = 30  # every one of them also costs a pass over the flush buffer

    def __init__(self, device: torch.device) -> None:
        self._device = device
        size = max(2 * l2_bytes(device), 256 * 2**20)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def block(self, call: Call, calls: int, before_call: Call | None = None) -> float:
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)
        ]
        with torch.cuda.device(self._device):
            for start, end in events:
                if before_call is not None:
                    before_call()
                self._flush.zero_()
                start.record()
                call()
                end.record()
            torch.cuda.synchronize(self._device)
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def device_clock(device: torch.device) -> Clock:
    """The clock for the main table on ``device``."""
    return EventClock(device) if device.type == "cuda" else HostClock()


def host_clock(device: torch.device) -> Clock:
    """The clock for per-call overhead on ``device``."""
    if device.type == "cuda":
        return HostClock(lambda: torch.cuda.synchronize(device))
    return HostClock()


def capture(call: Call, device: torch.device) -> Call:
    """``call`` as the replay of a CUDA graph: launch overhead of the host taken out.

    The graph's outputs live as long as the returned function does.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up on a side stream, as capture requires
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


def _nothing() -> None:
    return None
