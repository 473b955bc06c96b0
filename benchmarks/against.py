"""Is this checkout faster than another commit? ``pyops bench --base COMMIT [OP ...]``.

The commit is checked out and built beside this one. Processes of both take turns, so that the load of the
machine and its clock hit both alike; a case's ratio is taken within each round, and what is beyond noise is
what every round agrees on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .report.progress import Progress
from .report.rows import MODES
from .report.tables import Table
from .report.text import aligned

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3
#: A ratio this near to 1 is noise, whatever the rounds say.
TIE = 0.03

#: Microseconds by case and mode, of pyops' kernels.
Times = dict[tuple[str, str], float]


class AgainstError(RuntimeError):
    """The comparison cannot be made; the message is one line."""


@dataclass(frozen=True)
class Line:
    """One case: microseconds of both, and base / here of every round (above 1: this checkout is faster)."""

    case: str
    mode: str
    base: float
    here: float
    ratios: tuple[float, ...]

    @property
    def verdict(self) -> str:
        if min(self.ratios) > 1 + TIE:
            return "faster"
        if max(self.ratios) < 1 - TIE:
            return "SLOWER"
        return "within noise"


def run(commit: str, ops: Sequence[str], json_path: Path | None = None, *, rounds: int = ROUNDS) -> int:
    """Measure ``ops`` (all when empty) of both, and print what differs.

    Returns:
        0; 1 when a case is slower beyond noise; 2 when it cannot be measured.
    """
    try:
        with checkout(commit) as base, Progress(2 * rounds) as progress:
            found: list[tuple[Times, Times]] = []
            for number in range(rounds):
                times = {}
                for tree in (base, ROOT) if number % 2 else (ROOT, base):
                    which = commit if tree is base else "this checkout"
                    progress.start(f"round {number + 1} of {rounds}: {which}")
                    times[tree] = measure(tree, ops)
                    progress.done(f"{len(times[tree])} cases")
                found.append((times[base], times[ROOT]))
    except AgainstError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    lines = compare(found)
    print("\n".join(aligned(table(commit, lines))))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")
    return 1 if any(line.verdict == "SLOWER" for line in lines) else 0


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with ``commit`` of this repository, its CPU kernels built; gone afterwards.

    Raises:
        AgainstError: this is no git checkout, there is no such commit, or it does not build.
    """
    with tempfile.TemporaryDirectory(prefix="pyops-base-") as folder:
        tree = Path(folder, "tree")
        _command(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], ROOT)
        try:
            print(f"building {commit}", file=sys.stderr)
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            _command(build, tree, {"PYOPS_WITH_CUDA": "0"})
            yield tree
        finally:
            _command(["git", "worktree", "remove", "--force", str(tree)], ROOT)


def measure(tree: Path, ops: Sequence[str]) -> Times:
    """What a process of the code in ``tree`` measures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "raw.json")
        command = [sys.executable, "-m", "pyops.benchmarks.run", *ops, "--json", str(path), "--device", "cpu"]
        _command([*command, "--quick", "--no-overhead"], tree, {"PYTHONPATH": str(tree)}, allowed=(0, 1))
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
    times: Times = {}
    for result in results:
        ours = [spread["median"] for name, spread in result["seconds"].items() if name.startswith("pyops")]
        times[result["case"], result["mode"]] = min(ours) * 1e6
    return times


def compare(rounds: Sequence[tuple[Times, Times]]) -> list[Line]:
    """The cases that both have in every round; the slowest of this checkout first."""
    common = set.intersection(*(set(base) & set(here) for base, here in rounds))
    lines = [
        Line(
            *key,
            statistics.median(base[key] for base, _ in rounds),
            statistics.median(here[key] for _, here in rounds),
            tuple(base[key] / here[key] for base, here in rounds),
        )
        for key in common
    ]
    return sorted(lines, key=lambda line: (statistics.median(line.ratios), line.case, MODES.index(line.mode)))


def table(commit: str, lines: Sequence[Line]) -> Table:
    rows = [
        [
            line.case,
            line.mode,
            line.verdict,
            f"{line.base:.1f}",
            f"{line.here:.1f}",
            f"{statistics.median(line.ratios):.3f}x",
            f"{min(line.ratios):.3f}-{max(line.ratios):.3f}",
        ]
        for line in lines
    ]
    return Table("", ["case", "mode", "verdict", f"{commit} us", "here us", "speed", "of all rounds"], rows)


def _command(
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    allowed: Sequence[int] = (0,),
) -> None:
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise AgainstError(f"{' '.join(command[:4])} failed: {said.splitlines()[-1]}")
