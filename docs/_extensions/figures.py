"""What the committed results say of an op or a network, as Markdown: no figure is typed by hand."""

from __future__ import annotations

import csv
import functools
import importlib
from collections.abc import Iterable
from typing import Any

from pyops.benchmarks.measure.case import Case, dtype_name
from pyops.benchmarks.report.readme import machine
from pyops.benchmarks.report.rows import TIME, Report
from pyops.benchmarks.report.store import FOLDER, read, slug
from pyops.benchmarks.report.tables import Group, grouped

_SPACE = "\N{NO-BREAK SPACE}"  # a number stays with its unit
_MODES = {"fwd": "forward", "fwd+bwd": "forward + backward", "step": "training step"}


@functools.cache
def _report() -> tuple[Report, str, str]:
    """The results of the machine that the README shows, its name, and the name of its report."""
    report = read(FOLDER)
    run = machine(report)
    text = f"{run.machine}, torch {run.torch}, huge pages on both sides"
    return report.of(run.machine), text, f"{slug(run.machine)}.md"


def machine_line() -> str:
    """Where the figures are from, with a link to the whole report (from a page one folder deep)."""
    return f"Measured on {_report()[1]}: [the whole report](../ops/results.md)."


def whole_report() -> str:
    """The report of that machine, as it is committed, without its title."""
    text = (FOLDER / _report()[2]).read_text(encoding="utf-8")
    return text[text.index("\n") :]


def of_op(op: str) -> str:
    """A row for each case of ``benchmarks/cases/<op>.py`` that runs on a CPU: work, floor and times."""
    cases = importlib.import_module(f"pyops.benchmarks.cases.{op}").CASES
    known = {(case.op, case.label, dtype_name(case.dtype)): case for case in cases}
    groups = [g for g in grouped(_report()[0], TIME) if _key(g) in known and g.subjects]
    if not groups:
        raise ValueError(f"no results of the op {op} are committed")
    several = len({key[0] for key in known}) > 1
    return _table(
        ["case", "pass", "bytes", "FLOPs", "floor", "pyops", "torch, fastest way", "speed", "of the floor"],
        [_op_row(group, known[_key(group)], several) for group in groups],
    )


def of_networks(names: list[str]) -> str | None:
    """A row for each measured training step and inference of the networks; None where there is none."""
    groups = [
        group
        for group in grouped(_report()[0], TIME)
        if group.rows[0].op in ("training_step", "inference")
        and group.rows[0].case.split()[0] in names
        and group.subjects
    ]
    rows = []
    for group in groups:
        row, (ours, best) = group.rows[0], _ours_and_best(group)
        cells = [f"{row.op.replace('_', ' ')} {row.case} {row.dtype}", _time(ours.microseconds)]
        rows.append([*cells, f"{_time(best.microseconds)} ({best.contender})", f"{ours.speedup:.2f}x"])
    return _table(["what", "pyops", "torch or JAX, fastest way", "speed"], rows, 1) if rows else None


def of_ladder(name: str) -> str:
    """The figures that ``docs/learn/ladder.py NAME --write`` has left."""
    path = FOLDER.parents[1] / "docs" / "learn" / name / "measured.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    machine_name = rows[0]["machine"]
    cells = [[value for key, value in row.items() if key != "machine"] for row in rows]
    header = [key for key in rows[0] if key != "machine"]
    return f"{_table(header, cells, texts=1)}\n\nMeasured on {machine_name}, all versions in turns."


def _key(group: Group) -> tuple[str, str, str]:
    row = group.rows[0]
    return row.op, row.case, row.dtype


def _ours_and_best(group: Group) -> tuple[Any, Any]:
    ours = max(group.subjects.values(), key=lambda row: row.speedup or 0)
    return ours, min(group.baselines.values(), key=lambda row: row.microseconds or 0)


def _op_row(group: Group, case: Case, several: bool) -> list[str]:
    ours, best = _ours_and_best(group)
    work = case.traffic(group.rows[0].mode)
    floor = None if ours.of_ceiling is None else ours.of_ceiling * ours.microseconds
    name = " ".join(filter(None, (case.op if several else "", case.label, dtype_name(case.dtype))))
    algorithm = f" `{ours.algorithm}`" if ours.algorithm else ""
    return [
        name + algorithm,
        _MODES.get(group.mode, group.mode),
        _quantity(work.total, "B"),
        _quantity(work.flops, ""),
        _time(floor),
        _time(ours.microseconds),
        f"{_time(best.microseconds)} ({best.contender})",
        f"{ours.speedup:.2f}x",
        "-" if ours.of_ceiling is None else f"{ours.of_ceiling:.0%}",
    ]


def _quantity(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{_SPACE}{prefix}{unit}"
    return f"{value:g}{_SPACE}{unit}".rstrip()


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return "-"
    return f"{microseconds:.3g}{_SPACE}µs" if microseconds < 1000 else f"{microseconds / 1e3:.3g}{_SPACE}ms"


def _table(header: list[str], rows: Iterable[list[str]], texts: int = 2) -> str:
    """A table whose first ``texts`` columns are text; the others are numbers."""
    rule = "|" + "---|" * texts + "---:|" * (len(header) - texts)
    head, *lines = ("| " + " | ".join(cells) + " |" for cells in (header, *rows))
    return "\n".join([head, rule, *lines])
