"""What was counted and what follows from it, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..measure.case import dtype_name
from .gpus import GPUS, Gpu
from .model import Bound, Work, bound, warm_bound
from .record import Recorded

NAME_WIDTH = 44
PREAMBLE = """\
A model: no GPU has run this, no time here is measured.
Counted on the CPU from the PTX of the kernels; bounds from published rates: the microseconds that each GPU
needs at least, caches empty before each launch, and what binds it (DRAM, L1, shared memory, issue slots,
FP32, FP64, special functions, shuffles, tensor cores). Not in it: launching, latencies, waiting at barriers,
the L2 cache's bandwidth, kernels of torch's own (products of matrices, zeros), and what the assembler makes
of PTX, which can be fewer instructions or, mostly, more.
"""
LEGEND = """\
regs: per thread, as ptxas reports for sm_80 (-: unknown).  occ: resident warps, of as many as an H200 has
room for, and what keeps more out.  waves: blocks over those resident at once.  instr/el: thread instructions
per element of the case's largest tensor.  sect/req: 32-byte sectors per access of a warp (4: lanes side by
side, of 4 bytes; 16: of 16).  used: bytes asked for, of those in the sectors.  conflicts: wavefronts of
shared memory, over the fewest that the same accesses could take.  idle: lanes that instructions leave out.
barriers: of a warp.  MB: to and from DRAM.
"""
_HEADER = (
    *(
        "kernel",
        "grid",
        "block",
        "regs",
        "shared",
        "occ",
        "waves",
        "instr/el",
        "sect/req",
        "used",
        "conflicts",
    ),
    *("idle", "barriers", "MB"),
)


def lines(recorded: Recorded) -> list[str]:
    """The table of one call of a case."""
    if not recorded.works:
        return [
            f"{recorded.case.name}, {recorded.mode}",
            "  No kernel of this library ran: torch does it all.",
        ]
    dtype = dtype_name(recorded.case.dtype)
    rows = [
        (*_row(work, recorded.elements), *(_microseconds(bound(work, gpu, dtype)) for gpu in GPUS))
        for work in recorded.works
    ]
    return [
        f"{recorded.case.name}, {recorded.mode}",
        *_aligned((*_HEADER, *(f"{gpu.name} us" for gpu in GPUS)), rows),
        *_sums(recorded, dtype),
        *_notes(recorded),
    ]


def as_dict(recorded: Recorded) -> dict[str, Any]:
    """The same with all counts, for JSON."""
    dtype = dtype_name(recorded.case.dtype)
    return {
        "case": recorded.case.name,
        "mode": recorded.mode,
        "elements": recorded.elements,
        "deviation": recorded.deviation,
        "byte_floor_us": {gpu.name: 1e6 * _floor(recorded, gpu) for gpu in GPUS},
        "launches": [
            {
                **asdict(work),
                "bounds": {gpu.name: asdict(bound(work, gpu, dtype)) for gpu in GPUS},
                "warm_bounds": {gpu.name: asdict(warm_bound(work, gpu, dtype)) for gpu in GPUS},
            }
            for work in recorded.works
        ],
    }


def _row(work: Work, elements: int) -> tuple[str, ...]:
    requests = work.counts["load_requests"] + work.counts["store_requests"]
    sectors = work.counts["load_sectors"] + work.counts["store_sectors"]
    asked = work.counts["load_bytes"] + work.counts["store_bytes"]
    least = work.counts["shared_least_wavefronts"]
    threads = work.block[0] * work.block[1] * work.block[2]
    resident, limit = GPUS[0].resident_blocks(threads, work.registers, work.shared_bytes)
    occupancy = resident * -(-threads // 32) * 32 / GPUS[0].threads
    name = work.kernel if len(work.kernel) <= NAME_WIDTH else f"{work.kernel[: NAME_WIDTH - 3]}..."
    return (
        name + (f" x{work.launches}" if work.launches > 1 else ""),
        "x".join(str(n) for n in _without_ones(work.grid)),
        "x".join(str(n) for n in _without_ones(work.block)),
        str(work.registers or "-"),
        f"{work.shared_bytes / 1024:.1f}K" if work.shared_bytes else "-",
        f"{occupancy:.0%} {limit}",
        f"{work.blocks / (resident * GPUS[0].multiprocessors):.2f}" if resident else "does not fit",
        f"{work.thread_instructions / elements:.1f}",
        f"{sectors / requests:.1f}" if requests else "-",
        f"{min(asked / (32 * sectors), 1):.0%}" if sectors else "-",
        f"{work.counts['shared_wavefronts'] / least:.2f}" if least else "-",
        f"{1 - work.thread_instructions / (32 * work.warp_instructions):.0%}",
        f"{work.counts['barriers'] / work.blocks / work.launches / -(-threads // 32):.0f}",
        f"{work.dram_bytes / 1e6:.2f}",
    )


def _without_ones(sizes: Sequence[int]) -> tuple[int, ...]:
    """Without ones at the end, as they are in most launches."""
    last = max((i for i, size in enumerate(sizes) if size != 1), default=0)
    return tuple(sizes[: last + 1])


def _microseconds(least: Bound) -> str:
    return f"{least.seconds * 1e6:.2f} {least.resource}"


def _sums(recorded: Recorded, dtype: str) -> list[str]:
    found = []
    for gpu in GPUS:
        cold = sum(bound(work, gpu, dtype).seconds for work in recorded.works)
        warm = sum(warm_bound(work, gpu, dtype).seconds for work in recorded.works)
        floor = _floor(recorded, gpu)
        found.append(
            f"  {gpu.name}: at least {cold * 1e6:.2f} us, {warm * 1e6:.2f} where all that fits is in the L2 "
            f"cache; the case's bytes alone {floor * 1e6:.2f} ({floor / cold:.0%} of the bound)"
        )
    return found


def _floor(recorded: Recorded, gpu: Gpu) -> float:
    """Seconds for the bytes that the case needs, each operand once per pass."""
    return recorded.case.traffic(recorded.mode).total / gpu.dram


def _notes(recorded: Recorded) -> list[str]:
    sampled = [work for work in recorded.works if work.blocks_run < work.blocks]
    notes = []
    if sampled:
        run, most = sampled[0].blocks_run, max(work.blocks for work in sampled)
        notes.append(
            f"  Scaled: of each grid at most {run} blocks ran, of up to {most}; counts from half as many are "
            f"{recorded.deviation:.1%} apart."
        )
    if any(work.cooperative for work in recorded.works):
        notes.append(f"  Cooperative grids are as on an {GPUS[0].name}, on the other GPUs, too.")
    if recorded.problem:
        notes.append(f"  All blocks ran, since after a sample of them there was a fault: {recorded.problem}")
    if recorded.zeros:
        notes.append("  The inputs were too large to draw: all are 0.")
    return notes


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    grid = [header, *rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in grid
    ]
