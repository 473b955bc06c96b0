"""The committed results: two tables in CSV and, rendered from them, a report in Markdown for each machine.

``results.csv`` has a row for each case, machine and contender, ``runs.csv`` one for each run that a row names
by machine and date. Both are sorted, so that a new measurement changes its own lines only.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from .rows import Report, Row, Run, merge
from .text import markdown

T = TypeVar("T", Row, Run)

#: The results of a source checkout.
FOLDER = Path(__file__).resolve().parents[1] / "results"
_ROWS, _RUNS = "results.csv", "runs.csv"
_READ = {"str": str, "float | None": float, "int | None": int}
_DECIMALS = {"microseconds": 4, "speedup": 5, "speedup_q1": 5, "speedup_q3": 5, "of_ceiling": 5}


def read(folder: Path) -> Report:
    """The tables in ``folder``; nothing where there are none."""
    if not (folder / _ROWS).exists():
        return Report([], [])
    texts = [(folder / name).read_text(encoding="utf-8") for name in (_RUNS, _ROWS)]
    return Report(_parse(texts[0], Run), _parse(texts[1], Row))


def files(report: Report) -> dict[str, str]:
    """All files of a results folder by name: the tables and, rendered from them, the reports."""
    return {
        _ROWS: _table(report.rows, Row),
        _RUNS: _table(report.runs, Run),
        **{f"{slug(machine)}.md": markdown(report.of(machine)) for machine in report.machines()},
    }


def add(report: Report, folder: Path) -> None:
    """Put ``report`` into the tables of ``folder``, over what is older, and render the reports again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(merge(read(folder), report)).items():
        (folder / name).write_text(text, encoding="utf-8")


def slug(machine: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def csv_of(report: Report) -> str:
    """The rows of a report as CSV, as in ``results.csv``."""
    return _table(report.rows, Row)


def _table(records: list[Any], kind: type[Any]) -> str:
    names = [field.name for field in fields(kind)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        writer.writerow([_cell(*pair) for pair in zip(names, astuple(record), strict=True)])
    return out.getvalue()


def _cell(name: str, value: Any) -> Any:
    return value if value is None or name not in _DECIMALS else f"{value:.{_DECIMALS[name]}f}"


def _parse(text: str, kind: type[T]) -> list[T]:
    readers = {field.name: _READ[str(field.type)] for field in fields(kind)}
    lines = csv.DictReader(io.StringIO(text))
    return [
        # A column that an older table lacks is empty.
        kind(**{name: _value(line.get(name, ""), read) for name, read in readers.items()})
        for line in lines
    ]


def _value(cell: str, read: Callable[[str], Any]) -> Any:
    return read(cell) if cell or read is str else None
