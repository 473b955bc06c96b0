"""What a report is made of: a row for each case and contender, and the runs that the rows come from.

Raw results (``--json``) hold every sample; this is what of them is kept in ``results`` and shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

Raw = dict[str, Any]
#: What the rows of one case and mode have in common.
Key = tuple[str, str, str, str, str, str]

TIME, OVERHEAD, ALLOCATOR = "time", "overhead", "default allocator"
BESIDE, FIRST_STEP, SIZES = "beside neighbours", "first step", "sizes"
SECTIONS = (TIME, BESIDE, OVERHEAD, SIZES, ALLOCATOR, FIRST_STEP)
MODES = ("forward", "forward+backward", "training step")
EAGER, COMPILE = "eager", "compile"
#: A case that the time limit cut off: not a result, and no reason to forget an older one.
NOT_STARTED = "not started"


@dataclass(frozen=True)
class Run:
    """The machine, the versions and the settings of one run, as text."""

    machine: str
    date: str
    commit: str
    device: str
    cpu: str
    cores: str
    threads: str
    memory_gib: str
    load_average: str
    gpu: str
    gpu_capability: str
    gpu_multiprocessors: str
    gpu_memory_gib: str
    gpu_l2_mib: str
    driver: str
    cuda: str
    triton: str
    pyops: str
    pyops_libraries: str
    pyops_backends: str
    torch: str
    torch_cpu_capability: str
    python: str
    platform: str
    thp_allocator: str
    thp_kernel: str
    ceilings: str
    settings: str
    cpu_features: str


@dataclass(frozen=True)
class Row:
    """One contender in one case. Without a contender: the case as a whole, and in ``note`` why it failed.

    The speedup is that of pyops over the fastest baseline, so baselines have none. ``of_ceiling`` is the time
    that the machine allows, divided by the time taken.
    """

    machine: str
    section: str
    op: str
    case: str
    dtype: str
    mode: str
    contender: str
    microseconds: float | None = None
    speedup: float | None = None
    speedup_q1: float | None = None
    speedup_q3: float | None = None
    of_ceiling: float | None = None
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    algorithm: str = ""
    note: str = ""
    date: str = ""

    @property
    def key(self) -> Key:
        return (self.machine, self.section, self.op, self.case, self.dtype, self.mode)

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.op, self.case, self.dtype)))


@dataclass(frozen=True)
class Report:
    """Runs, and their rows in order."""

    runs: list[Run]
    rows: list[Row]

    def machines(self) -> list[str]:
        return sorted({run.machine for run in self.runs})

    def of(self, machine: str) -> Report:
        """What was measured on one machine."""
        return Report(
            [run for run in self.runs if run.machine == machine],
            [row for row in self.rows if row.machine == machine],
        )


def machine_class(facts: Raw) -> str:
    """What machines have in common whose results replace each other: the GPU, or the CPU as torch sees it."""
    if "gpu" in facts:
        return str(facts["gpu"])
    return f"{facts['cpu']} {facts['cores']} cores {facts['torch_cpu_capability']}"


def from_raw(raw: Raw) -> Report:
    """The rows of one run's raw results."""
    facts = {**raw["machine"], "machine": machine_class(raw["machine"]), "settings": raw["settings"]}
    facts["pyops_libraries"] = list(facts["pyops_libraries"].values())
    facts["ceilings"] = (raw["ceilings"] or {}).get("text", "")
    run = Run(**{field.name: _text(facts.get(field.name)) for field in fields(Run)})
    sections = {
        "results": TIME,
        "overhead": OVERHEAD,
        "sizes": SIZES,
        "default_allocator": ALLOCATOR,
        "first_step": FIRST_STEP,
    }
    results = [(section, result) for name, section in sections.items() for result in raw.get(name, [])]
    results += [(BESIDE, _beside(result)) for result in raw["results"] if result.get("beside")]
    rows = [row for section, result in results for row in _rows(run, section, result)]
    for failure in raw["failures"]:
        note = f"{failure['kind']}: {failure['message']}"
        op, case, dtype = _parts(failure["case"])
        section = sections[failure.get("section", "results")]
        rows.append(Row(run.machine, section, op, case, dtype, failure["mode"], "", note=note, date=run.date))
    return Report([run], sorted(rows, key=_order))


def merge(*reports: Report) -> Report:
    """Of every case on every machine the newest measurement; of two as old the one given later."""
    newest: dict[Key, list[Row]] = {}
    for report in reports:
        for key, group in groupby(sorted(report.rows, key=_order), key=lambda row: row.key):
            rows = [row for row in group if not row.note.startswith(NOT_STARTED)]
            if rows and (key not in newest or rows[0].date >= newest[key][0].date):
                newest[key] = rows
    rows = sorted((row for group in newest.values() for row in group), key=_order)
    needed = {(row.machine, row.date) for row in rows}
    runs = {(run.machine, run.date): run for report in reports for run in report.runs}
    return Report([runs[which] for which in sorted(needed)], rows)


def _beside(result: Raw) -> Raw:
    """The result of the rounds beside neighbours; what is not of those rounds stands with the others."""
    return {**result, **result["beside"], "peak": {}, "left_out": {}, "algorithm": {}, "notes": {}}


def _rows(run: Run, section: str, result: Raw) -> list[Row]:
    key = (run.machine, section, *_parts(result["case"]), result["mode"])
    rows = []
    for contender, seconds in result["seconds"].items():
        speedup = result["speedup"].get(contender)
        floor, peak = result["floor_seconds"], result["peak"].get(contender, {})
        row = Row(
            *key,
            contender,
            microseconds=round(seconds["median"] * 1e6, 4),
            speedup=round(speedup["median"], 5) if speedup else None,
            speedup_q1=round(speedup["q1"], 5) if speedup else None,
            speedup_q3=round(speedup["q3"], 5) if speedup else None,
            of_ceiling=round(floor / seconds["median"], 5) if speedup and floor else None,
            peak_bytes=peak.get("allocated"),
            resident_bytes=peak.get("resident"),
            algorithm=result.get("algorithm", {}).get(contender, ""),
            note=result.get("notes", {}).get(contender, ""),
            date=run.date,
        )
        rows.append(row)
    for contender, reason in result["left_out"].items():
        rows.append(Row(*key, contender, note=f"left out: {reason}", date=run.date))
    return rows


def _parts(name: str) -> tuple[str, str, str]:
    """Op, label and dtype of a case's name."""
    op, _, rest = name.partition(" ")
    label, _, dtype = rest.rpartition(" ")
    return op, label, dtype


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _order(row: Row) -> tuple[Any, ...]:
    rank = (not row.contender.startswith("pyops"), row.contender != EAGER, row.contender != COMPILE)
    place = SECTIONS.index(row.section), row.op, _natural(row.case), row.dtype, row.mode
    return (row.machine, *place, rank, row.contender)


def _natural(text: str) -> list[tuple[int, str]]:
    """Numbers in ``text`` sort by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
