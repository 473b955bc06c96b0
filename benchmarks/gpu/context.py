"""What every step of a run is given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import facts as probed
from .facts import ROOT, Facts
from .pool import Job, Row, run
from .record import Record

#: In a checkout the tests are beside this package; where they are not, the steps that use them are left out.
SUITE = ROOT / "tests"


#: How much longer than a GPU its stand-in may take.
_PATIENCE = 8.0


class LeftOut(Exception):
    """A step has nothing to do, and the message says why."""


@dataclass
class Context:
    facts: Facts
    record: Record
    logs: Path
    #: Names of ops, which are the names of their files in the suite and among the benchmarks; all when empty.
    ops: list[str]
    workers: int
    dry_run: bool
    #: Jobs of the tests that their limit cut off; the last step goes on with them.
    unfinished: list[Job] = field(default_factory=list)

    def program(self, module: str, *arguments: str) -> list[str]:
        """The command of one of our programs on the device of this run."""
        device = "dry-run" if self.dry_run else "cuda"
        return [sys.executable, "-m", module, "--device", device, *arguments]

    def tool(self, name: str) -> list[str]:
        """The command of a CUDA tool; in a dry run that of its stand-in."""
        if self.dry_run:
            return [sys.executable, "-m", "tests.gpu.stand_in_tool", name]
        path = probed.tool(name)
        if path is None:
            raise LeftOut(f"{name} was not found (PATH, CUDA_HOME)")
        return [path]

    def environment(self, **more: str) -> dict[str, str]:
        """One thread for each process, of which there are many. A dry run has Triton interpreted."""
        return {"OMP_NUM_THREADS": "1", **({"TRITON_INTERPRET": "1"} if self.dry_run else {}), **more}

    def files(self, folder: Path) -> list[str]:
        """Names of the modules of ``folder``, of the ops asked for."""
        if not folder.is_dir():
            raise LeftOut(f"{folder} is not there: not a source checkout")
        names = sorted(path.stem for path in folder.glob("[!_]*.py"))
        return [name for name in names if not self.ops or name in self.ops]

    def run(
        self,
        jobs: list[Job],
        deadline: float,
        *,
        at_once: int | None = None,
        tell: Callable[[Job, Row], None] | None = None,
    ) -> None:
        """Run ``jobs`` and record their rows."""

        def add(job: Job, row: Row) -> None:
            self.record.add({"job": job.name, **row})

        for job in jobs if self.dry_run else ():
            job.item_limit_s, job.start_limit_s = _PATIENCE * job.item_limit_s, _PATIENCE * job.start_limit_s
        folder = self.logs / self.record.steps[-1].name
        run(jobs, tell or add, root=ROOT, logs=folder, at_once=at_once or self.workers, deadline=deadline)
