"""What a wheel holds, what it installs under which name, and what ``import pyops`` costs."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import pyops
from tests.suite.processes import ROOT, run_python

# A compiler that compiles nothing: what is in the wheel does not depend on what is in the libraries.
_FAKE_COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    -o) shift; : > "$1" ;;
    -MF) shift; : > "$1" ;;
  esac
  shift
done
"""


def copy_source(target: Path) -> None:
    """The tree without what was built or written in it."""

    def generated(folder: str, names: list[str]) -> list[str]:
        kept = {".ci", ".clang-format", ".github", ".gitignore"}
        at_the_root = {"build", "dist", "runs", *(n for n in names if n.startswith("."))} - kept
        written = at_the_root if Path(folder) == ROOT else {"_lib", "__pycache__"}
        return [name for name in names if name in written or name.endswith((".so", ".egg-info"))]

    shutil.copytree(ROOT, target, ignore=generated)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this source tree."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("sdist")
    copy_source(folder / "source")
    run_python("setup.py", "-q", "sdist", "-d", str(folder), directory=folder / "source")
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the source distribution, built by pip with a compiler that compiles nothing."""
    for package in ("setuptools", "ninja", "pip"):
        try:  # and not import it: where pip is, setuptools leaves distutils to Python, for later tests too
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    if shutil.which("ninja") is None:
        pytest.skip("ninja is not on PATH")
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "fake-c++"
    compiler.write_text(_FAKE_COMPILER)
    compiler.chmod(0o755)
    run_python(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--disable-pip-version-check", "-w", str(folder), str(sdist),
        environment={
            "CXX": str(compiler), "PYOPS_WITH_CUDA": "0", "PYOPS_CPU_VARIANTS": "all",
            "PYOPS_LOCAL_VERSION": "cu130",
        },
        directory=folder,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_has_two_top_level_folders_and_is_of_this_platform(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert len(top) == 2
    assert "pyops" in top
    (info,) = top - {"pyops"}
    assert info.startswith("pyops_kernels-")
    assert info.endswith(".dist-info")
    assert "none-any" not in wheel.name


def test_wheel_was_of_one_python_for_the_sake_of_its_build_facts(wheel: Path, installed: Path) -> None:
    """A pybind11 module had them. They are data now, and torch loads the libraries, whatever Python it is."""
    assert wheel.name.startswith("pyops_kernels-0.1.0+cu130-py3-none-")
    assert not list(installed.rglob("*_build_info*"))
    facts = json.loads((installed / "pyops/_lib/build_facts.json").read_text())
    assert list(facts["cpu"]) == [*pyops._library.CPU_VARIANTS] or platform.machine() != "x86_64"
    assert facts["cuda"] is None


def _all_are_in(distribution: set[str], files: set[str]) -> None:
    missing = sorted(files - distribution)
    assert not missing, f"not in the source distribution; MANIFEST.in has to name: {', '.join(missing)}"


def test_a_file_that_the_source_distribution_lacked_was_not_named() -> None:
    """It said that a set is not empty, and not what to do."""
    with pytest.raises(AssertionError, match=r"MANIFEST\.in has to name: NEW\.md, new/file\.txt"):
        _all_are_in({"Makefile"}, {"new/file.txt", "NEW.md", "Makefile"})


def test_source_distribution_had_no_file_of_csrc(sdist: Path) -> None:
    """So nothing was built from it. It has what the repository has: its tests run as well."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/exports.map", "csrc/build_info.cpp", "Makefile", "setup.py", "pyproject.toml"} <= names
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    _all_are_in(names, here)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    _all_are_in(names, {name for name in tracked if not name.startswith(".git")})
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_type_checkers_did_not_find_an_editable_install(tmp_path: Path) -> None:
    """It was an import hook, since the packages are in several folders: only Python follows that."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    copy_source(source)
    (tmp_path / "c++").write_text(_FAKE_COMPILER)
    (tmp_path / "c++").chmod(0o755)
    backend = "from setuptools.build_meta import build_editable; print(build_editable('..'))"
    environment: dict[str, str | None] = {"CXX": str(tmp_path / "c++"), "PYOPS_WITH_CUDA": "0"}
    run_python("-c", backend, directory=source, environment=environment)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        paths = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".pth")]
        assert not [name for name in archive.namelist() if name.endswith(".py")]
    folder = Path(paths[0].strip())
    assert len(paths) == 1
    assert [path.name for path in folder.iterdir()] == ["pyops"]  # no bare `models`
    assert (folder / "pyops").resolve() == source / "pyops"
    assert (folder / "pyops/py.typed").exists()


def test_wheel_holds_every_module_and_library_and_no_rubbish(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("pyops", "models", "triton_kernels", "benchmarks"):
        package = "pyops" if folder == "pyops" else f"pyops/{folder}"
        modules = {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*.py")}
        missing = {f"{package}/{m}" for m in modules} - names
        assert not missing
    assert {"pyops/py.typed", "pyops/functional.pyi", "pyops/nn/__init__.pyi"} <= names
    assert "pyops/_lib/libpyops_cpu_baseline.so" in names
    assert not [n for n in names if "__pycache__" in n or n.endswith((".o", ".cpp", ".d")) or "tests" in n]


def test_installed_names_are_pyops_and_its_subpackages(installed: Path) -> None:
    """A top-level ``models`` or ``triton_kernels`` would collide with other people's packages."""
    script = (
        f"import importlib.util as u, sys; sys.path.insert(0, {str(installed)!r});"
        "assert not any(u.find_spec(n) for n in ('models', 'triton_kernels', 'benchmarks', 'csrc'));"
        f"import pyops; assert pyops.__file__.startswith({str(installed)!r}), pyops.__file__;"
        "assert all(u.find_spec('pyops.' + n) for n in ('models', 'triton_kernels', 'ops', 'nn'));"
        "assert u.find_spec('pyops.csrc') is None"
    )
    run_python("-c", script, directory=installed, environment={"PYTHONPATH": None})


