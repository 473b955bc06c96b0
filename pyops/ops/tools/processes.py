"""What ops that several processes compute together share: exchange, and agreement about arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from .checks import ArgumentError


def rank_in(function: str, group: Any) -> int:
    """This process's rank in the group."""
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{function}: process_group must be a torch.distributed.ProcessGroup that this process is of "
            f"(the default one is torch.distributed.group.WORLD), got {type(group).__name__}"
        )
    return torch.distributed.get_rank(group)


def gathered(tensor: Tensor, group: Any) -> Tensor:
    """The tensors of all processes of the group, stacked by rank."""
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, tensor, group=group)
    return torch.stack(parts)


def fingerprint(rows: Tensor | None) -> int:
    """A number that tells apart elements of other values or in another order, exact in float64."""
    if rows is None:
        return 0
    integers = torch.int64 if rows.itemsize == 8 else torch.int32
    bits = (rows if rows.dtype is torch.int64 else rows.view(integers)).long()
    odd = torch.arange(1, 2 * rows.numel() + 1, 2)
    return int(((bits + 1) * odd).sum()) & ((1 << 52) - 1)


def refuse_differences(function: str, names: Sequence[str], values: Tensor) -> None:
    """Raise unless the rows of ``values`` [processes, names] are all the same.

    It does so in every process alike: none waits for another that has left.
    """
    for name, column in zip(names, values.t().tolist(), strict=True):
        others = [rank for rank, value in enumerate(column) if str(value) != str(column[0])]  # NaN is NaN
        if others:
            raise ArgumentError(
                f"{function}: {name} must be the same in all processes of process_group, and differs between "
                f"those of rank 0 and {others[0]}"
            )
