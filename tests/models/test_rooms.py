"""The folders of ``models/``: who may import whom, and what is found in them by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyops.models.examples import example_names, get_example

from pyops import models
from tests.suite.imports import imports
from tests.suite.processes import ROOT

MODELS = ROOT / "models"
FILES = sorted(path.relative_to(MODELS) for path in MODELS.rglob("*.py") if path.name != "__init__.py")
#: By each file those that it imports; to read them shows that there are no circles.
IMPORTS = imports(MODELS, "pyops.models")
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


def test_every_file_has_a_room():
    assert {file.with_suffix("").parts[0] for file in FILES} == set.union(*ROOMS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down(file):
    mine = level(file.with_suffix("").parts[0])
    assert not [other for other in IMPORTS[file] if level(other.with_suffix("").parts[0]) > mine]


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
