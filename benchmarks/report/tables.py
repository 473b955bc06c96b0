"""Tables from rows, and the lists of where pyops loses and of what was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from .rows import ALLOCATOR, BESIDE, COMPILE, EAGER, FIRST_STEP, OVERHEAD, SIZES, TIME, Report, Row

_MODES = {"forward": "fwd", "forward+backward": "fwd+bwd", "training step": "step"}
_MEANS = {"forward+backward": "float32 fwd+bwd", "training step": "float32 training steps"}
_FIXED = (EAGER, COMPILE)
#: pyops as a user calls it, beside its kernels asked for by name.
DEFAULT = "pyops default"
#: Of its speedup alone, what a case should keep beside busy neighbours.
KEPT_BESIDE = 0.8


@dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """All that was measured for one case in one mode."""

    rows: list[Row]
    number: int  # of the run, from 1

    @property
    def name(self) -> str:
        return self.rows[0].name

    @property
    def mode(self) -> str:
        return _MODES.get(self.rows[0].mode, self.rows[0].mode)

    @cached_property
    def case_and_mode(self) -> tuple[str, ...]:
        """What its groups in several sections have in common."""
        return (self.rows[0].machine, *self.rows[0].key[2:])

    @cached_property
    def measured(self) -> dict[str, Row]:
        return {row.contender: row for row in self.rows if row.microseconds is not None}

    @property
    def subjects(self) -> dict[str, Row]:
        """The pyops contenders."""
        return {name: row for name, row in self.measured.items() if row.speedup is not None}

    @property
    def baselines(self) -> dict[str, Row]:
        return {name: row for name, row in self.measured.items() if row.speedup is None}

    @property
    def others(self) -> list[Row]:
        """Baselines without a column of their own."""
        return [row for name, row in self.baselines.items() if name not in _FIXED]


def tables(report: Report) -> list[Table]:
    """All tables of a report; empty ones are left out."""
    main = grouped(report, TIME)
    made = [
        _timing_table("pyops against torch", main),
        _beside_table(grouped(report, BESIDE), main),
        _memory_table(main),
        _overhead_table(grouped(report, OVERHEAD)),
        _sizes_table(grouped(report, SIZES)),
        _allocator_table(grouped(report, ALLOCATOR), main),
        _first_step_table(grouped(report, FIRST_STEP)),
    ]
    made = [table for table in made if table.rows]
    if len(report.runs) == 1:  # every row is of this run
        for table in made:
            place = table.header.index("run")
            for cells in (table.header, *table.rows):
                del cells[place]
    return made


def grouped(report: Report, section: str) -> list[Group]:
    """The rows of a section, those of one case in one mode together."""
    numbers = {(run.machine, run.date): number for number, run in enumerate(report.runs, 1)}
    rows = [row for row in report.rows if row.section == section]
    return [
        Group(list(group), numbers[key[0], date])
        for (key, date), group in groupby(rows, key=lambda row: (row.key, row.date))
    ]


def _timing_table(title: str, groups: list[Group]) -> Table:
    header = ["case", "mode", "pyops", "pyops ms", "eager ms", "compile ms", "other ms"]
    header += ["speedup", "quartiles", "of ceiling", "run"]
    told = any(row.algorithm for group in groups for row in group.rows)
    header += ["algorithm"] if told else []
    rows = []
    for group in groups:
        for row in group.subjects.values():
            cells = [group.name, group.mode, row.contender.removeprefix("pyops ")]
            cells += [_ms(row), *(_ms(group.measured.get(name)) for name in _FIXED)]
            cells += [_least(group.others, lambda row: row.microseconds, _ms), f"{row.speedup:.2f}x"]
            cells += [_quartiles(row), _percent(row.of_ceiling), str(group.number)]
            rows.append(cells + ([row.algorithm or "-"] if told else []))
    note = (
        "Milliseconds: median per call. Speedup: fastest torch baseline / pyops, median of the "
        "per-round ratios; above 1 pyops is faster. Of ceiling: time the measured bandwidth or GEMM "
        "rate allows / pyops time; above 100 % where the data stays in the caches."
    )
    return Table(title, header, rows, note)


def _beside_table(groups: list[Group], main: list[Group]) -> Table:
    header = ["case", "mode", "pyops", "pyops ms", "alone ms", "torch ms", "speedup", "quartiles"]
    header += ["alone", "kept", "run"]
    alone = {group.case_and_mode: group for group in main}
    rows = []
    for group in groups:
        for name, row in group.subjects.items():
            before = alone[group.case_and_mode].subjects.get(name) if group.case_and_mode in alone else None
            cells = [group.name, group.mode, name.removeprefix("pyops "), _ms(row), _ms(before)]
            cells += [_least(list(group.baselines.values()), lambda row: row.microseconds, _ms)]
            cells += [_speedup(row), _quartiles(row), _speedup(before), _percent(share_kept(row, before))]
            rows.append([*cells, str(group.number)])
    note = (
        "The same case in the same run while busy processes compete for the cores (their number: neighbours, "
        "in the settings). Kept: the speedup beside them, of that alone."
    )
    return Table("Beside busy neighbours", header, rows, note)


def share_kept(row: Row, alone: Row | None) -> float | None:
    """Of the speedup ``alone``, the share that is left."""
    return row.speedup / alone.speedup if alone is not None and row.speedup and alone.speedup else None


def _first_step_table(groups: list[Group]) -> Table:
    names = [*sorted({name for group in groups for name in group.subjects}), *_FIXED]
    rows = [
        [group.name, *(_s(group.measured.get(name)) for name in names), str(group.number)] for group in groups
    ]
    note = (
        "Seconds in a fresh process, from a network of torch's layers to the end of its first training step: "
        "pyops is imported and the network converted within, torch.compile compiles without a cache."
    )
    return Table("Time to the first step", ["case", *(f"{name} s" for name in names), "run"], rows, note)


def _memory_table(groups: list[Group]) -> Table:
    header = ["case", "mode", "pyops", "pyops MiB", "eager MiB", "compile MiB", "other MiB"]
    header += ["pyops resident MiB", "eager resident MiB", "run"]
    rows = []
    for group in groups:
        eager = group.measured.get(EAGER)
        for row in group.subjects.values():
            cells = [group.name, group.mode, row.contender.removeprefix("pyops "), _peak(row)]
            cells += [_peak(group.measured.get(name)) for name in _FIXED]
            cells += [_least(group.others, lambda row: row.peak_bytes, _peak)]
            cells += [_mib(row.resident_bytes), _mib(eager.resident_bytes if eager else None)]
            rows.append([*cells, str(group.number)])
    note = (
        "Highest memory during one call beyond what was allocated before it (gradients included). "
        "Resident: growth of the process, where the operating system tells."
    )
    return Table("Peak memory", header, rows, note)


def _overhead_table(groups: list[Group]) -> Table:
    # Older runs did not measure the default.
    names = sorted({name for group in groups for name in group.subjects}, key=lambda n: (n != DEFAULT, n))
    rows = []
    for group in groups:
        gradient = "with gradient" if group.rows[0].mode == "forward+backward" else "no gradient"
        cells = [group.name, gradient, *(_us(group.measured.get(name)) for name in (*names, *_FIXED))]
        cells += [_speedup(group.subjects.get(name)) for name in names]
        rows.append([*cells, str(group.number)])
    kernels = [name.removeprefix("pyops ") for name in names]
    header = ["case", "", *(f"{name} us" for name in (*kernels, *_FIXED))]
    header += [*(f"{name} speedup" for name in kernels), "run"]
    note = (
        "default: as a user calls it; single ops on small tensors go to torch (backends.prefers_torch). "
        "Speedups are against the faster of the baselines."
    )
    return Table("Overhead: microseconds per call at the smallest size", header, rows, note)


def _sizes_table(groups: list[Group]) -> Table:
    rows = []
    for group in groups:
        for row in group.subjects.values():
            cells = [group.name, group.mode, _us(row), _us(group.measured.get(EAGER))]
            rows.append([*cells, _speedup(row), _quartiles(row), str(group.number)])
    header = ["case", "mode", "pyops us", "eager us", "speedup", "quartiles", "run"]
    note = (
        "Microseconds per call as users call it: single ops on small tensors may be torch's own. "
        "Half a second of rounds per case, whatever the settings say."
    )
    return Table("Time against size", header, rows, note)


def _allocator_table(groups: list[Group], main: list[Group]) -> Table:
    header = ["case", "mode", "pyops ms", "eager ms", "speedup", "speedup with huge pages", "run"]
    paired = {(group.name, group.mode): group.subjects for group in main}
    rows = []
    for group in groups:
        for name, row in group.subjects.items():
            with_huge_pages = paired.get((group.name, group.mode), {}).get(name)
            cells = [group.name, group.mode, _ms(row), _ms(group.measured.get(EAGER))]
            rows.append([*cells, _speedup(row), _speedup(with_huge_pages), str(group.number)])
    note = "The same cases without torch.compile, torch's allocator as it comes (THP_MEM_ALLOC_ENABLE=0)."
    return Table("Default allocator setting", header, rows, note)


def losses(report: Report) -> list[str]:
    """Plainly: every case in which a torch baseline is faster or needs less memory than pyops."""
    main = grouped(report, TIME)
    small = [*grouped(report, OVERHEAD), *grouped(report, SIZES)]
    lines = [line for group in (*main, *small) for line in _slower(group)]
    lines += [line for group in main for line in _larger(group)]
    return lines + _lost_beside(grouped(report, BESIDE), main)


def _lost_beside(groups: list[Group], main: list[Group]) -> list[str]:
    alone = {group.case_and_mode: group.subjects for group in main}
    lines = []
    for group in groups:
        for name, row in group.subjects.items():
            before = alone.get(group.case_and_mode, {}).get(name)
            kept = share_kept(row, before)
            if kept is not None and kept < KEPT_BESIDE:
                lines.append(
                    f"{_where(group)}, {name}: beside neighbours {_speedup(row)}, {_percent(kept)} of the "
                    f"{_speedup(before)} alone"
                )
    return lines


@dataclass(frozen=True)
class Mean:
    """The geometric mean of speedups: of ``what``, with pyops run as ``way``."""

    machine: str
    what: str
    way: str
    value: float
    cases: int


def mean_speedups(report: Report) -> list[Mean]:
    """By machine and by how pyops ran: of the ops in float32, forward and backward, and of whole steps."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in report.rows:
        if row.section == TIME and row.speedup and row.dtype == "float32" and row.mode in _MEANS:
            way = row.contender.removeprefix("pyops ")
            found.setdefault((row.machine, _MEANS[row.mode], way), []).append(row.speedup)
    return [Mean(*key, geometric_mean(speedups), len(speedups)) for key, speedups in found.items()]


