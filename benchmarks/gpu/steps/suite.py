"""The tests that need a GPU and no others, a share of them for each worker; those of CUDA C++ come first."""

from __future__ import annotations

import importlib.util
import shlex

from ..context import SUITE, Context, LeftOut
from ..pool import Job

LIMIT_S = 90.0


def run(context: Context, deadline: float) -> None:
    if not importlib.util.find_spec("pytest"):
        raise LeftOut("pytest is not installed")
    if not SUITE.is_dir():
        raise LeftOut("not a source checkout")
    selection = shlex.quote(str(SUITE))
    if context.ops:
        # In a dry run the tests of one check: it is for the mistakes of this run, and CI has the tests.
        few = " and test_opcheck" if context.dry_run else ""
        names = f"({' or '.join(context.ops)}){few}"
        selection = shlex.join([str(SUITE / "test_contract.py"), "-k", names])
    jobs = []
    for number in range(context.workers):
        share = f"{number}/{context.workers}"
        command = context.program("tests.gpu.pytest_worker", "--share", share, "--select", selection)
        jobs.append(Job(f"worker {number}", command, context.environment(), item_limit_s=40.0))
    context.run(jobs, deadline)
    context.unfinished = [job for job in jobs if not job.done]
