"""compute-sanitizer: memcheck on the raw ops, racecheck on those whose kernels share tiles among threads."""

from __future__ import annotations

import re

from ..context import SUITE, Context
from ..pool import Job
from ..worker import FAILED, PASSED

LIMIT_S = 45.0
TILED = ("batch_norm", "conv2d", "conv2d_max_pool2d", "linear", "recurrent")
_FOUND = 99
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) .*")


def run(context: Context, deadline: float) -> None:
    sanitizer = context.tool("compute-sanitizer")
    ops = context.files(SUITE / "suite" / "ops")
    pairs = [("memcheck", op) for op in ops]
    pairs += [("racecheck", op) for op in ops if op in TILED or context.dry_run]
    folder = context.logs / "sanitizer"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for tool, op in pairs:
        # A process that takes over from another has a file of its own: %p is its number.
        options = ["--tool", tool, "--log-file", str(folder / f"{tool}-{op}-%p.txt"), "--print-limit", "20"]
        options += ["--error-exitcode", str(_FOUND)]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks and is refused
        command = [*sanitizer, *options, *context.program("tests.gpu.raw_ops", op)]
        # torch's allocator would hide an overrun of one tensor into the next.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        jobs.append(Job(f"{tool} {op}", command, context.environment(**more), ends=(0, _FOUND)))
    context.run(jobs, deadline)
    for job in jobs:
        _conclude(context, job)


def _conclude(context: Context, job: Job) -> None:
    """What the tool itself says, which is in its own file."""
    for path in sorted((context.logs / "sanitizer").glob(f"{job.name.replace(' ', '-')}-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = _SUMMARY.search(text)
        row = {"job": job.name, "item": "summary", "log": path.name}
        if found is None:
            context.record.add({**row, "outcome": "cut off", "message": "no summary"})
        elif int(found.group(1)):
            context.record.add({**row, "outcome": FAILED, "message": text[:1500] + "\n" + found.group()})
        else:
            context.record.add({**row, "outcome": PASSED, "message": found.group()})
