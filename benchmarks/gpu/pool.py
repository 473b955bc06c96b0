"""Processes side by side: jobs with limits, of which a crash or a hang costs one item."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .worker import BROKEN, FAILED, PASSED

Row = dict[str, Any]
#: A line of a process, None when there are no more.
Events = queue.Queue[tuple["_Process", str | None]]

CRASHED, HUNG, CUT_OFF = "CRASHED", "HUNG", "cut off"
#: Of one job: a program that does nothing but crash must come to an end.
_MOST_RESTARTS = 8
_TAIL = 1500
#: Seconds from the end of a process to that of its output.
_FAREWELL_S = 3.0


@dataclass
class Job:
    """A command that runs items, as :mod:`.worker` tells them; one that tells none is one item itself."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    #: Seconds for one item, and for what is before the first.
    item_limit_s: float = 30.0
    start_limit_s: float = 90.0
    #: Exit codes of a process that came to its end, whatever the outcomes of its items.
    ends: tuple[int, ...] = (0,)
    #: The item that is done with, where a process takes over from another.
    after: str | None = None
    restarts: int = 0
    done: bool = False

    @property
    def waits(self) -> bool:
        """Whether it takes turns with others."""
        return "--wait" in self.command


class _Process:
    """One process of a job, and where it is."""

    def __init__(self, job: Job, root: Path, log: Path, events: Events) -> None:
        self.job, self.log = job, log
        self.item: str | None = None
        self.told: int | None = None
        self.state = "running"  # or waiting, or has turn
        self.since = time.monotonic()
        self._ended_at: float | None = None
        self.drained = False
        command = job.command + (["--again"] if job.restarts else [])
        command += ["--after", job.after] if job.after is not None else []
        self.first = job.after
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[str] = log.open("a", encoding="utf-8")
        self._log.write(f"=== {' '.join(command)}\n")
        self._log.flush()
        environment = {**os.environ, **job.environment, "PYTHONUNBUFFERED": "1"}
        path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: Events) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                events.put((self, line))
        events.put((self, None))

    def give_turn(self) -> None:
        self.state, self.since = "has turn", time.monotonic()
        try:
            print("go", file=self._process.stdin, flush=True)
        except OSError:
            return  # it has just died, which the next event tells

    def note(self, line: str) -> None:
        if self._log.closed:
            return
        self._log.write(line)
        self._log.flush()

    @property
    def ended_for(self) -> float:
        """Seconds since it ended, 0 before; a child of it may still keep its output open."""
        if self._ended_at is None and self._process.poll() is not None:
            self._ended_at = time.monotonic()
        return time.monotonic() - self._ended_at if self._ended_at is not None else 0.0

    @property
    def overdue(self) -> bool:
        limit = self.job.item_limit_s if self.item is not None else self.job.start_limit_s
        return self.state != "waiting" and time.monotonic() - self.since > limit

    def kill(self) -> None:
        """End it with all its children: compilers, profiled programs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> int:
        """Exit code, once it has ended."""
        code = self._process.wait()
        self._log.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was still to be written
                self._process.stdin.close()
        return code  # stdout is the reader's, who may still wait for its end

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]


def run(
    jobs: Sequence[Job],
    tell: Callable[[Job, Row], None],
    *,
    root: Path,
    logs: Path,
    at_once: int,
    deadline: float,
) -> None:
    """Run ``jobs``, at most ``at_once`` at a time, until ``deadline`` (of :func:`time.monotonic`).

    ``tell`` is called with a row for each item as it ends. Jobs that wait have their turns when all do.
    A process that dies or hangs is replaced, behind the item that it was at.
    """
    pool = _Pool(list(jobs), tell, root, logs)
    try:
        pool.run(at_once, deadline)
    finally:
        pool.stop()


class _Pool:
    def __init__(self, jobs: list[Job], tell: Callable[[Job, Row], None], root: Path, logs: Path) -> None:
        self.todo, self.tell, self.root, self.logs = jobs, tell, root, logs
        self.alive: list[_Process] = []
        self.events: Events = queue.Queue()

    def run(self, at_once: int, deadline: float) -> None:
        while (self.todo or self.alive) and time.monotonic() < deadline:
            while self.todo and len(self.alive) < at_once:
                self.start(self.todo.pop(0))
            if self.alive and all(process.state == "waiting" for process in self.alive):
                self.alive[0].give_turn()
            for process in self.alive:
                if process.ended_for > 2 * _FAREWELL_S:  # the child is out of reach
                    self.events.put((process, None))
                elif process.ended_for > _FAREWELL_S:
                    process.kill()
                elif process.overdue:
                    process.kill()
                    process.state = HUNG
            try:
                process, line = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is not None:
                self.read(process, line)
            elif process in self.alive:
                process.drained = True
                self.ended(process)

    def start(self, job: Job) -> None:
        log = self.logs / f"{job.name.replace(' ', '_').replace('/', '_')}.log"
        self.alive.append(_Process(job, self.root, log, self.events))

    def read(self, process: _Process, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            process.note(line)
            return
        process.since = time.monotonic()
        if "items" in row:
            process.told = row["items"]
        elif "begin" in row:
            process.item = row["begin"]
        elif "end" in row:
            process.job.after = process.item or process.job.after
            process.item = None
            self.tell(process.job, {"item": row.pop("end"), **row})
        elif "waits" in row:
            process.state = "waiting"

    def ended(self, process: _Process) -> None:
        """Record what it died of, if it did, and let another take over."""
        self.alive.remove(process)
        job, code, hung = process.job, process.close(), process.state == HUNG
        outcome = HUNG if hung else CRASHED
        if process.told is None:
            # A program that tells no items is judged by its exit code.
            row = {"outcome": PASSED if code == 0 else HUNG if hung else FAILED, "exit_code": code}
            self.tell(job, {"item": job.name, **row, **({"message": process.tail()} if code else {})})
            job.done = True
        elif process.item is not None:
            row = {"outcome": outcome, "exit_code": code, "message": process.tail()}
            self.tell(job, {"item": process.item, **row})
            job.after = process.item
            self.restart(process)
        elif code not in job.ends:
            if code != BROKEN:  # the item that broke the process has told so
                row = {"outcome": outcome, "exit_code": code, "message": process.tail()}
                self.tell(job, {"item": "between items", **row})
            self.restart(process)
        else:
            job.done = True

    def restart(self, process: _Process) -> None:
        """Let another process take over, once from one that came to no item."""
        job = process.job
        job.restarts += 1
        if job.restarts == 1 or (job.after != process.first and job.restarts <= _MOST_RESTARTS):
            self.todo.insert(0, job)
        else:
            self.tell(job, {"item": "the rest", "outcome": CUT_OFF, "message": "too many crashes"})
            job.done = True

    def stop(self) -> None:
        """End what still runs, and say what was not reached."""
        for process in self.alive:
            process.kill()
        for process in self.alive:
            self.drain(process)
            process.close()
            item = process.item or "not begun"
            self.tell(process.job, {"item": item, "outcome": CUT_OFF, "message": "the limit of the step"})
        for job in self.todo:
            self.tell(
                job, {"item": "all", "outcome": CUT_OFF, "message": "not started: the limit of the step"}
            )
        self.alive.clear()
        self.todo.clear()

    def drain(self, process: _Process) -> None:
        """Read what a killed process had told before, if no child of it keeps its output open."""
        end = time.monotonic() + _FAREWELL_S
        while not process.drained and time.monotonic() < end:
            try:
                other, line = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                other.drained = True
            else:
                self.read(other, line)
