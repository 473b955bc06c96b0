"""What imports what inside of pyops: tools stand below ops, formulas import no op, there is no cycle."""

from __future__ import annotations

import graphlib
from pathlib import Path

import pyops
from tests.suite.imports import imports

PACKAGE = Path(pyops.__file__).parent
BELOW_OPS = ("ops/tools/", "reference/", "layouts.py", "dtypes.py", "kinds.py")


def graph() -> dict[Path, set[Path]]:
    """Who imports whom; the packages that load their modules by glob import them all."""
    found = imports(PACKAGE, "pyops")
    for folder in ("ops", "nn"):
        modules = {file for file in found if file.parent == Path(folder) and file.stem != "__init__"}
        found[Path(folder, "__init__.py")] |= modules
    return found


def test_there_is_no_import_cycle() -> None:
    graphlib.TopologicalSorter(graph()).prepare()


def test_tools_and_formulas_import_no_op() -> None:
    found = graph()
    tools = [file for file in found if file.as_posix().startswith(BELOW_OPS)]
    assert len(tools) > 20
    assert not [(file, op) for file in tools for op in found[file] if op.parent == Path("ops")]


def test_no_folder_has_more_than_25_modules() -> None:
    assert max(len(list(folder.glob("*.py"))) for folder in PACKAGE.glob("**/")) <= 25
