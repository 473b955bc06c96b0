"""Two builds of one tree give the same bytes, wherever and whenever they are made."""

from __future__ import annotations

import os
import shlex
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from tests.suite.processes import ROOT, run_python

#: Of the sources that are compiled, the one that takes least. It registers an op: its name is in the library.
_SOURCE = "csrc/cpu/digest.cpp"


def copy_tree(target: Path) -> None:
    """What a wheel is made of, with one source to compile."""
    for folder in ("pyops", "models", "triton_kernels", "benchmarks", "csrc"):
        shutil.copytree(
            ROOT / folder,
            target / folder,
            ignore=shutil.ignore_patterns("_lib", "__pycache__", "*.so", "*.cpp"),
        )
    shutil.copy(ROOT / _SOURCE, target / _SOURCE)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, target)


def build(folder: Path, epoch: int) -> Path:
    """The wheel that ``folder``, another name of the same length or not, gives."""
    copy_tree(folder)
    for path in (folder / "pyops").rglob("*.py"):
        os.utime(path, (epoch, epoch))
    environment: dict[str, str | None] = {
        "PYOPS_WITH_CUDA": "0",
        "PYOPS_CPU_VARIANTS": "baseline",
        "SOURCE_DATE_EPOCH": "1700000000",
        "PYTHONPATH": None,
        "CCACHE_DISABLE": "1",
    }
    run_python("setup.py", "-q", "bdist_wheel", directory=folder, environment=environment)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_two_builds_in_different_folders_have_the_same_bytes(tmp_path: Path) -> None:
    """They had not: files kept their times, and torch's macros the name of the folder of the build."""
    pytest.importorskip("setuptools")
    if shutil.which("ninja") is None or shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        pytest.skip("ninja or the compiler is not on PATH")
    now = int(time.time())
    one = build(tmp_path / "one", now)
    other = build(tmp_path / "some" / "other-folder", now - 10**6)
    with zipfile.ZipFile(one) as wheel, zipfile.ZipFile(other) as twin:
        assert wheel.namelist() == twin.namelist()
        assert not [name for name in wheel.namelist() if wheel.read(name) != twin.read(name)]
        library = wheel.read("pyops/_lib/libpyops_cpu_baseline.so")
    assert one.read_bytes() == other.read_bytes()
    assert str(tmp_path).encode() not in library
    assert b"torch/csrc/stable" in library, "nothing names its source, and the flags are of no use"
