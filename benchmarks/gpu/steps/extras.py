"""With the time that is left: the cost of a call, torch.compile, and the tests that their limit cut off."""

from __future__ import annotations

import time

from ..context import Context
from . import benchmarks

LIMIT_S = float("inf")
#: Of the time left, for each of the two kinds of timing; the tests have the rest.
_SHARE = 0.4


def run(context: Context, deadline: float) -> None:
    names = context.files(benchmarks.CASES)
    left = deadline - time.monotonic()
    for number, section in enumerate(("overhead", "compile"), 1):
        job = benchmarks.job(context, section, "--section", section, *names)
        context.run([job], deadline - left * (1 - _SHARE * number))
    for job in context.unfinished:
        job.restarts = 0
    context.run(context.unfinished, deadline)
