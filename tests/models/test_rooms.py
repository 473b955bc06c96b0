"""The folders of ``models/``: who may import whom, and what is found in them by itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pyops.models.examples import example_names, get_example

from pyops import models
from tests.suite.processes import ROOT

MODELS = ROOT / "models"
FILES = sorted(path.relative_to(MODELS) for path in MODELS.rglob("*.py") if path.name != "__init__.py")
#: Lowest first: a file imports files of its own room and of rooms below, never of one above.
ROOMS = (
    {"errors", "files"},
    {"data"},
    {"recipe", "tasks", "registry"},
    {"networks"},
    {"training"},
    {"commands", "examples"},
    {"train"},
)


def level(room: str) -> int:
    return next(i for i, names in enumerate(ROOMS) if room in names)


def imported(file: Path) -> list[Path]:
    """The files of ``models/`` that ``file`` imports, as paths below ``models/``."""
    found = []
    for node in ast.walk(ast.parse((MODELS / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            found.append(folder.joinpath(*node.module.split(".")).with_suffix(".py"))
    return found


def test_every_file_has_a_room():
    assert {file.with_suffix("").parts[0] for file in FILES} == set.union(*ROOMS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down(file):
    mine = level(file.with_suffix("").parts[0])
    assert not [other for other in imported(file) if level(other.with_suffix("").parts[0]) > mine]


def test_no_files_import_each_other_in_a_circle():
    left = {file: {other for other in imported(file) if other in FILES} for file in FILES}
    while free := [file for file, others in left.items() if not others & left.keys()]:
        for file in free:
            del left[file]
    assert not left


def test_tools_of_the_networks_import_no_network():
    for file in FILES:
        if file.parts[:2] == ("networks", "tools"):
            assert not [other for other in imported(file) if other.parent == Path("networks")]


def test_networks_and_examples_are_found_by_their_files():
    files = {file.stem for file in FILES if file.parent == Path("networks")}
    builders = [models.get_network(name).build for name in models.network_names()]
    functions = [getattr(build, "func", build) for build in builders]
    assert {function.__module__.rpartition(".")[2] for function in functions} == files
    assert all(
        getattr(models, name) is build for name, build in zip(models.network_names(), builders, strict=True)
    )
    assert example_names() == sorted(file.stem for file in FILES if file.parent == Path("examples"))
    assert all(callable(get_example(name)) for name in example_names())
