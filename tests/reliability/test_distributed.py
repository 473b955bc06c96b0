"""Two and three processes together take the steps of one; a process that dies is an error to the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import pyops
import pyops.functional as F
from tests.suite.processes import end_process_of_group, start_group

#: Of a whole batch of 12, so that 2 and 3 processes have equal shares.
BATCH, CLASSES = 12, 7


class Net(nn.Module):
    """Fused and plain layers, of images and of sequences, in float64: no rounding hides a missing part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers = pyops.nn
        self.images = nn.Sequential(
            *(layers.Conv2d(2, 6, 3, padding=1), layers.BatchNorm2d(6, activation="relu")),
            *(layers.MaxPool2d(2), layers.Conv2d(6, 4, 3), layers.SiLU(), layers.AvgPool2d(2)),
            *(nn.Flatten(), layers.Linear(16, 20, activation="gelu"), layers.LayerNorm(20)),
        )
        self.words, self.rnn = layers.Embedding(9, 5), layers.GRU(5, 20)
        self.out = layers.Linear(20, CLASSES)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        return self.out(self.images(images) + self.rnn(self.words(tokens))[0][-1])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 2, 12, 12, dtype=torch.float64, generator=g)
    return images, *(torch.randint(n, s, generator=g) for n, s in ((9, (BATCH, 4)), (CLASSES, (BATCH,))))


def train(model: nn.Module, rows: slice) -> list[float]:
    """Losses of three steps on the rows of the batch."""
    images, tokens, target = (t[rows] for t in batch())
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images, tokens.t()), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def in_group(rank: int, size: int, folder: Path) -> None:
    """One process: every way of training, and what each leaves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    share = BATCH // size
    rows = slice(rank * share, (rank + 1) * share)
    found = {}
    with pyops.use_backend("cpp"):
        ddp = pyops.nn.SyncBatchNorm.convert_sync_batchnorm(Net().double())
        losses = train(nn.parallel.DistributedDataParallel(ddp), rows)
        found["ddp"] = (losses, ddp.state_dict())
        sharded = pyops.nn.SyncBatchNorm.convert_sync_batchnorm(Net().double())
        fully_sharded(sharded, size)
        losses = train(sharded, rows)
        state = {
            k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in sharded.state_dict().items()
        }
        found["fsdp"] = (losses, state)
    torch.save(found, folder / f"{rank}.pt")
    end_process_of_group()


def fully_sharded(model: nn.Module, size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    for part in (model.images, model.rnn):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_processes_take_the_steps_of_one(tmp_path: Path, size: int, threads: None) -> None:
    processes = start_group(__name__, "in_group", size, tmp_path)
    said = [process.communicate(timeout=1800)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    torch.set_num_threads(1)
    with pyops.use_backend("cpp"):
        alone = Net().double()
        losses = train(alone, slice(None))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for way in ("ddp", "fsdp"):
        means = [sum(values) / size for values in zip(*(part[way][0] for part in parts), strict=True)]
        torch.testing.assert_close(means, losses, rtol=1e-9, atol=1e-9)
        for part in parts:
            for name, value in alone.state_dict().items():
                torch.testing.assert_close(
                    part[way][1][name], value, rtol=1e-8, atol=1e-9, msg=f"{way} {name}"
                )


def survivor(rank: int, size: int, folder: Path) -> None:
    """The first process waits for the last, which ends within a step of SyncBatchNorm."""
    from datetime import timedelta

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=600),
    )
    model = pyops.nn.SyncBatchNorm(3)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = model(x)  # all are here
    dist.barrier()
    if rank == size - 1:
        os._exit(7)
    try:
        (y.sum() + model(x).sum()).backward()
    except RuntimeError as error:
        print(f"RuntimeError: {error}", flush=True)
        os._exit(3)
    os._exit(0)


@pytest.mark.nightly
def test_a_process_that_dies_is_an_error_to_the_others(tmp_path: Path) -> None:
    """Gloo's, at once or when its time is over: what calls it neither hangs nor goes on with wrong sums."""
    processes = start_group(__name__, "survivor", 2, tmp_path)
    said = [process.communicate(timeout=1800)[0] for process in processes]
    assert [process.returncode for process in processes] == [3, 7], said
    assert "RuntimeError" in said[0]


if __name__ == "__main__":
    {"in_group": in_group, "survivor": survivor}[sys.argv[1]](
        int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    )
