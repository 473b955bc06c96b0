"""Training by several processes, started by ``torchrun``: each takes its share of every batch.

A step of N processes is the step that one process takes on the whole batch, up to rounding: gradients are
averaged by :class:`torch.nn.parallel.DistributedDataParallel`, with each share weighted by its samples, and
batch normalisation takes the statistics of all shares (except in torch's own layers on CPUs, which cannot).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import pyops.nn

from ..errors import TrainError, first_line


@dataclass(frozen=True)
class Workers:
    """The processes that train together, as one of them sees them."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that shows and writes."""
        return self.rank == 0

    def share(self, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        """This process's part of the sample numbers ``batch``, and the fraction of the batch that it is.

        No share is empty, as every process has to take part in every step: where there are fewer samples than
        processes, some take the first one and count it as nothing.
        """
        part = batch.tensor_split(self.size)[self.rank]
        return (part, len(part) / len(batch)) if len(part) else (batch[:1], 0.0)

    def wrap(self, net: nn.Module, device: torch.device) -> nn.Module:
        """``net`` with gradients averaged over the processes."""
        if self.size == 1:
            return net
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(net, device_ids=devices)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def equalize(self, net: nn.Module) -> None:
        """Give all processes the buffers of the first: each has running statistics of its own share."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)


def share_statistics(net: nn.Module, layers: str, device: torch.device) -> nn.Module:
    """``net`` with batch normalisations, of the library called ``layers``, that see all processes' shares."""
    if layers == "pyops":
        return pyops.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net


ALONE = Workers()


def leave_group() -> None:
    """Destroy the process group after everything that refers to it. Wrapped networks are in cycles of
    references, which only the garbage collector frees; nothing would destroy a group that they keep until the
    interpreter ends.
    """
    gc.collect()
    dist.destroy_process_group()


@contextmanager
def process_group(device: str) -> Iterator[tuple[Workers, str]]:
    """Join the processes that ``torchrun`` started, if it did: how they stand, and the device of this one.

    ``device`` is the one asked for; with ``"cuda"`` each process takes a GPU of its own. A process group that
    already exists is used, and not destroyed.

    Raises:
        TrainError: the processes do not find each other.
    """
    ours = not dist.is_initialized()
    if ours and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if ours:
        try:
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        except (RuntimeError, ValueError, AssertionError) as error:
            raise TrainError(f"the processes cannot train together: {first_line(error)}") from None
    try:
        yield Workers(dist.get_rank(), dist.get_world_size()), device
    finally:
        if ours:
            leave_group()
