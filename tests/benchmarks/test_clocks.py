"""The clock of a GPU, on a device that does as it is told."""

from __future__ import annotations

import pytest
from pyops.benchmarks.measure.clocks import GraphClock
from pyops.benchmarks.measure.device import DryRun


class Scripted(DryRun):
    """A device whose replays take as long as they have calls in them, and that cannot capture some."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0.0

    def capture(self, call, *, warm_ups=2):
        self.work = 0.0
        call()
        seconds = self.work
        return lambda: seconds

    def elapsed(self, call):
        self.work = 0.0
        return call() or self.work

    def flush(self):
        self.work += 100.0


def test_the_clock_takes_off_what_is_not_the_call():
    device = Scripted()
    clock = GraphClock(device)

    def call():
        device.work += 2.0

    def before_call():
        device.work += 30.0

    assert clock.block(call, 5) == pytest.approx(2.0)
    assert clock.block(call, 7, before_call) == pytest.approx(2.0)
    assert not clock.notes


def test_what_cannot_be_captured_is_timed_by_events_and_says_so(monkeypatch):
    device = Scripted()

    def fails(call, *, warm_ups=2):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def call():
        device.work += 3.0

    monkeypatch.setattr(device, "capture", fails)
    clock = GraphClock(device)
    assert clock.block(call, 4) == pytest.approx(3.0)
    expected = "timed by events, no graph: operation not permitted when stream is capturing"
    assert clock.notes == {call: expected}
