"""Peak memory of the benchmark's calls and steps, in bytes of torch's allocator: not above torch's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from pyops.benchmarks import peaks
from pyops.benchmarks.measure.memory import Allocation, allocated_at_peak
from torch import Tensor

import pyops

_ALL = {f"{case.name} {mode}": (case, mode) for case, mode in peaks.variants([])}
#: Those that were above torch's, or that are nearest to it, as far as a call takes milliseconds and what it
#: allocates does not depend on the CPU.
_QUICK = (
    *(f"{op} [35, 32, 28] -> 256 float32 forward+backward" for op in ("rnn_tanh", "gru")),
    "lstm [35, 32, 28] -> 256 packed float32 forward+backward",
    "training_step mlp [256, 1, 28, 28] float32 training step",
    "training_step rnn [32, 35] float32 training step",
    "inference mlp [256, 1, 28, 28] float32 forward",
    "layer_norm [4096, 768] float32 forward",
    "layer_norm [4096, 768] float32 forward+backward",
    "layer_norm [4096, 768] bfloat16 forward+backward",
    "nll_loss [4096, 1000] float32 forward+backward",
)


def _choices() -> list[Any]:
    unknown = set(_QUICK) - _ALL.keys()
    assert not unknown, unknown
    return [pytest.param(n, marks=() if n in _QUICK else pytest.mark.nightly) for n in _ALL]


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process with torch's own allocator: the machine for PTX, once in use, puts another in its place."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def _measured(name: str) -> peaks.Peaks:
    return peaks.measure(*_ALL[name])


@pytest.mark.parametrize("name", _choices())
def test_the_peak_is_not_above_torchs(name: str, fresh: ProcessPoolExecutor) -> None:
    found = fresh.submit(_measured, name).result()
    assert not found.is_above, f"{found.excess} bytes more: {found.ours}"


def _of_a_call_that_drops_memory() -> list[Allocation]:
    def call() -> Tensor:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first
        third = torch.empty(400, dtype=torch.uint8)
        del second, third
        return torch.empty(1200, dtype=torch.uint8)

    return allocated_at_peak(call)


def test_what_a_call_drops_before_its_peak_is_not_counted(fresh: ProcessPoolExecutor) -> None:
    found = fresh.submit(_of_a_call_that_drops_memory).result()
    assert [a.bytes for a in found] == [1000, 500]
    assert all("aten::empty" in a.calls for a in found)


def _of_two_large_outputs() -> list[Allocation]:
    x = torch.randn(1 << 19)
    with pyops.use_backend("cpp"):
        limit = pyops.memory.output_cache_stats().limit
        found = allocated_at_peak(lambda: pyops.functional.relu(pyops.functional.gelu(x)))
    assert pyops.memory.output_cache_stats().limit == limit
    return found


def test_large_outputs_of_ours_are_counted_where_they_are_allocated(fresh: ProcessPoolExecutor) -> None:
    """They come from a cache that torch's allocator knows nothing of."""
    assert [a.bytes for a in fresh.submit(_of_two_large_outputs).result()] == [2 << 20, 2 << 20]
