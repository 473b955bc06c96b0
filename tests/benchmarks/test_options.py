"""What a run can be asked for besides its ops: neighbours, JAX, 16-bit types, time to the first step."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pyops.benchmarks import cases, first_step, run, sixteen_bit
from pyops.benchmarks.cases import training_step
from pyops.benchmarks.cases.tools import jax_steps
from pyops.benchmarks.measure import ceilings, cpu, harness, neighbours
from pyops.benchmarks.measure.case import FORWARD_BACKWARD, TRAINING_STEP
from pyops.benchmarks.measure.neighbours import Neighbours
from pyops.benchmarks.report import tables, text
from pyops.benchmarks.report.rows import from_raw

import pyops.functional
from tests.benchmarks.test_benchmarks import CPU, SETTINGS, tiny_case


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # whom nobody has waited for does not run


def ends(pid: int, within_s: float = 120.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def user_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_neighbours_are_busy_and_end_with_the_block():
    with Neighbours(2) as busy:
        pids = [process.pid for process in busy.processes]
        deadline = time.monotonic() + 120
        while not (worked := all(map(user_ticks, pids))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert worked
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(KeyboardInterrupt), Neighbours(1) as busy:
        raise KeyboardInterrupt
    assert not is_running(busy.processes[0].pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_neighbours_end_with_whoever_started_them(how):
    """Killed, it can stop nobody: they must see for themselves that they are alone."""
    program = (
        f"import runpy, time\nNeighbours = runpy.run_path({neighbours.__file__!r})['Neighbours']\n"
        "with Neighbours(1) as n:\n    print(n.processes[0].pid, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    assert ends(pid)


@pytest.fixture
def small_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "discover", lambda: [tiny_case(quick=True)])
    monkeypatch.setattr(run, "QUICK", SETTINGS)
    limits = ceilings.Ceilings(1e10, 1e10, {"float32": 1e11})
    monkeypatch.setattr(ceilings, "measure", lambda device, quick: limits)


def test_a_run_with_neighbours_reports_both_ratios(small_run, tmp_path):
    path = tmp_path / "raw.json"
    assert run.run([], path, "cpu", True, neighbours=1) == 0
    raw = json.loads(path.read_text())
    beside = raw["results"][0]["beside"]
    assert beside["neighbours"] == 1
    assert set(beside["speedup"]) == {"pyops cpp"}
    assert all(len(values) == 3 for values in beside["samples"].values())
    shown = text.plain(from_raw(raw))
    assert "Beside busy neighbours" in shown
    assert "neighbours 1" in shown
    raw["results"][0]["speedup"]["pyops cpp"]["median"] = 2.0
    beside["speedup"]["pyops cpp"]["median"] = 1.5
    lost = "cross_entropy tiny float32 fwd+bwd, pyops cpp: beside neighbours 1.50x, 75 % of the 2.00x alone"
    assert lost in tables.losses(from_raw(raw))
    beside["speedup"]["pyops cpp"]["median"] = 1.7
    assert not [line for line in tables.losses(from_raw(raw)) if "beside" in line]


def test_a_report_states_the_geometric_means(small_run, tmp_path):
    path = tmp_path / "raw.json"
    assert run.run([], path, "cpu", True) == 0
    raw = json.loads(path.read_text())
    first, *_ = raw["results"]
    first["speedup"]["pyops cpp"]["median"] = 2.0
    raw["results"].append({**first, "case": "cross_entropy other float32", "speedup": {}})
    raw["results"][1]["speedup"] = {"pyops cpp": {"median": 8.0, "q1": 8.0, "q3": 8.0}}
    raw["results"].append({**raw["results"][1], "case": "cross_entropy other bfloat16"})
    assert tables.means(from_raw(raw)) == [
        "geometric mean of the speedups, float32 fwd+bwd, cpp: 4.00x (2 cases)"
    ]
    assert "fwd+bwd, cpp: 4.00x (2 cases)" in text.markdown(from_raw(raw))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": -1}, "neighbours must be at least 0, got -1"),
        ({"baselines": ["jaks"]}, "baseline must be one of jax, got jaks"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(small_run, capsys, options, message):
    assert run.run([], None, "cpu", True, **options) == 2
    assert message in capsys.readouterr().err


def test_a_missing_jax_is_an_error_that_says_what_to_install(small_run, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else found(name))
    assert run.run([], None, "cpu", True, baselines=["jax"]) == 2
    assert "pip install 'pyops-kernels[jax]'" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["mlp", "lenet", "rnn"])
def test_jax_does_the_same_training_steps(network):
    pytest.importorskip("jax")
    if network == "rnn":
        case = training_step.text_case(network, 3, 5, 7)
    else:
        case = training_step.case(network, 4, 12)
    contenders = case.contenders(TRAINING_STEP, CPU, compiled=False, extra=["jax"])
    eager, jax = (next(c for c in contenders if c.name == name) for name in ("eager", "jax"))
    for _ in range(2):  # a check leaves the parameters as they were
        for ours, theirs in zip(eager.run(), jax.run(), strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-3, atol=1e-5)
    assert jax.call()[0].item() == pytest.approx(eager.call()[0].item(), rel=1e-5)


def test_jax_is_asked_for_networks_it_knows():
    assert jax_steps.knows("mlp")
    case = training_step.case("nin", 1, 64)
    assert not case.extra_runs(["jax"], {})


def test_16_bit_cases_cover_every_op_on_the_same_numbers():
    chosen = sixteen_bit.choose([])
    assert {case.op for case in chosen} == set(pyops.functional.__all__)
    case = next(case for case in chosen if case.op == "linear")
    wide, narrow = (sixteen_bit.in_dtype(case, dtype).build("cpu") for dtype in sixteen_bit.DTYPES[:2])
    assert narrow["input"].dtype == torch.bfloat16
    assert torch.equal(wide["input"].bfloat16(), narrow["input"])


def test_rounding_to_16_bits_makes_no_zeros():
    """One such element of a million made a right dropout fail: its mask cannot be seen there."""
    rounded = sixteen_bit._rounded(torch.tensor([1e-30, -1e-30, 0.0, 1.0]).requires_grad_(), torch.float16)
    assert [value != 0 for value in rounded.tolist()] == [True, True, False, True]
    assert rounded[1] < 0
    assert rounded.requires_grad


def test_16_bit_losses_and_wrong_results_are_failures(monkeypatch, capsys):
    monkeypatch.setattr(sixteen_bit, "choose", lambda ops: [tiny_case()])
    monkeypatch.setattr(sixteen_bit, "QUICK", SETTINGS)
    lines = sixteen_bit.measure(tiny_case(), FORWARD_BACKWARD, SETTINGS)
    assert [line.dtype for line in lines] == ["bfloat16", "float16"]
    assert all(line.over_own and line.over_torch and not line.problem for line in lines)

    def spread(value: float) -> harness.Spread:
        return harness.Spread(value, value - 0.01, value + 0.01)

    line = sixteen_bit.Line("op", "fwd", "bfloat16", 1.0, 1.0, spread(1.5), spread(0.9), "torch eager")
    assert line.failures == ["op fwd bfloat16: 0.90x against torch eager (0.89-0.91)"]
    monkeypatch.setattr(sixteen_bit, "measure", lambda *arguments: [line])
    assert sixteen_bit.run([], quick=True) == 1
    assert "Slower in 16 bits: 1" in capsys.readouterr().out
    right = sixteen_bit.Line("op", "fwd", "bfloat16", 1.0, 1.0, spread(1.5), spread(1.1), "torch eager")
    monkeypatch.setattr(sixteen_bit, "measure", lambda *arguments: [right])
    assert sixteen_bit.run([], quick=True) == 0


def test_a_wrong_16_bit_result_is_a_failure_and_not_timed(monkeypatch):
    real = pyops.functional.cross_entropy
    wrong = lambda input, target: real(input, target) * (1.1 if input.dtype == torch.float16 else 1)  # noqa: E731
    monkeypatch.setattr(pyops.functional, "cross_entropy", wrong)
    right, failed = sixteen_bit.measure(tiny_case(), FORWARD_BACKWARD, SETTINGS)
    assert not right.problem
    assert failed.failures[0].startswith("cross_entropy tiny forward+backward float16: wrong: ")


def test_the_first_step_is_timed_in_processes_of_their_own():
    result = first_step.measure("mlp", ways=("pyops cpp", "eager"), repeats=1)
    assert set(result["seconds"]) == {"pyops cpp", "eager"}
    assert all(0 < spread["median"] < 60 for spread in result["seconds"].values())
    assert result["speedup"]["pyops cpp"]["median"] > 0


CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
flags\t\t: fpu avx2 fma avx512f {flags}

processor\t: 1
flags\t\t: none of these amx_bf16
"""


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (("AuthenticAMD", 25, 17, "AMD EPYC"), "AMD EPYC (family 25 model 17, Zen 4)"),
        (("AuthenticAMD", 26, 2, "AMD EPYC"), "AMD EPYC (family 26 model 2, Zen 5)"),
        (
            ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Processor"),
            "Intel Xeon Processor (family 6 model 143, Sapphire Rapids)",
        ),
        (("GenuineIntel", 6, 255, "Xeon"), "Intel Xeon (family 6 model 255)"),
    ],
)
def test_cpus_are_told_apart_by_family_and_model(facts, expected):
    vendor, family, model, name = facts
    info = CPUINFO.format(vendor=vendor, family=family, model=model, name=name, flags="avx512_bf16")
    assert cpu.name(info) == expected
    assert cpu.features(info) == ["avx2", "fma", "avx512f", "avx512_bf16"]


def test_a_cpu_without_such_facts_has_a_name():
    assert cpu.name("")
    assert cpu.features("") == []
