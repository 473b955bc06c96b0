"""``python -m tests.reliability.out_of_memory``: every function with too little memory, and then with enough.

A limit of the address space stands for a full machine. Each function runs forward and backward with limits
from nothing more than there is to what it needs: it returns what it did before or raises, wherever in it the
memory ends, and when there is memory again it returns the same bits.
"""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

import torch

import pyops

from .workloads import WORKLOADS, Tensors, Workload

#: What may still be mapped, in bytes.
ROOM = [room << 20 for room in (0, 1, 3, 6, 10, 16, 24, 40)]
FACTOR = 4  # of the tables' batches


def larger(workload: Workload) -> Tensors:
    """The workload's tensors with more in a batch: of parameters, which others have to match, the same."""
    kept = ("weight", "bias", "w_ih", "w_hh", "b_ih", "b_hh")
    found = {}
    for name, t in workload.tensors().items():
        along = 1 if name == "h" and t.dim() == 3 else 0  # a layer's states
        if t.dim() == 3:
            along = 1
        bigger = t.detach() if name in kept else torch.cat([t.detach()] * FACTOR, along)
        found[name] = bigger.requires_grad_(t.requires_grad)
    return found


def mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def main() -> None:
    torch.set_num_threads(2)
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    succeeded = failed = 0
    for name, workload in WORKLOADS.items():
        tensors = larger(workload)
        wanted = workload.run(tensors)
        for room in ROOM:
            pyops.memory.set_output_cache_limit(0)
            pyops.memory.set_output_cache_limit(512 << 20)
            gc.collect()
            resource.setrlimit(resource.RLIMIT_AS, (mapped() + room, unlimited[1]))
            try:
                found = workload.run(tensors)
            except (RuntimeError, MemoryError):
                found = None
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            failed, succeeded = failed + (found is None), succeeded + (found is not None)
            assert found is None or same(found, wanted), f"{name} with {room} bytes"
        assert same(workload.run(tensors), wanted), f"{name} after it had too little memory"
    print(f"{failed} calls failed, {succeeded} succeeded")
    sys.exit(failed < len(WORKLOADS) / 2 or succeeded < len(WORKLOADS))


if __name__ == "__main__":
    with pyops.use_backend("cpp"):
        main()
