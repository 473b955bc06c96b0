"""What a run leaves behind, written as it comes: ``results.jsonl``, ``report.md`` and ``logs.tar.gz``.

A run that is killed has told everything up to its last line.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .facts import Facts
from .pool import CRASHED, CUT_OFF, HUNG
from .worker import FAILED, PASSED

Row = dict[str, Any]

RESULTS, REPORT, LOGS = "results.jsonl", "report.md", "logs.tar.gz"
LEFT_OUT = "left out"
_BAD = (FAILED, CRASHED, HUNG)
_REPORT_EVERY_S = 5.0
_MOST_FAILURES = 60
_PER_FAILURE = 600  # characters


@dataclass
class Step:
    """How far a step is."""

    name: str
    limit_s: float
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    left_out: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def told(self) -> str:
        """How many items ended how."""
        return self.left_out or ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.counts.items()))

    @property
    def state(self) -> str:
        if self.left_out:
            return LEFT_OUT
        if self.seconds is None:
            return "running"
        if any(self.counts[bad] for bad in _BAD):
            return FAILED
        return CUT_OFF if self.counts[CUT_OFF] else PASSED


class Record:
    def __init__(self, folder: Path, logs: Path, facts: Facts) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.logs, self.facts = folder, logs, facts
        self.steps: list[Step] = []
        self.rows: list[Row] = []
        self._file = (folder / RESULTS).open("w", encoding="utf-8")
        self._reported = 0.0
        self._write({"step": "facts", **facts})

    @property
    def failed(self) -> bool:
        return any(step.state == FAILED for step in self.steps)

    def begin(self, name: str, limit_s: float) -> None:
        self.steps.append(Step(name, limit_s))
        self.report()

    def leave_out(self, name: str, reason: str) -> None:
        self.steps.append(Step(name, 0.0, seconds=0.0, left_out=reason))
        self._write({"step": name, "outcome": LEFT_OUT, "message": reason})
        self.report()

    def add(self, row: Row) -> None:
        """A row of the step that runs."""
        step = self.steps[-1]
        row = {"step": step.name, **row}
        step.counts[row["outcome"]] += 1
        self.rows.append(row)
        self._write(row)
        if row["outcome"] in _BAD:
            first = (row.get("message") or "").strip().splitlines()[-1:] or [""]
            print(f"  {row['outcome']}: {row['job']}: {row['item']}: {first[0][:160]}", flush=True)
        if time.monotonic() - self._reported > _REPORT_EVERY_S:
            self.report()

    def end(self, left_out: str = "") -> Step:
        """The step that runs is over; ``left_out`` says why not all of it could be."""
        step = self.steps[-1]
        step.left_out = left_out
        if left_out:
            self._write({"step": step.name, "outcome": LEFT_OUT, "message": left_out})
        step.seconds = time.monotonic() - step.started
        self.close()
        return step

    def close(self) -> None:
        """Bring all files up to date, at the end of a step and of the run, be it before its time."""
        self.report()
        self._archive()

    def _write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _archive(self) -> None:
        """All logs so far; the old archive is there until the new one is whole."""
        partial = self.logs / LOGS
        with tarfile.open(partial, "w:gz", compresslevel=6) as archive:
            for path in sorted(self.logs.rglob("*")):
                if path.is_file() and path != partial:
                    archive.add(path, arcname=str(path.relative_to(self.logs)))
        (self.folder / LOGS).write_bytes(partial.read_bytes())
        partial.unlink()

    def report(self) -> None:
        self._reported = time.monotonic()
        facts = self.facts
        lines = [f"# pyops on {facts['gpu']}, {facts['date'][:10]}, commit {facts['commit']}", ""]
        lines += [f"- {key}: {value}" for key, value in facts.items()]
        lines += ["", "| step | outcome | seconds | limit | items |", "|---|---|---|---|---|"]
        for step in self.steps:
            seconds = "" if step.seconds is None else f"{step.seconds:.0f}"
            lines.append(
                f"| {step.name} | {step.state} | {seconds} | {step.limit_s:.0f} | {_cell(step.told)} |"
            )
        lines += self._failures() + self._times() + self._counters()
        (self.folder / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _failures(self) -> list[str]:
        bad = [row for row in self.rows if row["outcome"] in _BAD]
        lines = ["", f"## Failures ({len(bad)})"] if bad else []
        for row in bad[:_MOST_FAILURES]:
            message = (row.get("message") or "").strip()[-_PER_FAILURE:]
            title = f"{row['outcome']}: {row['step']}: {row['job']}: {row['item']}"
            lines += ["", f"{title}", "", "```", *message.splitlines(), "```"]
        if len(bad) > _MOST_FAILURES:
            lines += ["", f"{len(bad) - _MOST_FAILURES} more are in {RESULTS}."]
        return lines

    def _times(self) -> list[str]:
        """Microseconds by contender, and how many times as fast as the best of torch each of pyops is."""
        measured = [row for row in self.rows if "result" in row]
        lines = []
        for section in dict.fromkeys(row["section"] for row in measured):
            lines += ["", f"## Microseconds: {section}", "", "| case | times | speedup |", "|---|---|---|"]
            for row in measured:
                if row["section"] != section:
                    continue
                result = row["result"]
                times = ", ".join(f"{n} {s['median'] * 1e6:.1f}" for n, s in result["seconds"].items())
                ratios = ", ".join(f"{n} {s['median']:.2f}x" for n, s in result["speedup"].items())
                lines.append(f"| {_cell(result['case'])} {result['mode']} | {times} | {ratios} |")
        return lines

    def _counters(self) -> list[str]:
        counted = [row for row in self.rows if "counters" in row]
        if not counted:
            return []
        names = list(counted[0]["counters"])
        lines = ["", "## Counters", "", f"| kernel | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for row in counted:
            values = " | ".join(row["counters"].get(name, "") for name in names)
            lines.append(f"| {_cell(row['item'])[:100]} | {values} |")
        return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
