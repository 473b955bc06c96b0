"""Reports from the raw JSON of a run: terminal tables, Markdown, and the list of where pyops loses.

``python -m pyops.benchmarks.report results.json [--markdown]`` renders a stored run again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure import machine

Raw = dict[str, Any]

_MODES = {"forward": "fwd", "forward+backward": "fwd+bwd", "training step": "step"}
_FIXED = ("eager", "compile")
DEFAULT = "pyops default"


@dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def subjects(result: Raw) -> list[str]:
    """Names of the pyops contenders of one result."""
    return list(result["speedup"])


def tables(raw: Raw) -> list[Table]:
    """All tables of a run; empty ones are left out."""
    made = [
        _timing_table(raw["results"]),
        _memory_table(raw["results"]),
        _overhead_table(raw["overhead"]),
        _allocator_table(raw),
    ]
    return [table for table in made if table.rows]


def _timing_table(results: list[Raw]) -> Table:
    header = ["case", "mode", "pyops", "pyops ms", "eager ms", "compile ms", "other ms"]
    header += ["speedup", "quartiles", "of ceiling"]
    rows = []
    for result in results:
        for subject in subjects(result):
            speedup = result["speedup"][subject]
            rows.append(
                [
                    result["case"],
                    _MODES[result["mode"]],
                    subject.removeprefix("pyops "),
                    *(_ms(result, name) for name in (subject, *_FIXED)),
                    _best_other(result),
                    f"{speedup['median']:.2f}x",
                    f"{speedup['q1']:.2f}-{speedup['q3']:.2f}",
                    _ceiling(result, subject),
                ]
            )
    note = (
        "Milliseconds: median per call. Speedup: fastest torch baseline / pyops, median of the "
        "per-round ratios; above 1 pyops is faster. Of ceiling: time the measured bandwidth or GEMM "
        "rate allows / pyops time; above 100 % where the data stays in the caches."
    )
    return Table("pyops against torch", header, rows, note)


def _memory_table(results: list[Raw]) -> Table:
    header = ["case", "mode", "pyops", "pyops MiB", "eager MiB", "compile MiB", "other MiB"]
    header += ["pyops resident MiB", "eager resident MiB"]
    rows = []
    for result in results:
        others = [n for n in result["peak"] if n not in _FIXED and n not in subjects(result)]
        for subject in subjects(result):
            other = min(others, key=lambda n, r=result: r["peak"][n]["allocated"], default=None)
            rows.append(
                [
                    result["case"],
                    _MODES[result["mode"]],
                    subject.removeprefix("pyops "),
                    *(_mib(result, name) for name in (subject, *_FIXED)),
                    f"{_mib(result, other)} ({other})" if other else "-",
                    *(_mib(result, name, "resident") for name in (subject, "eager")),
                ]
            )
    note = (
        "Highest memory during one call beyond what was allocated before it (gradients included). "
        "Resident: growth of the process, where the operating system tells."
    )
    return Table("Peak memory", header, rows, note)


def _overhead_table(results: list[Raw]) -> Table:
    rows = []
    for result in results:
        kernels = [name for name in subjects(result) if name != DEFAULT]
        rows.append(
            [
                result["case"],
                "with gradient" if result["mode"] == "forward+backward" else "no gradient",
                *(_us(result, name) for name in (DEFAULT, *kernels, *_FIXED)),
                *(f"{result['speedup'][name]['median']:.2f}x" for name in (DEFAULT, *kernels)),
            ]
        )
    names = [name.removeprefix("pyops ") for name in (subjects(results[0]) if results else [])]
    times = [f"{name} us" for name in (*names, *_FIXED)]
    header = ["case", "", *times, *(f"{name} speedup" for name in names)]
    note = (
        "default: as a user calls it; single ops on tiny tensors are left to torch (backends.prefers_torch). "
        "Speedups are against the faster of the baselines."
    )
    return Table("Overhead: microseconds per call at the smallest size", header, rows, note)


def _us(result: Raw, name: str) -> str:
    seconds = result["seconds"].get(name)
    return f"{seconds['median'] * 1e6:.1f}" if seconds else "-"


def _allocator_table(raw: Raw) -> Table:
    header = ["case", "mode", "pyops ms", "eager ms", "speedup", "speedup with huge pages"]
    first = {(r["case"], r["mode"]): r for r in raw["results"]}
    rows = []
    for result in raw.get("default_allocator") or []:
        for subject in subjects(result):
            paired = first.get((result["case"], result["mode"]), {}).get("speedup", {}).get(subject)
            rows.append(
                [
                    result["case"],
                    _MODES[result["mode"]],
                    *(_ms(result, name) for name in (subject, "eager")),
                    f"{result['speedup'][subject]['median']:.2f}x",
                    f"{paired['median']:.2f}x" if paired else "-",
                ]
            )
    note = f"The same cases without torch.compile, torch's allocator as it comes ({machine.THP_VARIABLE}=0)."
    return Table("Default allocator setting", header, rows, note)


def losses(raw: Raw) -> list[str]:
    """Plainly: every case in which a torch baseline is faster or needs less memory than pyops."""
    lines = []
    for result in [*raw["results"], *raw["overhead"]]:
        # The kernels at the smallest size are information: nobody gets them who does not ask.
        for subject in [DEFAULT] if DEFAULT in result["speedup"] else subjects(result):
            where = f"{result['case']} {_MODES[result['mode']]}, {subject}"
            speedup = result["speedup"][subject]
            if speedup["median"] < 0.995:  # what would print as 1.00x is a tie
                spread = "; the quartiles reach 1" if speedup["q3"] >= 1.0 else ""
                lines.append(
                    f"{where}: {speedup['median']:.2f}x against {result['best_baseline']} "
                    f"({speedup['q1']:.2f}-{speedup['q3']:.2f}{spread})"
                )
    for result in raw["results"]:
        peaks = {name: peak["allocated"] for name, peak in result["peak"].items()}
        for subject in subjects(result):
            least = min((n for n in peaks if n not in result["speedup"]), key=peaks.__getitem__)
            # Below 64 KiB the difference is bookkeeping, not a reason to choose.
            if peaks[subject] > peaks[least] + 65536:
                lines.append(
                    f"{result['case']} {_MODES[result['mode']]}, {subject}: peak memory "
                    f"{peaks[subject] / 2**20:.1f} MiB against {peaks[least] / 2**20:.1f} of {least}"
                )
    return lines


def problems(raw: Raw) -> list[str]:
    """Cases that failed, were not run, or went without one of their baselines."""
    lines = [f"{f['kind']}: {f['case']} {f['mode']}: {f['message']}" for f in raw["failures"]]
    for result in [*raw["results"], *raw["overhead"]]:
        for name, reason in result["left_out"].items():
            lines.append(f"baseline left out: {result['case']} {result['mode']}: {name}: {reason}")
    return lines


def _sections(raw: Raw) -> list[tuple[str, list[str]]]:
    lost = losses(raw) or ["nowhere in this run"]
    made = [("Where we lose", lost)]
    if problems(raw):
        made.append(("Not measured", problems(raw)))
    return made


def _heading(raw: Raw) -> list[str]:
    lines = machine.describe(raw["machine"])
    if raw["ceilings"]:
        lines.append(f"measured ceilings: {raw['ceilings']['text']}")
    lines.append(f"settings: {', '.join(f'{k} {v}' for k, v in raw['settings'].items())}")
    return lines


def markdown(raw: Raw) -> str:
    """The whole report as Markdown."""
    parts = [f"# pyops benchmarks, {raw['machine']['device']}\n"]
    parts.append("\n".join(f"- {line}" for line in _heading(raw)) + "\n")
    for table in tables(raw):
        parts.append(f"## {table.title}\n")
        lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append("\n".join(lines) + "\n")
        if table.note:
            parts.append(table.note + "\n")
    for title, lines in _sections(raw):
        parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return "\n".join(parts)


def show(raw: Raw) -> None:
    """Print the report: with rich where it is installed, as aligned text otherwise."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(plain(raw))
        return
    # Off a terminal rich would assume 80 columns and wrap every cell.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for line in _heading(raw):
        console.print(line, markup=False)
    for table in tables(raw):
        drawn = RichTable(title=table.title, caption=table.note or None, caption_justify="left")
        for index, name in enumerate(table.header):
            drawn.add_column(name, justify="left" if index < 3 else "right", no_wrap=index > 0)
        for row in table.rows:
            drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(drawn)
    for title, lines in _sections(raw):
        console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)


