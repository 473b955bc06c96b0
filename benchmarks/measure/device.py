"""What a measurement asks of a GPU, all of it here, and a stand-in that does the same on the CPU.

Whoever measures or checks on a GPU takes a :class:`Gpu`. A dry run takes a :class:`DryRun` in its place and
runs every other line of the same programs: a typo shows before there is a GPU to lose time on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

Call = Callable[[], Any]

#: Backends whose kernels stand in for those of CUDA C++ in a dry run: the first of them that can be built.
STAND_INS = ("ptx", "emulated")
CUDA, DRY_RUN = "cuda", "dry-run"
_FLUSH_BYTES = 256 * 2**20


def opened(name: str) -> Gpu | DryRun:
    """The device called ``name``: ``cuda`` or ``dry-run``."""
    return {CUDA: Gpu, DRY_RUN: DryRun}[name]()


class Gpu:
    """The current CUDA device."""

    stand_in = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._flushed: torch.Tensor | None = None
        #: Whether this process had better be replaced: a capture that failed may leave torch's generators and
        #: allocator as if it went on.
        self.spent = False

    def backend(self, name: str) -> str:
        """What the backend ``name``, ``cuda`` or ``triton``, is called here, loaded and ready."""
        return name

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release_memory(self) -> None:
        """Give back what torch's allocator keeps: other processes need it."""
        torch.cuda.empty_cache()

    def broken(self) -> str | None:
        """Why nothing more can run in this process: an illegal address, say, fails every later call, too."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            return str(error).strip().splitlines()[0]
        return None

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Work inside goes to a stream of its own, after all work before and before all work behind."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream(self.device).wait_stream(side)

    def capture(self, call: Call, *, warm_ups: int = 2) -> Call:
        """``call`` as the replay of a CUDA graph, which needs nothing of Python; returns the same outputs.

        The warm-up runs on the stream of the capture: handles and workspaces of libraries belong to a stream.

        Raises:
            RuntimeError: something in ``call`` cannot be captured.
        """
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        # A capture that fails leaves its stream the current one; this brings the old one back.
        with torch.cuda.stream(torch.cuda.current_stream(self.device)):
            with torch.cuda.stream(side):
                for _ in range(warm_ups):
                    call()
            torch.cuda.synchronize(self.device)
            self.spent, spent = True, self.spent
            with torch.cuda.graph(graph, stream=side):
                outputs = call()
            self.spent = spent
        torch.cuda.synchronize(self.device)

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def elapsed(self, call: Call) -> float:
        """Seconds of the device, by events; work that is queued before hides the host's launches."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self.device):
            self.flush()
            self.flush()
            start.record()
            call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3

    def flush(self) -> None:
        """Put other data into the L2 cache, by reading, since what is written would have to be written back
        during the next call."""
        if self._flushed is None:
            self._flushed = torch.zeros(_FLUSH_BYTES // 4, device=self.device)
        self._flushed.sum()

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """A profiler that was told to wait for it counts the kernels launched inside."""
        torch.cuda.synchronize(self.device)
        torch.cuda.profiler.start()
        yield
        torch.cuda.synchronize(self.device)
        torch.cuda.profiler.stop()


class DryRun:
    """The CPU, with the CUDA kernels' stand-in and with Triton as it runs there."""

    stand_in = True
    #: Set by whoever wants to see what happens when a kernel spoils its process.
    fault: str | None = None

    def __init__(self) -> None:
        self.spent = False
        self.device = torch.device("cpu")
        self._flushed = torch.zeros(1024)

    def backend(self, name: str) -> str:
        suite = importlib.import_module("tests.suite.backends")  # with the source, not with the package
        wanted = STAND_INS if name == "cuda" else (name,)
        on_cpu = {b.name: b for b in suite.BACKENDS if b.device == "cpu" and suite.missing_reason(b) is None}
        found = next(on_cpu[name] for name in wanted if name in on_cpu)
        suite.activate(found)
        return str(found.name)

    def synchronize(self) -> None:
        return None

    def release_memory(self) -> None:
        return None

    def broken(self) -> str | None:
        return DryRun.fault

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        yield

    def capture(self, call: Call, *, warm_ups: int = 2) -> Call:
        return call

    def elapsed(self, call: Call) -> float:
        start = perf_counter()
        call()
        return perf_counter() - start

    def flush(self) -> None:
        self._flushed.sum()

    @contextmanager
    def profiled(self) -> Iterator[None]:
        yield
