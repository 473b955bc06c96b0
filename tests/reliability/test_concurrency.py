"""Every op in company: the bits of a call do not depend on who else calls, on how many threads share it, on
the process it runs in, or on when it is run again."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

import pyops
from tests.suite.processes import run_python

from .workloads import OURS, WORKLOADS


@pytest.fixture(autouse=True)
def _own_kernels(threads: None) -> Iterator[None]:
    """For tensors of any size."""
    with pyops.use_backend("cpp"):
        yield


def digest(results: list[Tensor]) -> str:
    found = hashlib.sha256()
    for t in results:
        found.update(t.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def bits(name: str) -> str:
    """Of the outputs and gradients of one call of a function."""
    return digest(WORKLOADS[name].run(WORKLOADS[name].tensors()))


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What one thread finds with nobody beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pyops.use_backend("cpp"):
        found = {name: bits(name) for name in WORKLOADS}
    torch.set_num_threads(before)
    return found


def test_the_table_has_every_public_function() -> None:
    assert set(WORKLOADS) == set(pyops.functional.__all__)


@pytest.mark.parametrize("count", [2, 3])
def test_same_bits_for_every_number_of_threads(alone: dict[str, str], count: int) -> None:
    torch.set_num_threads(count)
    assert {name: bits(name) for name in WORKLOADS} == alone


def test_same_bits_from_several_python_threads(alone: dict[str, str]) -> None:
    """Each with all functions in an order of its own, so that different ones run beside each other."""
    names = list(WORKLOADS)
    start = threading.Barrier(3)

    def work(worker: int) -> dict[str, str]:
        torch.set_num_threads(1 + worker % 2)
        mine = names[worker * 15 :] + names[: worker * 15]
        with pyops.use_backend("cpp"):
            start.wait(600)
            return {name: bits(name) for name in mine}

    with ThreadPoolExecutor(3) as pool:
        assert all(found == alone for found in pool.map(work, range(3)))


def test_backward_of_one_graph_from_several_threads() -> None:
    """The second of two took gradients that forward had written and that the first had given away."""
    for name, workload in WORKLOADS.items():
        tensors = workload.tensors()
        outputs = [o for o in workload.outputs(OURS, tensors) if o.requires_grad]
        upstream = [torch.ones_like(o) for o in outputs]
        leaves = [t for t in tensors.values() if t.requires_grad]
        start = threading.Barrier(2)

        def backward(
            _: int, graph: tuple = (outputs, leaves, upstream), start: threading.Barrier = start
        ) -> str:
            start.wait(600)
            return digest(list(torch.autograd.grad(*graph, retain_graph=True)))

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(backward, range(2))
        assert first == second == backward_alone(outputs, leaves, upstream), name


def backward_alone(outputs: list[Tensor], leaves: list[Tensor], upstream: list[Tensor]) -> str:
    return digest(list(torch.autograd.grad(outputs, leaves, upstream)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_same_bits_when_checkpointed(alone: dict[str, str], reentrant: bool) -> None:
    for name, workload in WORKLOADS.items():
        tensors = workload.tensors()
        leaves = [t for t in tensors.values() if t.requires_grad]

        def call(*values: Tensor, workload=workload, names=tuple(tensors)) -> tuple[Tensor, ...]:
            return workload.outputs(OURS, dict(zip(names, values, strict=True)))

        outputs = checkpoint(call, *tensors.values(), use_reentrant=reentrant)
        outputs = [o for o in outputs if o.requires_grad]
        upstream = [torch.ones_like(o) if o.dim() == 0 else o.detach() / 2 for o in outputs]
        torch.autograd.backward(outputs, upstream)
        assert digest([*(o.detach() for o in outputs), *(t.grad for t in leaves)]) == alone[name], name


class _Call(torch.nn.Module):
    """A function as a module, which is what is exported."""

    def __init__(self, name: str, tensors: list[str]) -> None:
        super().__init__()
        self.workload, self.tensors = WORKLOADS[name], tensors

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.workload.outputs(OURS, dict(zip(self.tensors, values, strict=True)))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_same_bits_when_exported() -> None:
    for name, workload in WORKLOADS.items():
        tensors = {key: t.detach() for key, t in workload.tensors().items()}
        values = tuple(tensors.values())
        program = torch.export.export(_Call(name, list(tensors)), values, strict=False)
        found, wanted = program.module()(*values), workload.outputs(OURS, tensors)
        assert digest(list(found)) == digest(list(wanted)), name


class _Bits(Dataset):
    """The bits of one function, found in the worker that is asked."""

    def __len__(self) -> int:
        return len(WORKLOADS)

    def __getitem__(self, index: int) -> tuple[str, str, int]:
        name = list(WORKLOADS)[index]
        return name, bits(name), os.getpid()


_WORKERS = """
import os, torch, pyops
from torch.utils.data import DataLoader
from tests.reliability.test_concurrency import _Bits, bits
torch.set_num_threads(2)
with pyops.use_backend("cpp"):
    bits("linear")
    workers = set()
    how = {"num_workers": 2, "multiprocessing_context": "fork"}
    for name, value, worker in DataLoader(_Bits(), batch_size=None, **how):
        workers.add(worker)
        print(name, value)
assert len(workers) == 2 and os.getpid() not in workers
"""


def test_same_bits_in_forked_workers(alone: dict[str, str]) -> None:
    """They are forked after their parent has used its threads, which a fork does not copy.

    The parent is a process of its own: where autograd has threads, torch allows no backward in a fork.
    """
    lines = run_python("-W", "ignore", "-c", _WORKERS).stdout.splitlines()
    assert dict(line.split() for line in lines) == alone


_FORKS = """
import os, sys, threading, time

import torch, pyops
from pyops import functional as F
torch.set_num_threads(1)
pyops.memory.set_output_cache_limit(1)  # memory is mapped and given back under the lock
x = torch.ones(2048, 2048)

def forever():
    while True:
        F.softmax(x, 1)

for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
for _ in range(8):
    child = os.fork()
    if child == 0:
        os._exit(0 if F.softmax(x[:512], 1).shape == (512, 2048) else 1)
    for _ in range(int(sys.argv[1])):  # of 10 ms; not a time, which passes while a process is held up as well
        if (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
            break
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        print("a forked process waited for a lock that a thread of its parent held", flush=True)
    if ended[1] != 0 or ended == (0, 0):
        os._exit(1)
os._exit(0)
"""


def test_a_fork_while_another_thread_was_allocating_hung() -> None:
    run_python("-c", _FORKS, "30000", environment={"PYOPS_BACKEND": None})
