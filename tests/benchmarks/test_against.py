"""Comparing with another commit: what is called noise, and what becomes of the other tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyops.benchmarks import against
from pyops.benchmarks.measure.case import FORWARD

#: Of the base over this checkout, by round.
RATIOS = {
    "same": (1.01, 0.99, 1.0),
    "faster": (1.5, 1.2, 1.1),
    "slower": (0.9, 0.8, 0.95),
    "now and then slower": (0.5, 1.1, 1.0),
}
VERDICTS = {
    "same": "within noise",
    "faster": "faster",
    "slower": "SLOWER",
    "now and then slower": "within noise",
}
CASES = tuple(RATIOS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The trees that were measured, in order; a case takes 100 us here."""
    trees: list[Path] = []

    @contextmanager
    def checkout(commit: str) -> Iterator[Path]:
        yield Path("base")

    def measure(tree: Path, ops: list[str]) -> against.Times:
        trees.append(tree)
        number = (len(trees) - 1) // 2
        scale = {case: RATIOS[case][number] if tree == Path("base") else 1.0 for case in CASES}
        return {(case, FORWARD): 100 * scale[case] for case in CASES}

    monkeypatch.setattr(against, "checkout", checkout)
    monkeypatch.setattr(against, "measure", measure)
    return trees


def test_beyond_noise_is_what_every_round_says(measured, capsys, tmp_path):
    assert against.run("v1", [], tmp_path / "found.json") == 1
    shown = capsys.readouterr().out.splitlines()[-len(CASES) :]
    assert shown[0].startswith("slower ")  # the worst first
    for case, verdict in VERDICTS.items():
        assert verdict in next(line for line in shown if line.startswith(f"{case}  ")), case
    lines = json.loads((tmp_path / "found.json").read_text())
    for line in lines:
        assert line["ratios"] == pytest.approx(RATIOS[line["case"]])


def test_both_take_turns(measured):
    against.run("v1", [])
    base = Path("base")
    assert measured == [against.ROOT, base, base, against.ROOT, against.ROOT, base]


def test_a_commit_that_there_is_not_is_one_line(capsys):
    assert against.run("no-such-commit", []) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "git worktree add" in said[0]
    assert "no-such-commit" in said[0]
