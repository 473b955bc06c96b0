"""The cache that large outputs of the C++ CPU kernels come from.

torch's CPU allocator returns large buffers to the system as soon as a tensor dies, and the next one pays
for every page again; in a training step that costs more than most kernels do. Outputs of 1 MiB and more of
the CPU kernels are therefore kept for reuse when they die, up to a limit of idle bytes.

Storages of these outputs cannot be resized: torch lets only memory of its own allocator grow or shrink. What
frees activations by ``untyped_storage().resize_(0)``, or calls ``resize_`` on an output, needs
``set_output_cache_limit(0)``: outputs are then torch's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

torch.library.define("pyops::output_cache", "(int limit) -> (int, int, int, int)")


class OutputCacheStats(NamedTuple):
    """Bytes that may lie idle, that do, that living tensors hold, and their peak since the limit was set."""

    limit: int
    idle: int
    in_use: int
    peak_in_use: int


def output_cache_stats() -> OutputCacheStats:
    """The state of the cache.

    Raises:
        RuntimeError: the C++ CPU kernels are not loaded.
    """
    return OutputCacheStats(*torch.ops.pyops.output_cache.default(-1))


def set_output_cache_limit(limit: int) -> None:
    """Keep at most ``limit`` idle bytes (default 512 MiB); 0 turns the cache off and frees what lies idle.

    Raises:
        ValueError: ``limit`` is negative.
        RuntimeError: the C++ CPU kernels are not loaded.
    """
    if limit < 0:
        raise ValueError(f"set_output_cache_limit: limit must not be negative, got {limit}")
    torch.ops.pyops.output_cache.default(limit)