def means(report: Report) -> list[str]:
    """:func:`mean_speedups`, a line each."""
    found = mean_speedups(report)
    several = len({mean.machine for mean in found}) > 1
    return [
        f"geometric mean of the speedups, {mean.what}, {mean.way}: {mean.value:.2f}x "
        f"({mean.cases} cases{f', {mean.machine}' if several else ''})"
        for mean in found
    ]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _slower(group: Group) -> list[str]:
    # The kernels at the smallest size are information: nobody gets them who does not ask.
    subjects = {DEFAULT: group.subjects[DEFAULT]} if DEFAULT in group.subjects else group.subjects
    lines = []
    for name, row in subjects.items():
        if row.speedup < 0.995:  # what would print as 1.00x is a tie
            best = min(group.baselines.values(), key=lambda row: row.microseconds)
            spread = "; the quartiles reach 1" if row.speedup_q3 >= 1.0 else ""
            lines.append(
                f"{_where(group)}, {name}: {row.speedup:.2f}x against {best.contender} "
                f"({_quartiles(row)}{spread})"
            )
    return lines


def _larger(group: Group) -> list[str]:
    known = [row for row in group.baselines.values() if row.peak_bytes is not None]
    if not known:
        return []
    least = min(known, key=lambda row: row.peak_bytes)
    return [
        f"{_where(group)}, {name}: peak memory {_peak(row)} MiB against {_peak(least)} of {least.contender}"
        for name, row in group.subjects.items()
        # Below 64 KiB the difference is bookkeeping, not a reason to choose.
        if (row.peak_bytes or 0) > least.peak_bytes + 65536
    ]


