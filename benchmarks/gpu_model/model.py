"""From what a launch did to the least time that a GPU needs for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from .gpus import Gpu

SECTOR = 32  # bytes
#: Instructions that assemblers mostly do away with: copies between registers, reads of parameters.
NOT_ISSUED = "move"


class Counters(Protocol):
    """What :class:`tests.ptx_machine.machine.Counters` has, as far as it is used here."""

    warps: Mapping[str, int]
    threads: Mapping[str, int]
    load_requests: int
    load_sectors: int
    load_bytes: int
    store_requests: int
    store_sectors: int
    store_bytes: int
    shared_requests: int
    shared_wavefronts: int
    shared_least_wavefronts: int
    divergent_branches: int
    branches: int
    barriers: int
    tensor_flops: int
    touched_sectors: int
    common_sectors: int
    footprint: int
    blocks: int


@dataclass(frozen=True)
class Work:
    """What one launch does, its counts scaled to the whole grid where only some blocks ran."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    shared_bytes: int
    cooperative: bool
    blocks_run: int
    counts: dict[str, float] = field(default_factory=dict)
    warps: dict[str, float] = field(default_factory=dict)
    threads: dict[str, float] = field(default_factory=dict)
    dram_bytes: float = 0.0
    launches: int = 1  # of which this is the sum

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def warp_instructions(self) -> float:
        return sum(self.warps.values())

    @property
    def thread_instructions(self) -> float:
        return sum(self.threads.values())


def work(kernel: str, launch, counters: Counters) -> Work:
    """Of one launch, as the PTX machine recorded it."""
    grid = tuple(launch.grid)
    scale = math.prod(grid) / counters.blocks
    not_scaled = ("warps", "threads", "touched_sectors", "common_sectors", "footprint", "blocks")
    # What blocks of both halves touched, all are taken to share: weights, say. The rest each has for itself,
    # and all together at most what the tensors have.
    own = counters.touched_sectors - counters.common_sectors
    touched = SECTOR * (counters.common_sectors + own * scale)
    return Work(
        kernel,
        grid,
        tuple(launch.block),
        launch.registers,
        launch.static_shared + launch.dynamic_shared,
        launch.cooperative,
        counters.blocks,
        {
            name: getattr(counters, name) * scale
            for name in Counters.__annotations__
            if name not in not_scaled
        },
        {name: count * scale for name, count in counters.warps.items()},
        {name: count * scale for name, count in counters.threads.items()},
        touched if scale == 1 else min(touched, counters.footprint),
    )


def add_up(works: Sequence[Work]) -> list[Work]:
    """Launches of the same kernel and shape as one, in the order of their first."""
    found: dict[tuple, Work] = {}
    for one in works:
        key = (one.kernel, one.grid, one.block, one.shared_bytes)
        if key in found:
            other = found[key]
            one = replace(
                other,
                counts=_sum(other.counts, one.counts),
                warps=_sum(other.warps, one.warps),
                threads=_sum(other.threads, one.threads),
                dram_bytes=other.dram_bytes + one.dram_bytes,
                launches=other.launches + 1,
            )
        found[key] = one
    return list(found.values())


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a[name] + b[name] for name in a}


def bounds(work: Work, gpu: Gpu, dtype: str) -> dict[str, float]:
    """By resource the seconds that it is busy at least, where nothing is in the caches before.

    Blocks are whole: of 133 on 132 multiprocessors one gets two, and the work of the busiest counts. The way
    between DRAM and the L2 cache is one for all.
    """
    fewest = 1 if work.cooperative else math.ceil(work.blocks / gpu.multiprocessors)
    busiest = max(fewest / work.blocks, 1 / gpu.multiprocessors)

    def clocks(amount: float, per_clock: float) -> float:
        return amount * busiest / (per_clock * gpu.clock)

    lanes = {name: 32 * count for name, count in work.warps.items()}
    sectors = work.counts["load_sectors"] + work.counts["store_sectors"]
    issued = work.warp_instructions - work.warps[NOT_ISSUED]
    tensor_rate = gpu.tensor[dtype] / gpu.multiprocessors / gpu.clock
    return {
        "DRAM": work.dram_bytes / gpu.dram,
        "L1": clocks(SECTOR * sectors, gpu.l1_bytes),
        "shared": clocks(work.counts["shared_wavefronts"], gpu.shared_wavefronts),
        "issue": clocks(issued, gpu.issue),
        "FP32": clocks(lanes["float32"], gpu.fp32),
        "FP64": clocks(lanes["float64"], gpu.fp64),
        "special": clocks(lanes["special"], gpu.special),
        "shuffle": clocks(lanes["warp"], gpu.shuffle),
        "tensor": clocks(work.counts["tensor_flops"], tensor_rate),
    }


@dataclass(frozen=True)
class Bound:
    seconds: float
    resource: str


def bound(work: Work, gpu: Gpu, dtype: str) -> Bound:
    """The least time, and the resource that sets it."""
    by_resource = bounds(work, gpu, dtype)
    resource = max(by_resource, key=lambda name: by_resource[name])
    return Bound(by_resource[resource], resource)


def warm_bound(work: Work, gpu: Gpu, dtype: str) -> Bound:
    """The same where all that fits into the L2 cache is in it before, and stays."""
    by_resource = bounds(
        replace(work, dram_bytes=max(0.0, work.dram_bytes - work.launches * gpu.l2_bytes)), gpu, dtype
    )
    resource = max(by_resource, key=lambda name: by_resource[name])
    return Bound(by_resource[resource], resource)
