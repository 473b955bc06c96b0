"""Every op and dtype on both backends: against float64, on a side stream, from a graph."""

from __future__ import annotations

from ..context import SUITE, Context
from ..pool import Job

LIMIT_S = 20.0


def run(context: Context, deadline: float) -> None:
    jobs = [
        Job(op, context.program("tests.gpu.smoke", op), context.environment(), item_limit_s=15.0)
        for op in context.files(SUITE / "suite" / "ops")
    ]
    context.run(jobs, deadline)
