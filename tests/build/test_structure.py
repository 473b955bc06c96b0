"""Where things stand: tools below algorithms, no circles, folders that a reader can take in."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.suite.imports import imports
from tests.suite.processes import ROOT

CSRC = ROOT / "csrc"
CPP_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")
SOURCE_SUFFIXES = (".py", *CPP_SUFFIXES)
MOST_FILES = 25

#: Tools of the C++ sources, lowest first, by folder or file. All else in ``cpu`` and ``cuda`` is an
#: algorithm. A file includes files of its own layer and of those below.
LAYERS = (
    {"common"},
    {"math"},
    {"binding"},
    {"cpu/simd", "cuda/launch.h"},
    {"cpu/runtime", "cuda/device"},
    {"cpu/epilogue", "cpu/gemm", "cuda/epilogue"},
    {"cpu", "cuda"},
)

PACKAGES = {
    "pyops": "pyops",
    "models": "pyops.models",
    "triton_kernels": "pyops.triton_kernels",
    "benchmarks": "pyops.benchmarks",
}


# ------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("root", ["csrc", *PACKAGES, "tests"])
def test_no_folder_has_more_files_than_a_reader_takes_in(root: str) -> None:
    files = (path for path in (ROOT / root).rglob("*") if path.suffix in SOURCE_SUFFIXES)
    folders = Counter(path.parent.relative_to(ROOT) for path in files)
    assert folders
    assert not {str(folder): n for folder, n in folders.items() if n > MOST_FILES}


# ----------------------------------------------------------------------------------------------------- C++


def included() -> dict[str, list[str]]:
    """By each file below ``csrc`` those that it includes."""
    found = {}
    for path in CSRC.rglob("*"):
        if path.suffix in CPP_SUFFIXES:
            names = re.findall(r'^\s*#\s*include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
            found[path.relative_to(CSRC).as_posix()] = [name for name in names if (CSRC / name).exists()]
    return found


def layer(file: str) -> int | None:
    """Of the longest folder that is in the table; None for files of no folder, such as build facts."""
    for place in (file, *(parent.as_posix() for parent in Path(file).parents)):
        for level, places in enumerate(LAYERS):
            if place in places:
                return level
    return None


def test_every_cpp_folder_has_a_layer_and_every_layer_files() -> None:
    files = included()
    assert [file for file in files if layer(file) is None] == ["build_info.cpp"]
    assert all(any(f == p or f.startswith(f"{p}/") for f in files) for places in LAYERS for p in places)


def test_no_cpp_file_includes_from_a_layer_above() -> None:
    edges = ((file, name) for file, names in included().items() for name in names)
    assert not [(a, b) for a, b in edges if (layer(a) or 0) < (layer(b) or 0) and a != "build_info.cpp"]


def test_cpu_and_cuda_do_not_include_each_other() -> None:
    sides = {"cpu", "cuda"}
    edges = ((file, name) for file, names in included().items() for name in names)
    assert not [(a, b) for a, b in edges if {Path(a).parts[0], Path(b).parts[0]} == sides]


def test_no_cpp_files_include_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(included()).prepare()  # raises CycleError, which names the files


def test_scratch_memory_has_names() -> None:
    """A number says neither whose memory it is nor who else has it; all of it comes from one arena. What a
    thread has beside are the tiles in software, which are its registers."""

    def files_with(pattern: str) -> list[str]:
        sources = [path for path in CSRC.rglob("*") if path.suffix in CPP_SUFFIXES]
        found = [path for path in sources if re.search(pattern, path.read_text(encoding="utf-8"))]
        return [path.relative_to(CSRC).as_posix() for path in found]

    assert files_with(r"buffer<\d") == []
    assert sorted(files_with(r"\bthread_local\b")) == ["cpu/runtime/scratch.h", "cpu/simd/tiles.h"]


# -------------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(folder: str) -> None:
    """Imports inside functions and for type checkers aside, which run when all modules are there."""
    assert imports(ROOT / folder, PACKAGES[folder], late=False)  # raises CycleError, which names the files


def imports_of_pyops() -> dict[Path, set[Path]]:
    """Of pyops, imports in functions included; packages that load their modules by glob import them all."""
    found = imports(ROOT / "pyops", "pyops")
    for folder in (Path("ops"), Path("nn")):
        found[folder / "__init__.py"] |= {f for f in found if f.parent == folder and f.stem != "__init__"}
    return found


def test_no_modules_of_pyops_depend_on_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(imports_of_pyops()).prepare()


def test_formulas_and_what_ops_share_import_no_op() -> None:
    below = ("ops/tools/", "reference/", "layouts.py", "dtypes.py", "kinds.py")
    found = {file: names for file, names in imports_of_pyops().items() if file.as_posix().startswith(below)}
    assert len(found) > 20
    assert not [(file, op) for file, names in found.items() for op in names if op.parent == Path("ops")]


@pytest.mark.parametrize("folder", PACKAGES)
def test_tools_import_nothing_that_uses_them(folder: str) -> None:
    """A file in ``tools`` imports nothing else of the folder in which ``tools`` is."""
    for file, names in imports(ROOT / folder, PACKAGES[folder], late=False).items():
        if "tools" in file.parts:
            home = file.parts[: file.parts.index("tools")]
            tools = (*home, "tools")
            users = [n for n in names if n.parts[: len(home)] == home and n.parts[: len(tools)] != tools]
            assert not users, file


def test_only_the_command_line_imports_models_and_benchmarks() -> None:
    above = re.compile(r"pyops\.(models|benchmarks)\b")
    users = set()
    for path in (ROOT / "pyops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}", *(f"{node.module or 'pyops'}.{a.name}" for a in node.names)]
            if any(above.match(name) for name in names):
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {"pyops/cli.py"}
