"""The choice among a Triton kernel's tiles: timed once per problem whatever the batch, where it can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

import pyops

if reason := pyops.backends.missing_reason("triton", "cuda" if torch.cuda.is_available() else "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pyops.triton_kernels import gemm
from pyops.triton_kernels.conv2d import conv2d
from pyops.triton_kernels.tools import launch, tuning

_DEVICES = [torch.device("cuda", 0), torch.device("cuda", 1)]


class Tile(NamedTuple):
    """A candidate: ``name``, and Triton's ``num_stages``."""

    name: str
    num_stages: int = 3


A, B, C = Tile("a"), Tile("b"), Tile("c")


class FakeStream:
    """A GPU's queue: ``ready`` is when all that was put into it will be done."""

    def __init__(self) -> None:
        self.ready = 0.0


class FakeCuda:
    """What the tuner uses of ``torch.cuda``, with a clock of the CPU's and streams of two GPUs.

    It has no device-wide synchronisation, so that one would be an error.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.current = 0
        self.streams = [FakeStream(), FakeStream()]
        self.capturing = False
        self.waited: list[object] = []
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: FakeStream | None = None) -> None:
                self.stream = stream or cuda.current_stream(cuda.current)
                self.at = max(self.stream.ready, cuda.now)

            def synchronize(self) -> None:
                cuda.now = max(cuda.now, self.at)
                cuda.waited.append(self)

            def elapsed_time(self, end: Event) -> float:
                assert cuda.now >= end.at, "not yet complete"
                assert self.stream is end.stream
                return end.at - self.at

        self.Event = Event

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        previous, self.current = self.current, device.index
        yield
        self.current = previous

    def current_stream(self, device: torch.device | int) -> FakeStream:
        return self.streams[device if isinstance(device, int) else device.index]

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def _sleep(self, cycles: int) -> None:
        self.work(cycles / 2e6, 0.0)

    def work(self, on_gpu: float, on_cpu: float) -> None:
        """A launch that takes the CPU ``on_cpu`` and the current GPU ``on_gpu`` milliseconds."""
        assert not self.capturing, "a captured stream must not be timed"
        self.now += on_cpu
        stream = self.streams[self.current]
        stream.ready = max(stream.ready, self.now) + on_gpu


class Kernel:
    """Launches candidates on a device's current stream; ``cost``: milliseconds on GPU and CPU by name."""

    def __init__(self, cuda: FakeCuda, cost: dict[str, tuple[float, float]], too_large: str = "") -> None:
        self.cuda, self.cost, self.too_large = cuda, cost, too_large
        self.launched: list[Tile] = []

    def on(self, device: torch.device):
        def run(tile: Tile) -> None:
            self.launched.append(tile)
            if tile.name in self.too_large and tile.num_stages > 1:
                raise tuning.OutOfResources(300 << 10, 227 << 10, "shared memory")
            with self.cuda.device(device):
                self.cuda.work(*self.cost[tile.name])

        return run


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(tuning.torch, "cuda", fake)
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(tuning, "_too_large", set())
    return fake


# Launching b is dear, running it is cheap: what the GPU does counts.
_COST = {"a": (0.012, 0.030), "b": (0.010, 0.060), "c": (0.020, 0.010)}


@pytest.mark.parametrize("device", _DEVICES, ids=str)
def test_what_the_gpu_takes_is_timed_and_not_the_launch(cuda: FakeCuda, device: torch.device) -> None:
    kernel = Kernel(cuda, _COST)
    tuning.run_fastest("key", [A, B, C], kernel.on(device), device)
    assert kernel.launched[-1] == B
    assert tuning._milliseconds(lambda: kernel.on(device)(A), device) == pytest.approx(0.012)


def test_the_fastest_candidate_is_found_once_for_each_key_and_device(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST)
    first, second = _DEVICES
    tuning.run_fastest("key", [A, B], kernel.on(first), first)
    timed = len(kernel.launched)
    tuning.run_fastest("key", [A, B], kernel.on(first), first)
    assert kernel.launched[timed:] == [B]
    for key, device in (("key", second), ("other", first)):
        before = len(kernel.launched)
        tuning.run_fastest(key, [A, B], kernel.on(device), device)
        assert len(kernel.launched) - before == timed


