"""Run the benchmarks: ``pyops bench [OP ...]`` or ``python -m pyops.benchmarks.run [OP ...]``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import pyops

from . import cases, first_step
from .cases import training_step
from .cases.tools import jax_steps
from .measure import ceilings, machine
from .measure.case import TRAINING_STEP, Case
from .measure.checks import WrongResult
from .measure.harness import FULL, QUICK, Result, Settings, Spread, measure
from .measure.overhead import measure_overhead
from .report import store, text
from .report.progress import Progress
from .report.rows import NOT_STARTED, Raw, from_raw

#: What ``--baseline`` can name.
BASELINES = ("jax",)


@dataclass(frozen=True)
class Options:
    """Everything a run can be asked for; see ``--help`` of this module."""

    ops: list[str]
    device: torch.device
    settings: Settings
    quick: bool = False
    json_path: Path | None = None
    markdown_path: Path | None = None
    html_path: Path | None = None
    results_folder: Path | None = None
    overhead: bool = True
    default_allocator: bool = False
    time_limit_s: float | None = None
    first_step: bool = False


def run(
    ops: list[str],
    json_path: Path | None = None,
    device: str | None = None,
    quick: bool = False,
    *,
    markdown_path: Path | None = None,
    html_path: Path | None = None,
    results_folder: Path | None = None,
    with_overhead: bool = True,
    default_allocator: bool = False,
    compiled: bool | None = None,
    time_limit_s: float | None = None,
    neighbours: int = 0,
    baselines: Sequence[str] = (),
) -> int:
    """Measure ``ops`` (all when empty) and print the report.

    Args:
        ops: names of functions in ``pyops.functional`` that have a benchmark file.
        json_path: raw results, rewritten after every case, so that an interrupted run keeps its own.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; the GPU when there is one by default.
        quick: few small cases, short rounds, no torch.compile.
        markdown_path: the report as Markdown.
        html_path: the report as one page with pictures, and its rows as CSV beside it.
        results_folder: takes the results into its tables (:mod:`pyops.benchmarks.report.store`), too.
        with_overhead: also measure microseconds per call at the smallest size, and time against size.
        default_allocator: measure again in a second process without huge pages (CPU).
        compiled: whether torch.compile is a baseline; None: unless ``quick``.
        time_limit_s: start no new case after this many seconds.
        neighbours: measure every case, besides alone, beside so many busy processes.
        baselines: those that do not come with torch, for the cases that know them: ``"jax"`` (MLP, LeNet and
            RNN training steps, on the CPU).

    Returns:
        0; 1 when a case failed (a wrong result, an error); 2 when the request itself makes no sense.
    """
    settings = QUICK if quick else FULL
    compiled = settings.compile if compiled is None else compiled
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        print(f"bench: device {device} was asked for, but torch sees no GPU", file=sys.stderr)
        return 2
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    problem = _problem(neighbours, baselines, chosen)
    if problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    options = Options(
        ops=list(ops),
        device=chosen,
        settings=replace(settings, compile=compiled, neighbours=neighbours, baselines=tuple(baselines)),
        quick=quick,
        json_path=json_path,
        markdown_path=markdown_path,
        html_path=html_path,
        results_folder=results_folder,
        overhead=with_overhead,
        default_allocator=default_allocator and chosen.type == "cpu",
        time_limit_s=time_limit_s,
        first_step=compiled and chosen.type == "cpu" and training_step.OP in (ops or [training_step.OP]),
    )
    try:
        raw = collect(options)
    except ValueError as error:  # an op without benchmarks; anything else is a bug and shows itself
        print(error, file=sys.stderr)
        return 2
    text.show(from_raw(raw))
    if html_path is not None:
        from .report import page  # pictures need matplotlib, which a machine with a GPU may lack

        page.write(raw, html_path)
    for path in (json_path, markdown_path, html_path, results_folder):
        if path is not None:
            print(f"written: {path}")
    return 1 if any(f["kind"] in ("wrong", "error") for f in raw["failures"]) else 0


def _problem(neighbours: int, baselines: Sequence[str], device: torch.device) -> str | None:
    """Why a run cannot be as it was asked for."""
    if neighbours < 0:
        return f"neighbours must be at least 0, got {neighbours}"
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        return f"baseline must be one of {', '.join(BASELINES)}, got {', '.join(unknown)}"
    if "jax" in baselines:
        reason = jax_steps.missing_reason()
        if reason is None and device.type != "cpu":
            reason = "it runs on the CPU here"
        return reason and f"--baseline jax: {reason}"
    return None


def collect(options: Options) -> Raw:
    """Measure everything and return the raw results (also written as they come)."""
    started = time.monotonic()
    device = options.device
    todo = _plan(options)
    raw: Raw = {
        "machine": machine.stamp(device),
        "settings": asdict(options.settings),
        "ceilings": None,
        "results": [],
        "overhead": [],
        "sizes": [],
        "default_allocator": [],
        "first_step": [],
        "failures": [],
    }
    first_steps = first_step.NETWORKS if options.first_step else ()
    with Progress(len(todo) + 1 + len(first_steps) + options.default_allocator) as progress:
        progress.start("machine ceilings")
        measured = ceilings.measure(device, quick=options.quick)
        raw["ceilings"] = measured.as_dict() | {"text": measured.describe()}
        progress.done(measured.describe())
        for case, mode, section in todo:
            progress.start(f"{case.name} {mode}")
            if options.time_limit_s and time.monotonic() - started > options.time_limit_s:
                _fail(raw, case, mode, section, NOT_STARTED, "the time limit was reached")
                progress.done("not started: time limit")
                continue
            progress.done(_one(raw, case, mode, section, options, measured))
            _write(raw, options)
        for network in first_steps:
            progress.start(f"first step of {network}")
            progress.done(_first_step(raw, network))
            _write(raw, options)
        if options.default_allocator:
            progress.start("default allocator setting, in a second process")
            progress.done(_default_allocator(raw, options))
    _write(raw, options)
    return raw


def _plan(options: Options) -> list[tuple[Case, str, str]]:
    chosen = cases.select(options.ops, options.device, quick=options.quick)
    chosen.sort(key=lambda case: not case.quick)  # what a time limit cuts off is the least needed
    todo = [(case, mode, "results") for case in chosen for mode in case.modes]
    if options.overhead:
        smallest = cases.select(options.ops, options.device, overhead=True)
        todo += [(case, mode, "overhead") for case in smallest for mode in case.modes]
        swept = cases.select(options.ops, options.device, sweeps=True)
        todo += [(case, mode, "sizes") for case in swept for mode in case.modes]
    return todo


def _one(
    raw: Raw,
    case: Case,
    mode: str,
    section: str,
    options: Options,
    measured: ceilings.Ceilings,
) -> str:
    """Measure one case into ``raw``; returns the line that the progress display shows."""
    try:
        if section == "overhead":
            settings = replace(options.settings, neighbours=0)  # of a call so short little stands beside it
            result = measure_overhead(case, mode, options.device, settings)
        elif section == "sizes":
            result = measure(case, mode, options.device, replace(QUICK, budget_s=0.5), ceilings=measured)
        else:
            result = measure(case, mode, options.device, options.settings, ceilings=measured)
    except torch.OutOfMemoryError as error:
        return _fail(raw, case, mode, section, "skipped", f"out of memory: {str(error).splitlines()[0]}")
    except Exception as error:
        # One broken case must not hide the others: it is listed, and the exit code says so.
        kind = "wrong" if isinstance(error, WrongResult) else "error"
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(raw, case, mode, section, kind, message)
    finally:
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
    raw[section].append(result.as_dict() | ({"elements": case.elements} if section == "sizes" else {}))
    return _summary(result)


def _summary(result: Result) -> str:
    text = _speedups(result.speedup, result.best_baseline)
    if result.beside is None:
        return text
    beside = _speedups(result.beside.speedup, result.beside.best_baseline)
    return f"{text}; beside {result.beside.neighbours} busy: {beside}"


def _speedups(speedup: Mapping[str, Spread], baseline: str) -> str:
    parts = [f"{name} {spread.median:.2f}x" for name, spread in speedup.items()]
    return f"{', '.join(parts)} against {baseline}"


def _fail(raw: Raw, case: Case, mode: str, section: str, kind: str, message: str) -> str:
    failure = {"case": case.name, "mode": mode, "section": section, "kind": kind, "message": message[:600]}
    raw["failures"].append(failure)
    return f"{kind}: {message[:160]}"


def _first_step(raw: Raw, network: str) -> str:
    try:
        result = first_step.measure(network)
    except RuntimeError as error:
        case = next(c for c in training_step.CASES if c.network == network)
        return _fail(raw, case, TRAINING_STEP, "first_step", "error", str(error))
    raw["first_step"].append(result)
    return ", ".join(f"{way} {spread['median']:.2f} s" for way, spread in result["seconds"].items())


def _default_allocator(raw: Raw, options: Options) -> str:
    """The same cases in a process whose allocator is left as torch ships it: the setting is read once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pyops.benchmarks.run", *options.ops]
        command += ["--json", str(path), "--device", "cpu", "--no-overhead", "--no-compile"]
        command += ["--quick"] if options.quick else []
        environment = {**os.environ, machine.THP_VARIABLE: "0"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(pyops.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not path.exists():
            message = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            failure = {"case": "all", "mode": "", "kind": "error", "message": message[0]}
            raw["failures"].append({**failure, "section": "default_allocator"})
            return f"error: {message[0]}"
        raw["default_allocator"] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return f"{len(raw['default_allocator'])} cases"


def _write(raw: Raw, options: Options) -> None:
    writers: list[tuple[Path | None, Callable[[], str]]] = [
        (options.json_path, lambda: json.dumps(raw, indent=1) + "\n"),
        (options.markdown_path, lambda: text.markdown(from_raw(raw))),
    ]
    for path, render in writers:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(), encoding="utf-8")
    if options.results_folder is not None:
        store.add(from_raw(raw), options.results_folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyops.benchmarks.run", description=run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help="functions to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the report")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report as a page with pictures")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="put the results into the tables of DIR, over older ones, and render its reports",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU when there is one)")
    parser.add_argument("--quick", action="store_true", help="few cases, short, no torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile baseline")
    parser.add_argument(
        "--no-overhead", action="store_true", help="no microseconds per call, no time against size"
    )
    parser.add_argument(
        "--default-allocator", action="store_true", help="measure again without huge pages (CPU)"
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=0,
        metavar="N",
        help="measure each case beside N busy processes, too",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help=f"one more baseline: {', '.join(BASELINES)} (an extra of the installation)",
    )
    parser.add_argument("--time-limit", type=float, metavar="S", help="start no case after S seconds")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    return run(
        given.ops,
        given.json,
        given.device,
        given.quick,
        markdown_path=given.markdown,
        html_path=given.html,
        results_folder=given.results,
        with_overhead=not given.no_overhead,
        default_allocator=given.default_allocator,
        compiled=False if given.no_compile else None,
        time_limit_s=given.time_limit,
        neighbours=given.neighbours,
        baselines=given.baseline,
    )


if __name__ == "__main__":
    machine.with_huge_pages("pyops.benchmarks.run")
    sys.exit(main())
