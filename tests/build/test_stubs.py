"""What type checkers and editors are told of ``pyops.functional`` and ``pyops.nn`` is what they have."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from types import ModuleType

import pytest

import pyops.functional
import pyops.nn

ROOT = Path(pyops.functional.__file__).parents[1]
STUBS = runpy.run_path(str(ROOT / ".ci/stubs.py"))["stubs"]()


@pytest.mark.parametrize("path", STUBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_stub_is_up_to_date(path: Path) -> None:
    assert path.read_text() == STUBS[path], "run `make stubs`"


@pytest.mark.parametrize(
    ("module", "path"), [(pyops.functional, "pyops/functional.pyi"), (pyops.nn, "pyops/nn/__init__.pyi")]
)
def test_stub_names_what_is_there(module: ModuleType, path: str) -> None:
    body = ast.parse((ROOT / path).read_text()).body
    names = [alias.asname for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(filter(None, names)) == module.__all__
    assert all(getattr(module, name).__name__ == name for name in module.__all__)
