"""Write the stubs of what finds its names at run time: ``python .ci/stubs.py``, or ``make stubs``.

``pyops/functional.pyi`` and ``pyops/nn/__init__.pyi`` import for type checkers and editors what each module
names in its ``__all__``. The modules are read, not imported.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_HEAD = "# Written by .ci/stubs.py: `make stubs`.\n\n"
_FUNCTIONAL = "__all__: list[str]\n"
_NN = "__all__: list[str]\n\ndef __getattr__(name: str) -> Any: ...\n"


def stubs(root: Path = ROOT) -> dict[Path, str]:
    """The text of each stub, by its path."""
    functions = _imports(root / "pyops/ops", ".ops")
    classes = _imports(root / "pyops/nn", "")
    return {
        root / "pyops/functional.pyi": f"{_HEAD}{functions}\n{_FUNCTIONAL}",
        root / "pyops/nn/__init__.pyi": f"{_HEAD}from typing import Any\n\n{classes}\n{_NN}",
    }


def _imports(folder: Path, package: str) -> str:
    lines = [
        f"from {package}.{path.stem} import {name} as {name}\n"
        for path in sorted(folder.glob("[!_]*.py"))
        for name in _declared(path)
    ]
    return "".join(lines)


def _declared(path: Path) -> list[str]:
    """The module's ``__all__``."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return sorted(names, key=lambda name: (not name.isupper(), name.lower()))  # as ruff sorts imports
    return []


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text)
