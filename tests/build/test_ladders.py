"""The ladders of the manual: every version passes the test of its ladder; the exercises are unsolved."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.suite.processes import ROOT

FOLDER = ROOT / "docs" / "learn"
LADDERS = sorted(path.parent.name for path in FOLDER.glob("*/task.py"))
VERSIONS = [(path.parent.name, path.name) for path in sorted(FOLDER.glob("*/v*.cpp"))]


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "ladder", raising=False)
    import ladder

    return ladder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the libraries: an exercise is compiled once for both of its tests."""
    return tmp_path_factory.mktemp("ladders")


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_a_version_passes_the_test_of_its_ladder(
    name: str, version: str, ladder: ModuleType, built: Path
) -> None:
    ladder.task(name).check(ladder.build(FOLDER / name / version, built))


@pytest.mark.parametrize("name", LADDERS)
def test_the_exercise_starts_right_and_compiles(name: str, ladder: ModuleType, built: Path) -> None:
    task = ladder.task(name)
    task.check(ladder.build(FOLDER / name / "exercise.cpp", built), *task.EXERCISE_AS_GIVEN)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="left to the reader: who solves it deletes this"
)
@pytest.mark.parametrize("name", LADDERS)
def test_the_exercise_is_solved(name: str, ladder: ModuleType, built: Path) -> None:
    task = ladder.task(name)
    task.check(ladder.build(FOLDER / name / "exercise.cpp", built), *task.EXERCISE)


@pytest.mark.parametrize("name", LADDERS)
def test_the_figures_are_of_the_versions_that_there_are(name: str, ladder: ModuleType) -> None:
    with (FOLDER / name / "measured.csv").open(encoding="utf-8", newline="") as file:
        measured = [row["version"] for row in csv.DictReader(file)]
    assert measured == [path.stem for path in ladder.versions(name)] + ["pyops", "torch"]
