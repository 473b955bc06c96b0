"""Is any op slower in 16 bits than in float32, or than torch's? ``pyops bench --sixteen-bit [OP ...]``, or
``python -m pyops.benchmarks.sixteen_bit``.

Of every op the small cases (``quick``), at least one, run in float32, bfloat16 and float16 with the same
numbers, all contenders in one interleaved run. A 16-bit result is checked against float64 before it is timed,
as everywhere. The library and torch's kernels are those of ``ATEN_CPU_CAPABILITY`` (``default``, ``avx2``,
``avx512``), so that a run for each shows what other machines get.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyops import backends

from . import cases
from .measure import machine
from .measure.case import Case, dtype_name
from .measure.checks import WrongResult
from .measure.clocks import HostClock
from .measure.contender import Contender, Inputs
from .measure.contenders import build
from .measure.harness import FULL, QUICK, Result, Settings, Spread, check, compare, run_rounds
from .report.progress import Progress
from .report.tables import Table
from .report.text import aligned

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CPU = torch.device("cpu")
#: A loss is one where the median is below this and the upper quartile below 1: the rest is a tie.
_LEAST = 0.97


@dataclass(frozen=True)
class Line:
    """One op in one 16-bit type. ``over_own``: time of pyops in float32 over that in 16 bits;
    ``over_torch``: time of the best torch way in 16 bits over it."""

    case: str
    mode: str
    dtype: str
    microseconds: float | None = None
    float32_microseconds: float | None = None
    over_own: Spread | None = None
    over_torch: Spread | None = None
    torch: str = ""
    problem: str = ""

    @property
    def failures(self) -> list[str]:
        """What is wrong with it, for the list below the table."""
        where = f"{self.case} {self.mode} {self.dtype}"
        if self.problem:
            return [f"{where}: {self.problem}"]
        ratios = (("our own float32", self.over_own), (self.torch, self.over_torch))
        return [
            f"{where}: {spread.median:.2f}x against {against} ({spread.q1:.2f}-{spread.q3:.2f})"
            for against, spread in ratios
            if spread is not None and spread.median < _LEAST and spread.q3 < 1.0
        ]


def run(
    ops: Sequence[str],
    json_path: Path | None = None,
    *,
    quick: bool = False,
    markdown_path: Path | None = None,
) -> int:
    """Measure ``ops`` (all when empty), print the table and the failures.

    Returns:
        0; 1 when an op is slower in 16 bits than in float32 or than torch, or wrong; 2 for an unknown op.
    """
    try:
        chosen = choose(ops)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    settings = replace(QUICK, budget_s=0.7) if quick else replace(FULL, budget_s=4.0)
    lines: list[Line] = []
    todo = [(case, mode) for case in chosen for mode in case.modes]
    with Progress(len(todo)) as progress:
        for case, mode in todo:
            progress.start(f"{case.op} {case.label} {mode}")
            found = measure(case, mode, settings)
            lines += found
            progress.done("; ".join(_outcome(line) for line in found))
    stamp = machine.stamp(_CPU)
    shown = text(stamp, lines)
    print(shown)
    if json_path is not None:
        raw = {"machine": stamp, "settings": asdict(settings), "lines": [asdict(line) for line in lines]}
        json_path.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    if markdown_path is not None:
        markdown_path.write_text(f"```\n{shown}\n```\n", encoding="utf-8")
    return 1 if any(line.failures for line in lines) else 0


def choose(ops: Sequence[str]) -> list[Case]:
    """Of each op the quick cases in float32, or the one with the least to move; the smallest size where there
    is no other.

    Raises:
        ValueError: an op that has no benchmark file.
    """
    every = [*cases.select(list(ops), _CPU), *cases.select(list(ops), _CPU, overhead=True)]
    every = [case for case in every if case.dtype == torch.float32 and case.refill is None]
    every = [case for case in every if type(case).contenders is Case.contenders]
    chosen = []
    for op in dict.fromkeys(case.op for case in every):
        own = [case for case in every if case.op == op]
        own = [case for case in own if not case.overhead] or own[:1]
        quick = [case for case in own if case.quick]
        chosen += quick or [min(own, key=lambda case: case.traffic(case.modes[0]).total)]
    return chosen


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    """``case`` with its floating-point inputs rounded to ``dtype``."""

    def inputs(device: torch.device) -> Inputs:
        return {name: _rounded(value, dtype) for name, value in case.inputs(device).items()}

    return replace(case, inputs=inputs, dtype=dtype)


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        value, needs_grad = value.detach(), value.requires_grad
        rounded = value.to(dtype)
        # Nothing becomes zero: on zeros nobody sees the mask of dropout, which the check has to know.
        tiny = torch.full_like(value, torch.finfo(dtype).tiny).copysign(value).to(dtype)
        return torch.where((rounded == 0) & (value != 0), tiny, rounded).requires_grad_(needs_grad)
    return value


def measure(case: Case, mode: str, settings: Settings) -> list[Line]:
    """A line for each 16-bit type."""
    everyone: dict[torch.dtype, list[Contender]] = {}
    problems: dict[torch.dtype, str] = {}
    with backends.use_backend(None):
        for dtype in DTYPES:
            typed = in_dtype(case, dtype)
            try:
                contenders = _as_users_call(build(typed, mode, _CPU, compiled=False))
                # Drops what torch cannot do in this type, or does wrong.
                check(
                    typed, mode, contenders, Result(typed.name, typed.op, mode, "cpu", dtype_name(dtype), "")
                )
            except WrongResult as error:
                problems[dtype] = f"wrong: {error}"
            except (RuntimeError, NotImplementedError, TypeError) as error:
                problems[dtype] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            else:
                everyone[dtype] = contenders
        named = {f"{dtype_name(d)} {c.name}": c for d, found in everyone.items() for c in found}
        samples = run_rounds(
            {name: c.call for name, c in named.items()},
            HostClock(),
            settings,
            before_block={name: c.before_block for name, c in named.items()},
            before_call={name: c.before_call for name, c in named.items()},
        )
    name = f"{case.op} {case.label}"
    return [
        Line(name, mode, dtype_name(dtype), problem=problems[dtype])
        if dtype in problems
        else _line(name, mode, dtype, samples, everyone[dtype])
        for dtype in DTYPES[1:]
    ]


def _as_users_call(contenders: list[Contender]) -> list[Contender]:
    """Of pyops one: at the smallest size, where there are two, the default, and not the kernels by name."""
    ours = next(c for c in contenders if c.subject)
    return [replace(ours, name="pyops"), *(c for c in contenders if not c.subject)]


def _line(
    name: str, mode: str, dtype: torch.dtype, samples: dict[str, list[float]], contenders: list[Contender]
) -> Line:
    ours, wide = f"{dtype_name(dtype)} pyops", "float32 pyops"
    baselines = [f"{dtype_name(dtype)} {c.name}" for c in contenders if not c.subject]
    best, speedup = compare(samples, [ours], baselines)
    own = [w / o for w, o in zip(samples[wide], samples[ours], strict=True)] if wide in samples else None
    return Line(
        name,
        mode,
        dtype_name(dtype),
        microseconds=1e6 * statistics.median(samples[ours]),
        float32_microseconds=1e6 * statistics.median(samples[wide]) if own else None,
        over_own=Spread.of(own) if own else None,
        over_torch=speedup[ours],
        torch=f"torch {best.partition(' ')[2]}",
    )


def _outcome(line: Line) -> str:
    if line.problem:
        return f"{line.dtype} {line.problem[:60]}"
    return f"{line.dtype} {_ratio(line.over_own)} of float32, {_ratio(line.over_torch)} of torch"


def _ratio(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.2f}x"


def text(stamp: dict[str, Any], lines: Sequence[Line]) -> str:
    """The machine, the table and what fails."""
    header = ["case", "mode", "dtype", "us", "float32 us", "over float32", "over torch", "torch"]
    rows = [
        [
            line.case,
            line.mode,
            line.dtype,
            *("-" if us is None else f"{us:.1f}" for us in (line.microseconds, line.float32_microseconds)),
            _ratio(line.over_own),
            _ratio(line.over_torch),
            line.torch or line.problem[:40],
        ]
        for line in lines
    ]
    failures = [failure for line in lines for failure in line.failures]
    return "\n".join(
        [
            f"{stamp['cpu']}: {', '.join(stamp['cpu_features'])}; torch {stamp['torch']} "
            f"({stamp['torch_cpu_capability']}), {', '.join(stamp['pyops_libraries'].values())} at "
            f"{stamp['commit']}, load average {stamp['load_average']}",
            *aligned(Table("", header, rows)),
            "",
            f"Slower in 16 bits: {len(failures)}" if failures else "No op is slower in 16 bits.",
            *(f"  {failure}" for failure in failures),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.sixteen_bit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help="functions to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="short rounds")
    given = parser.parse_args(arguments)
    return run(given.ops, given.json, quick=given.quick, markdown_path=given.markdown)


if __name__ == "__main__":
    machine.with_huge_pages("pyops.benchmarks.sixteen_bit")
    sys.exit(main())