def test_source_checkout_finds_models_and_kernels_as_subpackages(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib.util as u, pyops;"
        "print(u.find_spec('pyops.models').origin); print(u.find_spec('pyops.triton_kernels').origin)"
    )
    found = run_python("-c", script, directory=tmp_path).stdout.split()
    assert found == [str(ROOT / "models" / "__init__.py"), str(ROOT / "triton_kernels" / "__init__.py")]


def test_source_tree_without_torch_says_what_to_install(tmp_path: Path) -> None:
    """setup.py, run by a Python that has no torch."""
    pytest.importorskip("setuptools")
    script = f"""
import os, runpy, setuptools, setuptools.command.build_ext, site, sys, sysconfig
sysconfig.get_path = lambda *a, **k: "/nonexistent"
site.getsitepackages = lambda: []
site.getusersitepackages = lambda: "/nonexistent"
sys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p, "torch"))]
sys.argv = ["setup.py", "--version"]
runpy.run_path({str(ROOT / "setup.py")!r}, run_name="__main__")
"""
    result = run_python("-c", script, directory=tmp_path, check=False)
    assert result.returncode != 0
    assert "pip install 'torch>=2.11'" in result.stderr


def test_import_costs_less_than_a_third_of_torchs() -> None:
    """Of processor time, in one process: both take longer on a slow machine and on a busy one."""
    script = (
        "from time import process_time as now; start = now(); import torch; middle = now(); import pyops;"
        "print((now() - middle) / (middle - start))"
    )
    shares = [float(run_python("-c", script, environment={"PYOPS_BACKEND": None}).stdout) for _ in range(3)]
    assert min(shares) < 1 / 3


def test_import_does_not_import_what_only_some_users_need() -> None:
    script = "import torch, sys; before = set(sys.modules); import pyops; print(*(set(sys.modules) - before))"
    new = run_python("-c", script, environment={"PYOPS_BACKEND": None}).stdout.split()
    top = {name.split(".")[0] for name in new}
    assert not top & {"triton", "matplotlib", "sklearn", "typer", "rich", "tqdm", "safetensors", "scipy"}
    assert not [name for name in new if name.startswith(("pyops.models", "pyops.triton_kernels"))]


def test_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert run_python("setup.py", "--version").stdout.split()[-1] == pyops.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_no_built_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert not [f for f in listed.stdout.splitlines() if f.endswith((".so", ".o", ".pyc", ".whl"))]
