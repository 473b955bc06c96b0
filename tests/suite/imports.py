"""Who imports whom among the files of a package, read from their text."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path


def imports(folder: Path, package: str) -> dict[Path, set[Path]]:
    """By each file of ``package``, which is in ``folder``: the files of the package that it imports.

    Raises:
        graphlib.CycleError: some import each other in a circle.
    """
    files = {
        _module(package, file): file for path in folder.rglob("*.py") if (file := path.relative_to(folder))
    }
    graph = {}
    for file in files.values():
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        names = [names for node in ast.walk(tree) for names in _imported(node, package, file)]
        # ``from a import b`` imports module a.b where that is one, else something in a.
        graph[file] = {
            next(files[name] for name in choice if name in files) for choice in names if files.keys() & choice
        }
    graphlib.TopologicalSorter(graph).prepare()
    return graph


def _module(package: str, file: Path) -> str:
    return ".".join([package, *file.with_suffix("").parts]).removesuffix(".__init__")


def _imported(node: ast.AST, package: str, file: Path) -> list[tuple[str, ...]]:
    """What an import statement may mean, by the names of modules, the most likely first."""
    if isinstance(node, ast.Import):
        return [(alias.name,) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    below = (package, *file.parents[node.level - 1].parts) if node.level else ()
    base = ".".join(filter(None, (*below, node.module)))
    return [(f"{base}.{alias.name}", base) for alias in node.names]
