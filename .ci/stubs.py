"""Write the stubs of what finds its names at run time: ``python .ci/stubs.py``, or ``make stubs``.

``pyops/functional.pyi`` and ``pyops/nn/__init__.pyi`` import for type checkers and editors what each module
names in its ``__all__``, and by name what is torch's own: after an import of all of torch's names, checkers
would not agree whose ``relu`` it is. The modules are read, not imported.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TORCH = ".".join(importlib.metadata.version("torch").split(".")[:2])
_HEAD = f"# Written by .ci/stubs.py: `make stubs`. What has no kernel here is what torch {TORCH} has.\n\n"
_EITHER = "Tensor | tuple[Tensor, Tensor]"
#: What :mod:`torch.nn` has beside its modules of layers.
_OF_NN = {
    "torch.nn": ("attention", "init", "modules", "parallel", "parameter", "utils"),
    "torch.nn.parallel": ("DataParallel",),
    "torch.nn.parameter": ("Buffer", "Parameter", "UninitializedBuffer", "UninitializedParameter"),
}
#: Those of them that are modules of ``pyops.nn`` as well.
_MODULES_OF_NN = ("init", "parallel", "parameter", "utils")


def stubs(root: Path = ROOT) -> dict[Path, str]:
    """The text of each stub, by its path."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    functions = _of_folder(root / "pyops/ops", ".ops")
    torchs_functions = _declared(torch / "nn/functional.pyi")
    classes = _of_folder(root / "pyops/nn", "")
    torchs_classes = _declared(torch / "nn/modules/__init__.py")
    torchs_nn = dict(sorted({**_OF_NN, "torch.nn.modules": torchs_classes}.items()))
    all_functions = {name for names in (torchs_functions, *functions.values()) for name in names}
    overloads = [text for path in sorted((root / "pyops/ops").glob("[!_]*.py")) for text in _overloads(path)]
    return {
        root / "pyops/functional.pyi": _stub({"torch.nn.functional": torchs_functions}, functions, overloads),
        root / "pyops/nn/functional.pyi": _HEAD + _imports({"..functional": sorted(all_functions)}),
        root / "pyops/nn/__init__.pyi": _stub(torchs_nn, {"..": ["functional"], **classes}),
        **{
            root / f"pyops/nn/{name}.pyi": f"{_HEAD}from torch.nn.{name} import *  # noqa: F403\n"
            for name in _MODULES_OF_NN
        },
    }


def _stub(
    others: dict[str, Sequence[str]], ours: dict[str, Sequence[str]], overloads: Sequence[str] = ()
) -> str:
    """Imports of ``ours`` by module, of those of ``others`` that ours do not have, and overloads of ours."""
    known = {name for names in ours.values() for name in names}
    rest = {module: [name for name in names if name not in known] for module, names in others.items()}
    overloaded = re.findall(r"^def (\w+)", "\n".join(overloads), re.MULTILINE)
    plain = {module: [name for name in names if name not in overloaded] for module, names in ours.items()}
    head = "from typing import Any, Literal, overload\n\nfrom torch import Tensor\n" if overloads else ""
    types = "from .ops.tools.windows import IntOrPair\n" if overloads else ""
    exported = "".join(f'    "{name}",\n' for name in sorted(known - {"functional"}, key=_kind))
    declared = f"__all__ = [\n{exported}]\n"
    parts = (f"{_HEAD}{head}{_imports(rest)}", f"{_imports(plain)}{types}", declared, *overloads)
    return "\n".join(parts).rstrip() + "\n"


def _imports(names: dict[str, Sequence[str]]) -> str:
    lines = [
        f"from {module} import {name} as {name}\n"
        for module in names
        for name in sorted(names[module], key=_as_ruff_sorts)
    ]
    return "".join(lines)


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    return _kind(name)[0], name.lower()


def _kind(name: str) -> tuple[int, str]:
    """Constants by their looks first, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _of_folder(folder: Path, package: str) -> dict[str, list[str]]:
    return {f"{package}.{path.stem}": _declared(path) for path in sorted(folder.glob("[!_]*.py"))}


def _overloads(path: Path) -> list[str]:
    """Of the module's functions that return a tuple with a flag: what they return for which flag."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == _EITHER:
            flag = next(
                a.arg for a in [*node.args.args, *node.args.kwonlyargs] if a.arg.startswith("return_")
            )
            found += [
                _overload(node, flag, "Literal[False] = ...", "Tensor"),
                _overload(node, flag, "Literal[True]", "tuple[Tensor, Tensor]"),
                _overload(node, flag, "bool = ...", _EITHER),
            ]
    return found


def _overload(function: ast.FunctionDef, flag: str, flag_type: str, returns: str) -> str:
    """The function's signature with a ``flag`` of that type, by name only where it has no default."""
    args = function.args
    required = len(args.args) - len(args.defaults)
    lines = {a.arg: f"{a.arg}: {ast.unparse(a.annotation)} = ..." for a in [*args.args, *args.kwonlyargs]}
    for arg in args.args[:required]:
        lines[arg.arg] = lines[arg.arg].removesuffix(" = ...")
    lines[flag] = f"{flag}: {flag_type}"
    by_name = [a.arg for a in args.kwonlyargs]
    if flag not in by_name and "=" not in flag_type:
        by_name.append(flag)
    by_place = [a.arg for a in args.args if a.arg not in by_name]
    order = [*by_place, *(["*"] if by_name else []), *by_name]
    parameters = "".join(f"    {lines.get(name, name)},\n" for name in order)
    return f"@overload\ndef {function.name}(\n{parameters}) -> {returns}: ..."


def _declared(path: Path) -> list[str]:
    """The public names of the module's ``__all__``."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
            if ast.unparse(target) == "__all__":
                names += ast.literal_eval(node.value)
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text)
