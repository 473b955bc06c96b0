"""csrc/cuda/launch.h as nvcc compiles it, over a CUDA runtime that only remembers (``fake_cuda/``)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.suite.processes import ROOT

FAKE = Path(__file__).with_name("fake_cuda")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_kernels_ask_once_for_the_most_shared_memory(tmp_path: Path) -> None:
    """The permission belongs to the kernel: a launch that asks for its own bytes lowers it for launches of
    other threads."""
    program = tmp_path / "launches"
    command = [
        str(COMPILER), "-std=c++17", "-O1", "-pthread", "-D__CUDACC__", f"-I{FAKE}", f"-I{ROOT / 'csrc'}",
        str(FAKE / "launches.cpp"), "-o", str(program),
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
