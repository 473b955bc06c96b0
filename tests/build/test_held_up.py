"""When threads are left alone because other processes have their cores (``csrc/cpu/runtime/held_up.h``)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.suite import native
from tests.suite.processes import ROOT


@pytest.mark.skipif(native.missing_reason() is not None, reason=str(native.missing_reason()))
def test_short_loops_leave_threads_alone_after_a_long_wait(tmp_path: Path) -> None:
    """A loop of 0.1 ms waited 4 ms for a thread whose core another process had."""
    program, source = tmp_path / "held_up", Path(__file__).with_suffix(".cpp").with_stem("held_up")
    rule = ROOT / "csrc" / "cpu" / "runtime" / "held_up.cpp"
    command = [str(native.compiler()), "-std=c++17", f"-I{ROOT / 'csrc'}", str(source), str(rule)]
    compiled = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False, timeout=1800
    )
    assert compiled.returncode == 0, compiled.stderr
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
