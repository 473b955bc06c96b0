"""The few lines that speak to a GPU, in front of a ``torch.cuda`` that writes down what it is told."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import pytest
import torch
from pyops.benchmarks.measure.device import Gpu

REAL = {name: getattr(torch.cuda, name) for name in ("Stream", "Event", "graph")}


class Told(list):
    """What was done, in order, each with the stream that was the current one."""

    stream = "default"

    def add(self, what: str) -> None:
        self.append(f"{what} on {self.stream}")


class FakeStream:
    def __init__(self, told: Told, name: str) -> None:
        self.told, self.name = told, name

    def wait_stream(self, other: FakeStream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


class FakeEvent:
    def __init__(self, told: Told) -> None:
        self.told = told

    def record(self) -> None:
        self.told.add("event")

    def synchronize(self) -> None:
        self.told.append("event waited for")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 12.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Takes the place of ``torch.cuda``; arguments must suit the real signatures."""
    told = Told()

    def checked(name, *arguments, **options):
        real = REAL[name]
        inspect.signature(real.__new__ if name != "graph" else real.__init__).bind(
            None, *arguments, **options
        )

    def make_stream(*arguments, **options):
        checked("Stream", *arguments, **options)
        return FakeStream(told, "side")

    def make_event(**options):
        checked("Event", **options)
        assert options == {"enable_timing": True}
        return FakeEvent(told)

    @contextmanager
    def use(stream):
        before, told.stream = told.stream, stream.name
        yield
        told.stream = before

    @contextmanager
    def graph(cuda_graph, **options):
        checked("graph", cuda_graph, **options)
        told.stream = options["stream"].name  # as torch's, which leaves it there when the capture fails
        told.add("capture begins")
        yield
        told.add("capture ends")
        told.stream = "default"

    class Graph:
        def replay(self) -> None:
            told.add("replay")

    fakes = {
        "Stream": make_stream,
        "Event": make_event,
        "stream": use,
        "graph": graph,
        "CUDAGraph": Graph,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: FakeStream(told, told.stream),
        "synchronize": lambda device=None: told.append("synchronize"),
        "device": lambda device: use(FakeStream(told, told.stream)),
        "empty_cache": lambda: told.append("empty_cache"),
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: told.append(f"profiler {name}"))
    monkeypatch.setattr(Gpu, "flush", lambda self: told.add("flush"))
    return told


def test_a_capture_is_warmed_up_on_its_stream_and_replays_the_same_outputs(told):
    gpu = Gpu()
    outputs = iter(["warm", "captured"])

    def call():
        told.add("call")
        return next(outputs)

    replay = gpu.capture(call, warm_ups=1)
    assert told == [
        "side waits for default",
        "call on side",
        "synchronize",
        "capture begins on side",
        "call on side",
        "capture ends on side",
        "synchronize",
    ]
    assert [replay(), replay()] == ["captured", "captured"]
    assert told[-2:] == ["replay on default"] * 2
    assert not gpu.spent


def test_after_a_capture_that_fails_the_process_is_to_be_replaced(told):
    gpu = Gpu()
    calls = iter([None, RuntimeError("operation not permitted when stream is capturing")])

    def call():
        error = next(calls)
        if error:
            raise error

    with pytest.raises(RuntimeError, match="not permitted"):
        gpu.capture(call, warm_ups=1)
    assert gpu.spent


def test_time_is_between_events_behind_queued_work(told):
    assert Gpu().elapsed(lambda: told.add("call")) == 0.012
    flushes = ["flush on default"] * 2
    assert told == [*flushes, "event on default", "call on default", "event on default", "event waited for"]


def test_a_side_stream_comes_after_all_before_and_before_all_behind(told):
    with Gpu().side_stream():
        told.add("call")
    assert told == ["side waits for default", "call on side", "default waits for side"]


def test_only_what_is_inside_is_profiled(told):
    with Gpu().profiled():
        told.add("call")
    inside = ["profiler start", "call on default", "synchronize", "profiler stop"]
    assert told == ["synchronize", *inside]


def test_a_broken_gpu_tells_why(told, monkeypatch):
    gpu = Gpu()
    assert gpu.broken() is None

    def fails(device=None):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert gpu.broken() == "CUDA error: an illegal memory access was encountered"
    told.clear()
    gpu.release_memory()
    assert told == ["empty_cache"]
