"""The compiled libraries: used as they were brought along, built where they do not load.

They load in every Python and every torch from 2.11; the module of build facts, of one Python, is not needed.
"""

from __future__ import annotations

import os
import sys

from ..context import Context
from ..facts import ROOT
from ..pool import Job, Row
from ..worker import FAILED, PASSED

LIMIT_S = 160.0


def run(context: Context, deadline: float) -> None:
    builds = not context.dry_run and (ROOT / "setup.py").exists()
    if _loads(context, deadline, "does not load" if builds else FAILED) or not builds:
        return
    arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or context.facts["arch"]
    environment = {"PYOPS_WITH_CUDA": "1", "PYOPS_CPU_VARIANTS": "native", "TORCH_CUDA_ARCH_LIST": arch}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    context.run([Job("build", command, environment, start_limit_s=LIMIT_S)], deadline)
    _loads(context, deadline, FAILED)


def _loads(context: Context, deadline: float, otherwise: str) -> bool:
    """Whether kernels of the libraries run; ``otherwise`` is the outcome of those that do not."""
    rows: list[Row] = []
    command = context.program("pyops.benchmarks.gpu.programs.library")
    job = Job("libraries", command, context.environment())
    context.run([job], deadline, tell=lambda job, row: rows.append({"job": job.name, **row}))
    for row in rows:
        context.record.add(row if row["outcome"] == PASSED else {**row, "outcome": otherwise})
    return bool(rows) and all(row["outcome"] == PASSED for row in rows)
