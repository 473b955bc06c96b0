"""``make gpu``, or ``python -m benchmarks.gpu``: the steps of a GPU run, in order, within a budget.

The libraries, brought along or built; then smoke, the tests that need a GPU, compute-sanitizer on a sample,
benchmarks, a few of ncu's counters, and extras with the time that is left. What a step does not need the next
ones have. No network; torch, Triton, NumPy and pytest are enough.

Leaves at most eight files in a folder of ``benchmarks/results``, or of DIR with ``OUT=DIR``. Exit code: 0
when all passed or when there is no GPU, else 1.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .context import Context, LeftOut
from .facts import RESULTS, ROOT, Facts, probe
from .record import RESULTS as LINES
from .record import Record
from .steps import benchmarks, counters, extras, library, sanitizer, smoke, suite
from .worker import FAILED

STEPS = {
    "library": library,
    "smoke": smoke,
    "tests": suite,
    "sanitizer": sanitizer,
    "benchmarks": benchmarks,
    "counters": counters,
    "extras": extras,
}
BUDGET_S = 440.0
#: Kept back for the tables at the end, and below which no step is worth its start.
_RESERVE_S, _LEAST_S = 12.0, 6.0
_MOST_WORKERS = 12


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends the run by way of what ends its processes."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    begun = time.monotonic()
    given = _parser().parse_args(arguments)
    names = given.steps.split(",")
    if unknown := sorted(set(names) - set(STEPS)):
        _parser().error(f"--steps must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
    facts = probe(dry_run=given.dry_run)
    if not facts.get("gpu"):
        print(f"no CUDA GPU in sight ({facts['reason']}): nothing to do", flush=True)
        return 0
    with _terminating(), tempfile.TemporaryDirectory() as logs:
        folder = _folder(facts, given)
        record = Record(folder, Path(logs), facts)
        workers = given.workers or min(_MOST_WORKERS, facts["cores"])
        ops = given.ops.split(",") if given.ops else []
        context = Context(facts, record, Path(logs), ops, workers, given.dry_run)
        print(f"{facts['gpu']}; what happens is told in {folder}", flush=True)
        deadline = begun + given.budget - _RESERVE_S
        try:
            for name in STEPS:  # in this order whatever the order they were asked in
                if name in names:
                    _run_step(name, context, deadline)
        finally:
            record.close()
        _tables(folder, given)
    print(f"report: {folder / 'report.md'}, after {time.monotonic() - begun:.0f} s", flush=True)
    return int(record.failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--ops", default="", help="names of ops by commas (default: all)")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="seconds in all")
    parser.add_argument("--workers", type=int, metavar="N", help="processes at once")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to make the run's folder in")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="the same steps with small sizes on the CPU",
    )
    return parser


def _folder(facts: Facts, given: argparse.Namespace) -> Path:
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", facts["gpu"]).strip("-")
    return _base(given) / f"{facts['date'][:10]}-{gpu}-{facts['commit']}"


def _base(given: argparse.Namespace) -> Path:
    if given.output is not None:
        return Path(given.output)
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    return ROOT / "build" / "gpu_dry_run" if given.dry_run else RESULTS


def _run_step(name: str, context: Context, deadline: float) -> None:
    record, step = context.record, STEPS[name]
    left = deadline - time.monotonic()
    if left < _LEAST_S:
        record.leave_out(name, f"only {max(0.0, left):.0f} s were left")
        return
    limit = left if context.dry_run else min(step.LIMIT_S, left)
    print(f"\n=== {name} (limit {limit:.0f} s)", flush=True)
    record.begin(name, limit)
    left_out = ""
    try:
        step.run(context, time.monotonic() + limit)
    except LeftOut as reason:
        left_out = str(reason)
    except Exception:  # a mistake in a step; the next ones may have none
        row = {"job": name, "item": name, "outcome": FAILED, "message": traceback.format_exc()}
        record.add(row)
    done = record.end(left_out)
    print(f"=== {name}: {done.state} after {done.seconds:.0f} s: {done.told}", flush=True)


def _tables(folder: Path, given: argparse.Namespace) -> None:
    """Times go into the tables of the results, or of the run's own folder where it is taken elsewhere."""
    results = RESULTS if _base(given) == RESULTS else folder
    command = [sys.executable, "-m", "pyops.benchmarks.gpu.programs.tables", str(folder / LINES)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command += ["--results", str(results)]
    limit = None if given.dry_run else _RESERVE_S
    try:
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=limit)
    except subprocess.SubprocessError as error:
        told = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        print(f"the tables were not written: {error}\n{told}", flush=True)
