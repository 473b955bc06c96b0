"""The choice among a Triton kernel's tiles: timed once per problem whatever the batch, where it can be."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import pyops

if reason := pyops.backends.missing_reason("triton", "cuda" if torch.cuda.is_available() else "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pyops.triton_kernels.conv2d import conv2d
from pyops.triton_kernels.tools import launch, tuning

_CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A clock that can time anything, for which ``run`` returns the milliseconds; what has been timed."""
    seen: list[str] = []

    def milliseconds(run) -> float:
        seen.append("run")
        return run()

    monkeypatch.setattr(tuning, "_can_time", lambda device: True)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "_chosen", {})
    return seen


def test_the_fastest_candidate_is_found_once(timed: list[str]) -> None:
    for _ in range(2):
        assert tuning.fastest("key", [3, 1, 2], lambda c: c, _CPU) == 1
    assert len(timed) == 3
    assert tuning.fastest("other", [3, 2], lambda c: c, _CPU) == 2


def test_a_single_candidate_is_not_timed(timed: list[str]) -> None:
    assert tuning.fastest("key", [7], lambda c: c, _CPU) == 7
    assert not timed


def test_without_a_clock_the_first_candidate_is_taken() -> None:
    def run(candidate: int) -> None:
        raise AssertionError("was timed")

    assert tuning.fastest("key", [3, 1], run, _CPU) == 3
    with launch.record_launches((9, 0)):
        assert not tuning._can_time(torch.device("cuda"))


def test_a_kernel_that_does_not_fit_is_never_chosen() -> None:
    def too_large() -> None:
        raise tuning.OutOfResources(300 << 10, 227 << 10, "shared memory")

    assert tuning._milliseconds(too_large) == float("inf")


def test_the_batch_size_does_not_bring_another_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()

    def remember(key, candidates, run, device):
        keys.add((key, tuple(candidates)))
        return candidates[0]

    monkeypatch.setattr("pyops.triton_kernels.conv2d.correlate.fastest", remember)
    monkeypatch.setattr("pyops.triton_kernels.conv2d.weight.fastest", remember)
    w = torch.empty(64, 32, 3, 3, device="meta")
    geometry = ([1, 1], [1, 1], [1, 1], 1, 1, 0.0, 0.0)
    with launch.record_launches((9, 0)):
        for images in (128, 256, 1000):
            x = torch.empty(images, 32, 56, 56, device="meta")
            y, _ = conv2d.conv2d_forward(x, w, None, None, *geometry, False)
            conv2d.conv2d_backward(y, x, w, y, *geometry, True, True, True, False, False)
    assert len(keys) == 3  # one for each of the products
