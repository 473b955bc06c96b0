"""What type checkers, editors and readers are told of the public names is what there is."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest

import pyops.functional as F
import pyops.nn

ROOT = Path(F.__file__).parents[1]
STUBS = runpy.run_path(str(ROOT / ".ci/stubs.py"))["stubs"]()


@pytest.mark.parametrize("path", STUBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_stub_is_up_to_date(path: Path) -> None:
    assert path.read_text() == STUBS[path], "run `make stubs`"


@pytest.mark.parametrize(
    ("module", "path"), [(F, "pyops/functional.pyi"), (pyops.nn, "pyops/nn/__init__.pyi")]
)
def test_stub_names_what_is_there(module: ModuleType, path: str) -> None:
    body = ast.parse((ROOT / path).read_text()).body
    names = [alias.asname for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(filter(None, names)) == module.__all__
    assert all(getattr(module, name).__name__ == name for name in module.__all__)


def test_readme_names_every_function_and_module() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
    activations = {name for name in pyops.nn.__all__ if name.lower() in {n.replace("_", "") for n in named}}
    recurrent = {name for name in F.__all__ if name.startswith(("rnn_", "lstm", "gru"))}  # by their modules
    assert {*F.__all__, *pyops.nn.__all__} - named <= activations | recurrent
