"""A run's report as one HTML file that needs no other, and its rows as CSV beside it."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from . import store
from .plots import DARK, LIGHT, plots
from .rows import TIME, Raw, from_raw
from .tables import grouped, losses, mean_speedups, means, problems, tables
from .text import heading

_TEMPLATE = Path(__file__).with_name("page.html")


def write(raw: Raw, path: Path) -> None:
    """Write the page of one run's raw results to ``path``, and its rows beside it as ``.csv``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html(raw, path.with_suffix(".csv").name), encoding="utf-8")
    path.with_suffix(".csv").write_text(store.csv_of(from_raw(raw)), encoding="utf-8")


def html(raw: Raw, csv_name: str) -> str:
    """The page, which links to its rows by ``csv_name``."""
    report = from_raw(raw)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    pictures = [
        {
            "title": plot.title,
            "words": plot.words,
            "light": _data(plot.png(LIGHT)),
            "dark": _data(plot.png(DARK)),
        }
        for plot in plots(report, raw)
    ]
    cases = [row for group in grouped(report, TIME) for row in group.subjects.values()]
    wins = sum((row.speedup or 0) >= 0.995 for row in cases)
    return template.render(
        machine=", ".join(report.machines()),
        facts=[line.replace("**", "") for line in heading(report) if line not in means(report)],
        means=mean_speedups(report),
        wins=wins,
        cases=len(cases),
        pictures=pictures,
        losses=losses(report),
        problems=problems(report),
        tables=tables(report),
        csv=csv_name,
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
