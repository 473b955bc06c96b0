"""cross_entropy(process_group=...) in real processes: three of them, and two of these by themselves."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import pyops
import pyops.functional as F
from tests.suite.processes import end_process_of_group, start_group

ROWS = 12
#: Classes of each process of the group of 2 and of 3.
SLICES = {2: (9, 2), 3: (1, 6, 4)}


def compare(group: Any, size: int, target: Tensor, **options: Any) -> None:
    """This process's loss and gradient are those that it computes alone of all classes, in float64."""
    rank, sizes = dist.get_rank(group), SLICES[size]
    g = torch.Generator().manual_seed(3)
    everything = torch.randn(ROWS, sum(sizes), dtype=torch.float64, generator=g).requires_grad_()
    weight = (
        torch.rand(sum(sizes), dtype=torch.float64, generator=g) if options.pop("weight", False) else None
    )
    weights = [None] * size if weight is None else weight.split(sizes)
    part = everything.detach().split(sizes, 1)[rank].clone().requires_grad_()
    wanted = F.cross_entropy(everything, target, weight, **options)
    found = F.cross_entropy(part, target, weights[rank], **options, process_group=group)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    wanted.sum().backward()
    found.sum().backward()
    assert everything.grad is not None
    torch.testing.assert_close(part.grad, everything.grad.split(sizes, 1)[rank], rtol=1e-11, atol=1e-12)


def refusal(group: Any, size: int, **options: Any) -> str:
    """The error of a call that at least one process makes wrongly."""
    rows = torch.zeros(2, SLICES[size][dist.get_rank(group)])
    try:
        F.cross_entropy(**{"input": rows, "target": torch.tensor([0, 3]), **options}, process_group=group)
    except (IndexError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def in_group(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    pair = dist.new_group([0, 1])
    said = []
    with pyops.use_backend("cpp"):
        for group, members in [(pair, 2), (dist.group.WORLD, 3)]:
            if rank >= members:
                continue
            target = torch.arange(ROWS) % sum(SLICES[members])
            target[5] = -100
            compare(group, members, target)
            compare(group, members, torch.zeros(ROWS, dtype=torch.int64), label_smoothing=0.1)
            compare(group, members, target, weight=True, label_smoothing=0.2, z_loss=0.1, reduction="sum")
            compare(group, members, target.clamp(min=0), weight=True, ignore_index=4, reduction="none")
            said += [
                refusal(group, members, target=torch.tensor([0, 11])),
                refusal(group, members, label_smoothing=0.1 * (rank == 1)),
                refusal(group, members, target=torch.tensor([0, 3 + rank])),
            ]
    (folder / str(rank)).write_text("\n".join(said[-3:]))
    end_process_of_group()


def test_slices_in_two_and_three_processes_equal_one(tmp_path: Path) -> None:
    processes = start_group(__name__, "in_group", 3, tmp_path)
    said = [process.communicate(timeout=1800)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, said
    refusals = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert refusals == [refusals[0]] * 3
    for line, start in zip(
        refusals[0].split("\n"),
        [
            "IndexError: cross_entropy: target must be in [0, 11) or equal ignore_index (-100), got 11",
            "ArgumentError: cross_entropy: label_smoothing must be the same in all processes",
            "ArgumentError: cross_entropy: target must be the same in all processes",
        ],
        strict=True,
    ):
        assert line.startswith(start)


def survivor(rank: int, size: int, folder: Path) -> None:
    """The last process ends where the others wait for its slice."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=600)
    )
    logits, target = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 5])
    F.cross_entropy(logits, target, process_group=dist.group.WORLD)  # all are here
    dist.barrier()
    if rank == size - 1:
        os._exit(7)
    try:
        F.cross_entropy(logits, target, process_group=dist.group.WORLD).backward()
    except RuntimeError as error:
        print(f"RuntimeError: {error}", flush=True)
        os._exit(3)
    os._exit(0)


@pytest.mark.nightly
def test_a_process_that_dies_is_an_error_to_the_others(tmp_path: Path) -> None:
    processes = start_group(__name__, "survivor", 3, tmp_path)
    said = [process.communicate(timeout=1800)[0] for process in processes]
    assert [process.returncode for process in processes] == [3, 3, 7], said
    assert all("RuntimeError" in text for text in said[:2])


if __name__ == "__main__":
    {"in_group": in_group, "survivor": survivor}[sys.argv[1]](
        int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    )
