"""What type checkers, editors and readers are told of the public names is what there is."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pyops.functional as F
import pyops.nn

ROOT = Path(F.__file__).parents[1]
MAKER = runpy.run_path(str(ROOT / ".ci/stubs.py"))
STUBS = MAKER["stubs"]()
FILES = [(F, "pyops/functional.pyi"), (pyops.nn, "pyops/nn/__init__.pyi")]


@pytest.mark.parametrize("path", STUBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_stub_is_up_to_date(path: Path) -> None:
    if f"torch {MAKER['TORCH']} has" not in path.read_text():
        pytest.skip("the stub is made with another torch, which has other names")
    assert path.read_text() == STUBS[path], "run `make stubs`"


def named(path: str, *, ours: bool) -> set[str]:
    """Public names of a stub: those of our modules, or those of torch's."""
    body = ast.parse((ROOT / path).read_text()).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and (node.level > 0) is ours]
    names = {alias.asname for node in imports for alias in node.names} - {None}
    return names | {node.name for node in body if ours and isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("module", "path"), FILES)
def test_stub_names_what_is_there(module: ModuleType, path: str) -> None:
    assert named(path, ours=True) - {"functional"} == set(module.__all__)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)


@pytest.mark.parametrize(("module", "path"), FILES)
def test_what_has_no_kernel_was_missing_or_of_no_type(module: ModuleType, path: str) -> None:
    """It is torch's own, for type checkers and for ``dir`` as well."""
    torchs = torch.nn if module is pyops.nn else torch.nn.functional
    names = named(path, ours=False)
    if f"torch {MAKER['TORCH']} has" not in (ROOT / path).read_text():
        names &= set(dir(torchs))
    assert len(names) > 70
    assert all(getattr(module, name) is getattr(torchs, name) for name in names)
    public = set(torch.nn.modules.__all__) if torchs is torch.nn else names
    assert public <= {*names, *module.__all__}
    assert {*names, *module.__all__} <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'no_such_name'"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ["init", "parallel", "parameter", "utils", "utils.rnn", "utils.parametrize"])
def test_what_holds_no_layers_could_not_be_imported_from(name: str) -> None:
    """`from pyops.nn.utils import clip_grad_norm_` said that there is no such module."""
    assert importlib.import_module(f"pyops.nn.{name}") is importlib.import_module(f"torch.nn.{name}")


def test_functional_of_nn_was_torchs() -> None:
    """``pyops.nn.functional`` is found as ``torch.nn.functional`` is, also by an import statement."""
    import pyops.nn.functional as of_nn

    assert of_nn is pyops.nn.functional is F


def test_readme_names_every_function_and_module() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
    activations = {name for name in pyops.nn.__all__ if name.lower() in {n.replace("_", "") for n in named}}
    recurrent = {name for name in F.__all__ if name.startswith(("rnn_", "lstm", "gru"))}  # by their modules
    assert {*F.__all__, *pyops.nn.__all__} - named <= activations | recurrent
