"""Who imports whom among the files of a package, read from their text."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def imports(folder: Path, package: str, *, late: bool = True) -> dict[Path, set[Path]]:
    """By each file of ``package``, which is in ``folder``: the files of the package that it imports.

    Imports inside functions and for type checkers count where ``late`` is set.

    Raises:
        graphlib.CycleError: some import each other in a circle.
    """
    files = {
        _module(package, file): file for path in folder.rglob("*.py") if (file := path.relative_to(folder))
    }
    graph = {}
    for file in files.values():
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        names = [names for node in _statements(tree, late) for names in _imported(node, package, file)]
        # ``from a import b`` imports module a.b where that is one, else something in a.
        graph[file] = {
            next(files[name] for name in choice if name in files) for choice in names if files.keys() & choice
        }
    graphlib.TopologicalSorter(graph).prepare()
    return graph


def _statements(node: ast.AST, late: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_late = isinstance(child, ast.FunctionDef) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        if late or not is_late:
            yield child
            yield from _statements(child, late)


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