def problems(report: Report) -> list[str]:
    """Cases that failed, were not run, went without one of their baselines or were timed in another way."""
    lines = []
    for row in report.rows:
        if row.note:
            contender = f", {row.contender}" if row.contender else ""
            lines.append(f"{row.name} {_MODES.get(row.mode, row.mode)}{contender}: {row.note}")
    return lines


def _where(group: Group) -> str:
    return f"{group.name} {group.mode}"


def _least(rows: list[Row], value: Callable[[Row], float | None], text: Callable[[Row], str]) -> str:
    rows = [row for row in rows if value(row) is not None]
    if not rows:
        return "-"
    best = min(rows, key=value)
    return f"{text(best)} ({best.contender})"


def _ms(row: Row | None) -> str:
    if row is None:
        return "-"
    value = row.microseconds / 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _s(row: Row | None) -> str:
    return "-" if row is None else f"{row.microseconds / 1e6:.3f}"


def _us(row: Row | None) -> str:
    return "-" if row is None else f"{row.microseconds:.1f}"


def _speedup(row: Row | None) -> str:
    return "-" if row is None else f"{row.speedup:.2f}x"


def _quartiles(row: Row) -> str:
    return f"{row.speedup_q1:.2f}-{row.speedup_q3:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _peak(row: Row | None) -> str:
    return _mib(row.peak_bytes if row else None)


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f}"