def plain(raw: Raw) -> str:
    """The report as aligned text, for terminals without rich."""
    parts = _heading(raw)
    for table in tables(raw):
        grid = [table.header, *table.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(table.header))]
        parts += ["", table.title]
        for row in grid:
            left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            parts.append("  ".join(left + right).rstrip())
        if table.note:
            parts.append(table.note)
    for title, lines in _sections(raw):
        parts += ["", title, *(f"  {line}" for line in lines)]
    return "\n".join(parts)


def _ms(result: Raw, name: str) -> str:
    if name not in result["seconds"]:
        return "-"
    value = result["seconds"][name]["median"] * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _best_other(result: Raw) -> str:
    others = [n for n in result["seconds"] if n not in _FIXED and n not in subjects(result)]
    if not others:
        return "-"
    best = min(others, key=lambda name: result["seconds"][name]["median"])
    return f"{_ms(result, best)} ({best})"


def _ceiling(result: Raw, subject: str) -> str:
    if result["floor_seconds"] is None:
        return "-"
    return f"{100 * result['floor_seconds'] / result['seconds'][subject]['median']:.0f} %"


def _mib(result: Raw, name: str, kind: str = "allocated") -> str:
    value = result["peak"].get(name, {}).get(kind)
    return "-" if value is None else f"{value / 2**20:.1f}"


def main(arguments: list[str]) -> int:
    raw = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if "--markdown" in arguments:
        print(markdown(raw))
    else:
        show(raw)
    return 0
