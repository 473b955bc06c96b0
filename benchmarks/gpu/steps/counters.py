"""A few of ncu's counters for kernels of ten ops, at sizes that fill the GPU."""

from __future__ import annotations

import csv

from ..context import Context, LeftOut
from ..pool import Job
from ..worker import PASSED
from .benchmarks import CASES

LIMIT_S = 60.0
#: In as many processes as there are groups: ncu prints what it counted when its program ends.
GROUPS = (
    ("batch_norm", "softmax", "conv2d"),
    ("cross_entropy", "dropout", "recurrent"),
    ("embedding", "conv2d_max_pool2d", "max_pool2d", "linear_cross_entropy"),
)
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "launch__registers_per_thread",
)


def run(context: Context, deadline: float) -> None:
    ncu = context.tool("ncu")
    there = context.files(CASES)
    groups = [[op for op in group if op in there] for group in GROUPS]
    # The clocks stay as they are found: the card is not ours alone.
    options = ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
    options += ["--metrics", ",".join(METRICS), "--csv", "--page", "raw", "--log-file", "stderr"]
    jobs = [
        Job(
            f"ncu {' '.join(group)}",
            [*ncu, *options, *context.program("pyops.benchmarks.gpu.programs.counters", *group)],
            context.environment(),
        )
        for group in groups
        if group
    ]
    context.run(jobs, deadline, at_once=1)
    for job in jobs:
        log = context.logs / "counters" / f"{job.name.replace(' ', '_')}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        for kernel, counted in kernels(text):
            context.record.add({"job": job.name, "item": kernel, "outcome": PASSED, "counters": counted})
        if "ERR_NVGPUCTRPERM" in text:
            raise LeftOut("the driver lets only an administrator read the counters")


def kernels(text: str) -> list[tuple[str, dict[str, str]]]:
    """Name and counters of each kernel in ncu's output: a head, a line of units, and a line for each."""
    found, head, units = [], None, None
    for cells in csv.reader(line for line in text.splitlines() if line.startswith('"')):
        if cells[0] == "ID":
            head, units = cells, None
        elif head is not None and units is None:
            units = dict(zip(head, cells, strict=False))
        elif head is not None and units is not None:
            row = dict(zip(head, cells, strict=False))
            counted = {name: f"{row[name]} {units.get(name, '')}".strip() for name in METRICS if name in row}
            found.append((row.get("Kernel Name", "?"), counted))
    return found
