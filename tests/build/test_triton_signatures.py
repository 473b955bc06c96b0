"""The signatures of Triton kernels can be read: few parameters, or parameters that are explained.

A parameter is explained by its name in the docstring of its function. A named tuple is one parameter, whose
fields its own docstring explains.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suite.processes import ROOT

MOST_UNEXPLAINED = 16
FOLDER = ROOT / "triton_kernels"


def _definitions(kind: type[ast.stmt]) -> Iterator[tuple[Path, ast.stmt]]:
    for path in sorted(FOLDER.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kind):
                yield path.relative_to(FOLDER), node


def _kernels() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path, node in _definitions(ast.FunctionDef):
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list):
            yield path, node


def _unexplained(node: ast.FunctionDef | ast.ClassDef, names: list[str]) -> list[str]:
    docstring = ast.get_docstring(node) or ""
    return [name for name in names if f"``{name}``" not in docstring]


@pytest.mark.parametrize("kernel", [pytest.param(k, id=f"{p.as_posix()}-{k.name}") for p, k in _kernels()])
def test_few_parameters_are_left_unexplained(kernel: ast.FunctionDef) -> None:
    names = [a.arg for a in kernel.args.args]
    unexplained = _unexplained(kernel, names)
    assert len(unexplained) <= MOST_UNEXPLAINED, f"{kernel.name} does not explain {unexplained}"


def test_named_tuples_explain_their_fields() -> None:
    missing = {}
    for path, node in _definitions(ast.ClassDef):
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
        if any(ast.unparse(base) == "NamedTuple" for base in node.bases):
            missing[f"{path.as_posix()}: {node.name}"] = _unexplained(node, fields)
    assert len(missing) > 10
    assert not {name: fields for name, fields in missing.items() if fields}


def test_the_count_sees_what_it_should() -> None:
    source = 'def kernel(a, b, c):\n    """``a`` and b."""'
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    assert _unexplained(node, ["a", "b", "c"]) == ["b", "c"]
