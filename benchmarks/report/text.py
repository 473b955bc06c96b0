"""A report as text: on the terminal, with rich where it is installed, and in Markdown."""

from __future__ import annotations

import sys

from .rows import Report, Run
from .tables import Table, losses, means, problems, tables


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    parts = [f"# pyops benchmarks, {', '.join(report.machines())}\n"]
    parts.append("\n".join(f"- {line}" for line in heading(report)) + "\n")
    for table in tables(report):
        parts.append(f"## {table.title}\n")
        lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append("\n".join(lines) + "\n")
        if table.note:
            parts.append(table.note + "\n")
    for title, lines in _lists(report):
        parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return "\n".join(parts)


def show(report: Report) -> None:
    """Print the report: with rich where it is installed, as aligned text otherwise."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(plain(report))
        return
    # Off a terminal rich would assume 80 columns and wrap every cell.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for line in heading(report):
        console.print(line, markup=False)
    for table in tables(report):
        drawn = RichTable(title=table.title, caption=table.note or None, caption_justify="left")
        for index, name in enumerate(table.header):
            drawn.add_column(name, justify="left" if index < 3 else "right", no_wrap=index > 0)
        for row in table.rows:
            drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(drawn)
    for title, lines in _lists(report):
        console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)


def plain(report: Report) -> str:
    """The report as aligned text, for terminals without rich."""
    parts = heading(report)
    for table in tables(report):
        parts += ["", table.title, *aligned(table)]
        if table.note:
            parts.append(table.note)
    for title, lines in _lists(report):
        parts += ["", title, *(f"  {line}" for line in lines)]
    return "\n".join(parts)


def aligned(table: Table) -> list[str]:
    """The lines of a table, its first three columns to the left."""
    grid = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.header))]
    lines = []
    for row in grid:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return lines


def _lists(report: Report) -> list[tuple[str, list[str]]]:
    made = [("Where we lose", losses(report) or ["nowhere in this report"])]
    if problems(report):
        made.append(("Not measured, or not like the others", problems(report)))
    return made


def heading(report: Report) -> list[str]:
    """What the runs have in common, then a line for each with the rest."""
    described = [_describe(run) for run in report.runs]
    found = means(report)
    common = [line for line in described[0] if all(line in lines for lines in described)]
    if len(described) == 1:
        return common + found
    own = [[line for line in lines if line not in common] for lines in described]
    return common + found + [f"run {number}: {'; '.join(lines)}" for number, lines in enumerate(own, 1)]


def _describe(run: Run) -> list[str]:
    """A run as lines of text, those first that tell it from others."""
    lines = [f"measured {run.date}, load average at the start {run.load_average or 'unknown'}"]
    # (On a GPU the device does the work, and the test suite that ran just before is no neighbour.)
    if not run.gpu and float(run.load_average or 0) > 0.5:
        lines.append(
            "**NOT A QUIET MACHINE**: a smoke test, not a measurement; thread pools that wait for a core "
            "make ratios meaningless"
        )
    lines += [f"pyops {run.pyops} at {run.commit}"]
    lines += [f"CPU features: {run.cpu_features}"] if run.cpu_features else []
    lines += [f"measured ceilings: {run.ceilings}"] if run.ceilings else []
    if run.gpu:
        lines.append(
            f"GPU {run.gpu} (sm_{run.gpu_capability.replace('.', '')}, {run.gpu_multiprocessors} SMs, "
            f"{run.gpu_memory_gib} GiB, L2 {run.gpu_l2_mib} MiB), driver {run.driver}, CUDA {run.cuda}, "
            f"Triton {run.triton}"
        )
    return [
        *lines,
        f"CPU {run.cpu}, {run.cores} cores, {run.threads} threads, {run.memory_gib} GiB",
        f"{run.pyops_libraries or 'no compiled library'}; backends: {run.pyops_backends}",
        f"torch {run.torch} ({run.torch_cpu_capability}), Python {run.python}",
        run.platform,
        f"huge pages in torch's CPU allocator: {run.thp_allocator} (THP_MEM_ALLOC_ENABLE); "
        f"kernel: {run.thp_kernel or 'unknown'}",
        f"settings: {run.settings}",
    ]
