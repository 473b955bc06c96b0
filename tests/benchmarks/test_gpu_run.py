"""``make gpu``: every step ends with a line in the report, whatever happens to the others."""

from __future__ import annotations

import sys

from pyops.benchmarks import gpu


def test_gpu_run_without_a_gpu_says_so_and_is_no_failure(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.startswith("no CUDA GPU in sight")


def test_gpu_step_output_is_logged_and_its_limit_kept(tmp_path):
    program = "import time; print('started', flush=True); time.sleep(60)"
    log = tmp_path / "step.log"
    assert gpu._stream(gpu.Step("s", [sys.executable, "-c", program], 5), log, 1.0) == (None, ["started"])
    failing = gpu.Step("f", [sys.executable, "-c", "print('3 passed'); raise SystemExit(4)"], 5)
    assert gpu._stream(failing, log, 20.0) == (4, ["3 passed"])
    assert gpu._detail(["3 passed"], 4) == "3 passed"
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("===")] == ["started", "3 passed"]
    assert [line[:6] for line in lines if line.startswith("===")] == ["=== s:", "=== f:"]


def test_gpu_run_goes_on_after_a_failing_step_and_reports_all(monkeypatch, tmp_path, capsys):
    facts = {"gpu": "Test GPU 1", "date": "2026-01-02T03:04:05Z", "commit": "abc", "arch": "9.0"}
    programs = {"build": "raise SystemExit(3)", "tests": "print('5 passed in 1s')"}

    def make_step(name, facts, folder, remaining):
        if name not in programs:
            return "not needed"
        return gpu.Step(name, [sys.executable, "-c", programs[name]], 20)

    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu, "probe", lambda: facts)
    monkeypatch.setattr(gpu, "_make_step", make_step)
    assert gpu.main(["--steps", "memcheck,tests,build"]) == 1
    text = (tmp_path / "2026-01-02-Test-GPU-1-abc" / "report.md").read_text()
    assert "| build | FAILED |" in text
    assert "| tests | passed |" in text
    assert "5 passed in 1s" in text
    assert "| memcheck | left out | 0 | not needed |" in text
    assert "build       FAILED" in capsys.readouterr().out
