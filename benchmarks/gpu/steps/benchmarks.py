"""Cases that fill the GPU, pyops against torch, timed as replays of graphs.

All processes first rehearse beside each other: they check every case, and Triton compiles its kernels. Then
each in its turn has the GPU for itself.
"""

from __future__ import annotations

from ..context import Context
from ..facts import ROOT
from ..pool import Job

LIMIT_S = 170.0
CASES = ROOT / "benchmarks" / "cases"
_TIMING = "pyops.benchmarks.gpu.programs.timing"


def run(context: Context, deadline: float) -> None:
    names = ["machine", *context.files(CASES)]
    jobs = [job(context, name, "--section", "results", name) for name in names]
    together = context.workers if context.dry_run else len(jobs)  # the CPU of a dry run has memory for few
    for i in range(0, len(jobs), together):
        context.run(jobs[i : i + together], deadline, at_once=together)


def job(context: Context, name: str, *arguments: str) -> Job:
    command = context.program(_TIMING, "--wait", *arguments)
    return Job(name, command, context.environment(), item_limit_s=15.0, start_limit_s=70.0)
