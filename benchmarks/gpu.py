"""Everything that needs a GPU, in one command of under ten minutes: the body of ``make gpu``.

``python benchmarks/gpu.py`` (or ``python -m pyops.benchmarks.gpu``) builds the CUDA library for the
GPU that is there, runs the whole test suite (it finds the GPU by itself), compute-sanitizer on a
sample, and the benchmarks. The numbers go into the tables of ``benchmarks/results``; how each step ended
and the log go into ``benchmarks/results/<date>-<gpu>-<commit>/``. With ``OUT=DIR`` all of them go into such
a folder in DIR. No network; torch, Triton, NumPy and pytest are enough. Every step is a process of its own
with a time limit; one that fails does not stop the next. Exit code: 0 when all passed or when there is no
GPU, else 1.

Only the standard library is imported here: pyops may not be built yet when this starts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LOG = "log.txt"
STEPS = ("build", "tests", "quick", "memcheck", "racecheck", "benchmarks")
_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"gpu": p.name, "arch": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
              "memory_gib": round(p.total_memory / 2**30, 1)}
try:
    import triton
    found["triton"] = triton.__version__
except ImportError:
    found["triton"] = None
print(json.dumps(found))
"""


@dataclass
class Step:
    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    name: str
    status: str  # passed, FAILED, TIMED OUT, left out
    seconds: float
    detail: str = ""
    output: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status in ("FAILED", "TIMED OUT")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--budget", type=float, default=570.0, metavar="S", help="seconds in all")
    given = parser.parse_args(arguments)
    steps = given.steps.split(",")
    unknown = sorted(set(steps) - set(STEPS))
    if unknown:
        parser.error(f"--steps must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
    facts = probe()
    if not facts.get("gpu"):
        print(f"no CUDA GPU in sight ({facts['reason']}): nothing to do", flush=True)
        return 0
    deadline = time.monotonic() + given.budget
    folder = _folder(facts)
    print(f"{facts['gpu']}; what happens is told in {folder}", flush=True)
    outcomes = []
    for name in STEPS:  # in this order whatever the order they were asked in
        if name in steps:
            outcomes.append(_run_step(name, facts, folder, deadline))
            _write_report(facts, outcomes, folder)
    print("\n" + "\n".join(_summary(outcomes)), flush=True)
    print(f"report: {folder / 'report.md'}", flush=True)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def probe() -> dict[str, Any]:
    """Facts about the GPU and the software; ``gpu`` is None, with a ``reason``, where there is none."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it failed without a message"]
        return {"gpu": None, "reason": f"torch cannot be imported: {last[0]}"}
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    if not facts["gpu"]:
        built = "without CUDA" if facts["cuda"] is None else f"with CUDA {facts['cuda']}"
        facts["reason"] = f"torch {facts['torch']}, built {built}, finds none"
        return facts
    facts["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts["python"] = sys.version.split()[0]
    facts["driver"] = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    facts["nvcc"] = _output([_tool("nvcc") or "nvcc", "--version"], pattern=r"release [\d.]+")
    facts["commit"] = _commit()
    return facts


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    revision = _output([*git, "rev-parse", "--short=10", "HEAD"])
    if revision is None:
        return os.environ.get("PYOPS_COMMIT", "unknown")
    # Results of an earlier run are no change to what is measured.
    others = [".", f":!{RESULTS.relative_to(ROOT)}"]
    dirty = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", *others])
    return revision + ("-dirty" if dirty else "")


def _output(command: list[str], pattern: str | None = None) -> str | None:
    """First line (or first match of ``pattern``) of a command's output; None when it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    if pattern is not None:
        found = re.search(pattern, done.stdout)
        return found.group() if found else None
    return next(iter(done.stdout.strip().splitlines()), None)


def _tool(name: str) -> str | None:
    """A CUDA tool on the PATH or in the toolkit's folder, which often is not on it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin:{home}/compute-sanitizer")


def _folder(facts: dict[str, Any]) -> Path:
    base = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", facts["gpu"]).strip("-")
    folder = base / f"{facts['date'][:10]}-{gpu}-{facts['commit']}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_step(name: str, facts: dict[str, Any], folder: Path, remaining: float) -> Step | str:
    """The step, or why it is left out."""
    python = sys.executable
    run = [python, "-m", "pyops.benchmarks.run", "--device", "cuda"]
    if name in ("build", "tests") and not (ROOT / "setup.py").exists():
        return f"{ROOT} is not a source checkout"
    if name == "build":
        arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or facts["arch"]
        build_environment = {"PYOPS_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
        return Step(name, [python, "setup.py", "build_ext", "--inplace"], 200, build_environment)
    if name == "tests":
        if not importlib.util.find_spec("pytest"):
            return "pytest is not installed"
        return _tests_step(python)
    if name in ("memcheck", "racecheck"):
        sanitizer = _tool("compute-sanitizer")
        if sanitizer is None:
            return "compute-sanitizer was not found (PATH, CUDA_HOME)"
        # torch's caching allocator would hide an overrun of one tensor into the next.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}
        sample = [python, "-m", "pyops.benchmarks.sanitizer_sample"]
        return Step(name, [sanitizer, "--tool", name, "--error-exitcode", "99", *sample], 60, environment)
    # Older results are replaced case by case: what quick measured stays where time ends the benchmarks.
    run += ["--results", str(folder if os.environ.get("OUT") else RESULTS)]
    if name == "quick":
        return Step(name, [*run, "--quick"], 80)
    # The run's own limit stops it between cases, with everything written; the step's is a backstop.
    return Step(name, [*run, "--time-limit", str(max(10, int(remaining - 30)))], remaining)


def _tests_step(python: str) -> Step:
    """The whole suite, in parallel where pytest-xdist is there, the cores shared out."""
    cores = os.cpu_count() or 1
    workers = max(1, min(8, cores // 2))
    if importlib.util.find_spec("xdist") is None or workers == 1:
        return Step("tests", [python, "-m", "pytest", "tests", "-q"], 200)
    command = [python, "-m", "pytest", "tests", "-q", "-n", str(workers)]
    return Step("tests", command, 200, {"OMP_NUM_THREADS": str(max(1, cores // workers))})


def _run_step(name: str, facts: dict[str, Any], folder: Path, deadline: float) -> Outcome:
    remaining = deadline - time.monotonic()
    if remaining < 15:
        step: Step | str = f"only {max(0.0, remaining):.0f} s were left"
    else:
        step = _make_step(name, facts, folder, remaining)
    if isinstance(step, str):
        print(f"\n=== {name}: left out: {step}", flush=True)
        return Outcome(name, "left out", 0.0, step)
    limit = min(step.limit_s, remaining)
    print(f"\n=== {name}: {' '.join(step.command)} (limit {limit:.0f} s)", flush=True)
    start = time.monotonic()
    code, output = _stream(step, folder / LOG, limit)
    seconds = time.monotonic() - start
    status = "TIMED OUT" if code is None else "passed" if code == 0 else "FAILED"
    outcome = Outcome(name, status, seconds, _detail(output, code), output)
    print(f"=== {name}: {status} after {seconds:.0f} s", flush=True)
    return outcome


def _stream(step: Step, log: Path, limit_s: float) -> tuple[int | None, list[str]]:
    """Run a step, its output shown and added to the log as it comes.

    Returns:
        Its exit code, None when the limit ended it, and the lines of its output.
    """
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    environment.setdefault("COLUMNS", "180")
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    output: list[str] = []

    def copy() -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"=== {step.name}: {' '.join(step.command)}\n")
            for line in process.stdout:
                output.append(line.rstrip("\n"))
                file.write(line)
                file.flush()
                print(f"  {line}", end="", flush=True)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # The step's own process group: compilers and test workers included.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=10)
        return None, output
    reader.join(timeout=10)
    return process.returncode, output


def _detail(output: list[str], code: int | None) -> str:
    """The line of a step's output that says most: pytest's and the sanitizer's summary, else the last one."""
    lines = [line.strip() for line in output if line.strip()]
    for pattern in (r"\d+ passed|\d+ failed", r"(ERROR|RACECHECK) SUMMARY"):
        found = [line for line in lines if re.search(pattern, line)]
        if found:
            return found[-1].strip("= ")
    last = lines[-1][:200] if lines else "no output"
    return last if code == 0 else f"exit code {code}: {last}"


def _summary(outcomes: list[Outcome]) -> list[str]:
    return [f"{o.name:<11} {o.status:<10} {o.seconds:5.0f} s  {o.detail}" for o in outcomes]


def _write_report(facts: dict[str, Any], outcomes: list[Outcome], folder: Path) -> None:
    lines = [f"# pyops on {facts['gpu']}, {facts['date'][:10]}, commit {facts['commit']}", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| step | outcome | seconds | |", "|---|---|---|---|"]
    for o in outcomes:
        detail = o.detail.replace("|", "\\|")
        lines.append(f"| {o.name} | {o.status} | {o.seconds:.0f} | {detail} |")
    for outcome in outcomes:
        if outcome.output and (outcome.failed or outcome.name == "tests"):
            lines += ["", f"## End of {outcome.name}", "", "```", *outcome.output[-40:], "```"]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