def test_threads_time_one_after_the_other(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST)
    device = _DEVICES[0]
    alone = Kernel(cuda, _COST)
    tuning.run_fastest("alone", [A, B], alone.on(device), device)
    threads = [
        Thread(target=tuning.run_fastest, args=("key", [A, B], kernel.on(device), device)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernel.launched) == len(alone.launched) + 7


def test_the_tuner_waits_for_its_own_event_alone(cuda: FakeCuda) -> None:
    device = _DEVICES[0]
    tuning.run_fastest("key", [A, B], Kernel(cuda, _COST).on(device), device)
    assert len(cuda.waited) == 2  # one for each candidate; the fake knows no other way to wait


def test_nothing_is_timed_while_a_graph_is_captured_but_later(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, launched = _DEVICES[0], []
    cuda.capturing = True
    tuning.run_fastest("key", [A, B], launched.append, device)
    assert launched == [A]
    cuda.capturing = False
    kernel = Kernel(cuda, _COST)
    tuning.run_fastest("key", [A, B], kernel.on(device), device)
    assert kernel.launched[-1] == B


def test_a_single_candidate_is_not_timed(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST)
    tuning.run_fastest("key", [A], kernel.on(_DEVICES[0]), _DEVICES[0])
    assert kernel.launched == [A]


def test_without_a_clock_the_first_candidate_is_taken(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Tile] = []
    tuning.run_fastest("key", [A, B], launched.append, torch.device("cpu"))
    with launch.record_launches((9, 0)):
        tuning.run_fastest("key", [A, B], launched.append, _DEVICES[0])
    monkeypatch.setenv("PYOPS_TRITON_TUNE", "0")
    tuning.run_fastest("key", [A, B], launched.append, _DEVICES[0])
    assert launched == [A, A, A]


def test_a_kernel_that_does_not_fit_is_never_chosen(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST, too_large="b")
    for _ in range(2):
        tuning.run_fastest("key", [B, A], kernel.on(_DEVICES[0]), _DEVICES[0])
        assert kernel.launched[-1] == A
    assert kernel.launched.count(B) == 1


def test_the_next_candidate_is_taken_and_remembered_where_one_does_not_fit(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST, too_large="a")
    for _ in range(2):
        tuning.run_first("key", [A, B], kernel.on(_DEVICES[0]), _DEVICES[0])
    assert kernel.launched == [A, B, B]
    tuning.run_first("key", [A, B], kernel.on(_DEVICES[1]), _DEVICES[1])
    assert kernel.launched[3:] == [A, B]  # another GPU may have more


def test_fewer_stages_are_tried_where_no_candidate_fits(cuda: FakeCuda) -> None:
    kernel = Kernel(cuda, _COST, too_large="ab")
    for run in (tuning.run_first, tuning.run_fastest):
        kernel.launched.clear()
        run(run.__name__, [A, B], kernel.on(_DEVICES[0]), _DEVICES[0])
        assert kernel.launched[-1] == A._replace(num_stages=1)


def test_a_gpu_with_too_little_for_anything_says_so(cuda: FakeCuda) -> None:
    def run(tile: Tile) -> None:
        raise tuning.OutOfResources(300 << 10, 227 << 10, "shared memory")

    for _ in range(2):
        with pytest.raises(tuning.OutOfResources):
            tuning.run_first("key", [A, B], run, _DEVICES[0])


def test_gemm_takes_a_smaller_tile_where_shared_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with 64 KiB for a block."""
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return self

        def __call__(self, *args, BLOCK_M, BLOCK_N, BLOCK_K, num_stages, **meta):
            shared = (BLOCK_M + BLOCK_N) * BLOCK_K * 2 * num_stages
            if shared > 64 << 10:
                raise tuning.OutOfResources(shared, 64 << 10, "shared memory")
            launched.append((BLOCK_M, BLOCK_N, num_stages))

    monkeypatch.setattr(gemm, "_gemm_kernel", Kernel())
    monkeypatch.setattr(tuning, "_too_large", set())
    a = torch.empty(1024, 1024, dtype=torch.bfloat16)
    gemm.matmul(torch.empty_like(a), a, a)
    assert launched == [(64, 64, 4)]


def test_the_batch_size_does_not_bring_another_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()

    def remember(key, candidates, run, device):
        keys.add((key, tuple(candidates)))
        run(candidates[0])

    monkeypatch.setattr("pyops.triton_kernels.conv2d.correlate.run_fastest", remember)
    monkeypatch.setattr("pyops.triton_kernels.conv2d.weight.run_fastest", remember)
    w = torch.empty(64, 32, 3, 3, device="meta")
    geometry = ([1, 1], [1, 1], [1, 1], 1, 1, 0.0, 0.0)
    with launch.record_launches((9, 0)):
        for images in (128, 256, 1000):
            x = torch.empty(images, 32, 56, 56, device="meta")
            y, _ = conv2d.conv2d_forward(x, w, None, None, *geometry, False)
            conv2d.conv2d_backward(y, x, w, y, *geometry, True, True, True, False, False)
    assert len(keys) == 3  # one for each of the products
