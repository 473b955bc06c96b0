"""Several processes, each with its part of every batch; gradients are averaged, so that all step alike.

torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

from itertools import islice

import digits
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pyops


def main(arguments: list[str] | None = None) -> list[torch.Tensor]:
    """Train in the process group, which is made if there is none; the parameters at the end."""
    steps = digits.steps_from(arguments)
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same batches everywhere
    train, test = digits.load()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    net = pyops.convert(nn.SyncBatchNorm.convert_sync_batchnorm(net))
    parallel = DistributedDataParallel(net)
    optimizer = pyops.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    for images, labels in islice(digits.batches(train, 128, epochs=10), steps):
        loss = pyops.functional.cross_entropy(parallel(images[rank::world]), labels[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"{world} processes  test accuracy {digits.accuracy(net, test):.3f}")
    if mine:
        dist.destroy_process_group()
    return [parameter.detach() for parameter in net.parameters()]


if __name__ == "__main__":
    main()
