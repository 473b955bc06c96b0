"""What only a GPU can show: streams, graphs, a second device, and launches by several threads at once.

Every public function runs forward and backward in one small case. Without a GPU the same checks run with the
C++ kernels, where a stream is nothing and a graph is the call again: that keeps the checks themselves right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
from pyops.benchmarks.measure.device import DryRun, Gpu
from torch import Tensor

from tests.suite import checks
from tests.suite.backends import BACKENDS, CPP, Backend
from tests.suite.calls import Call, Results, one_case_per_function, storage_of
from tests.suite.cases import Case
from tests.suite.ops import recurrent

ON_GPUS = [b for b in BACKENDS if b.device == "cuda"]

#: About 30 ms of a GPU's time: longer than it takes to launch an op forward and backward.
BUSY_CYCLES = 50_000_000

#: With more units than a block has: its blocks wait for each other, in a cooperative launch.
IN_A_GRID = recurrent.case("in_a_grid", "lstm", 3, 20, 3, 80)

CASES = [*one_case_per_function(), IN_A_GRID]
everywhere = pytest.mark.parametrize("backend", ON_GPUS or [CPP], ids=str, indirect=True)
each_function = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_public_function_has_a_case() -> None:
    assert {case.op for case in CASES} == set(checks.OPS)


# ------------------------------------------------------------------------------------------- running a case


def contents(call: Call, draw: str) -> dict[str, Tensor]:
    """Numbers for the case, by the name of the ``draw``, in tensors of their own."""
    named = dataclasses.replace(call.case, id=f"{call.case.id}_{draw}")
    device = next(iter(call.tensors.values())).device
    return checks.on_device(named.tensors(torch.float32), str(device))


@contextmanager
def busy_stream(device: str) -> Iterator[None]:
    """A stream that has work to do before what is launched now; the default stream has more."""
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(3 * BUSY_CYCLES)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        yield


def captured(call: Call, device: str) -> Callable[[], Results]:
    """The call as a graph; what comes back replays it, and its results are the graph's own tensors."""
    return (DryRun() if device == "cpu" else Gpu()).capture(call)


# ------------------------------------------------------------------------------------------------- checks


def assert_same(expected: Results, found: Results) -> None:
    """Not to the bit: the vendor's products may differ between streams. Waits for the current one alone."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@each_function
@everywhere
def test_a_side_stream_waits_for_nothing_and_needs_no_synchronisation(backend: Backend, case: Case) -> None:
    """Inputs are made on the stream just before, by work that has not run when the op is launched."""
    call = Call(case, backend.device)
    source = contents(call, "first")
    call.fill(source)
    torch.manual_seed(0)
    expected = {k: t.clone() for k, t in call().items()}
    for t in call.inputs().values():
        storage_of(t).zero_()
    torch.manual_seed(0)
    with busy_stream(backend.device):
        call.fill(source)
        found = call()
        assert_same(expected, found)


@each_function
@everywhere
def test_a_graph_replays_forward_and_backward_with_new_contents(backend: Backend, case: Case) -> None:
    call = Call(case, backend.device)
    replay = captured(call, backend.device)
    for draw in ("first", "second"):
        call.fill(contents(call, draw))
        torch.manual_seed(0)
        expected = {k: t.clone() for k, t in call().items()}
        torch.manual_seed(0)
        assert_same(expected, replay())


@everywhere
def test_several_threads_launch_at_once(backend: Backend) -> None:
    """Each with streams of its own; dropout draws from a generator that all share."""
    calls = [Call(case, backend.device) for case in CASES if "dropout" not in case.op]
    expected = [{k: t.clone() for k, t in call().items()} for call in calls]
    if backend.device == "cuda":
        torch.cuda.synchronize()

    def run(i: int) -> None:
        stream = torch.cuda.stream(torch.cuda.Stream()) if backend.device == "cuda" else nullcontext()
        with stream:
            assert_same(expected[i], calls[i]())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, [*range(len(calls))] * 4))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@each_function
@pytest.mark.parametrize("backend", ON_GPUS, ids=str, indirect=True)
def test_tensors_of_a_device_that_is_not_the_current_one(backend: Backend, case: Case) -> None:
    with torch.cuda.device(0):
        torch.manual_seed(0)
        expected = Call(case, "cuda:0")()
        torch.manual_seed(0)
        found = Call(case, "cuda:1")()
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in found.values()} == {1}
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value.cpu())
