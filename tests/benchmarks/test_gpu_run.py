"""``make gpu``: no step, process or item takes others with it, all is told, and a dry run runs every line."""

from __future__ import annotations

import json
import shlex
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from pyops.benchmarks.gpu import filling, pool, run, worker
from pyops.benchmarks.gpu.context import Context
from pyops.benchmarks.gpu.facts import probe
from pyops.benchmarks.gpu.record import Record
from pyops.benchmarks.gpu.steps import benchmarks, counters, sanitizer
from pyops.benchmarks.measure.device import DryRun

from tests.gpu import stand_in_tool
from tests.suite.processes import ROOT, run_python

FACTS = {"gpu": "Test GPU 1", "date": "2026-01-02T03:04:05Z", "commit": "abc", "arch": "9.0", "cores": 4}

#: A program of items by what they do; it needs neither torch nor pyops.
PROGRAM = """
import os, sys, time
from benchmarks.gpu import worker

class Device:
    fault, spent = None, False
    def broken(self):
        return self.fault

def item(kind):
    if kind == "raise":
        raise ValueError("no good")
    if kind == "crash":
        os._exit(9)
    if kind == "hang":
        time.sleep(60)
    device.spent = kind == "spend"
    if kind == "break":
        device.fault = "an illegal memory access was encountered"
    if kind == "turn":
        with open(sys.argv[1], "a") as file:
            file.write("in ")
            file.flush()
            time.sleep(0.2)
            file.write("out ")
    print("printed by an item")

device = Device()
parser = worker.parser("")
parser.add_argument("path")
parser.add_argument("kinds", nargs="+")
given = parser.parse_args()
items = {f"{i} {kind}": lambda kind=kind: item(kind) for i, kind in enumerate(given.kinds)}
prepare = (lambda: os._exit(3)) if "unprepared" in given.kinds and not given.again else None
sys.exit(worker.work(items, device, given, prepare))
"""


def job(name: str, tmp_path: Path, *kinds: str, wait: bool = False, **more) -> pool.Job:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "turns"), *kinds, *(["--wait"] if wait else [])]
    return pool.Job(name, command, **more)


def outcomes(jobs: list[pool.Job], tmp_path: Path, *, at_once: int = 4, seconds: float = 60.0) -> list[dict]:
    rows: list[dict] = []

    def tell(job: pool.Job, row: pool.Row) -> None:
        rows.append({"job": job.name, **row})

    deadline = time.monotonic() + seconds
    pool.run(jobs, tell, root=ROOT, logs=tmp_path / "logs", at_once=at_once, deadline=deadline)
    return rows


# ------------------------------------------------------------------------------------------- processes


def test_an_item_that_fails_crashes_or_breaks_the_gpu_is_told_and_the_rest_run(tmp_path):
    kinds = ["pass", "raise", "crash", "break", "spend", "pass"]
    rows = outcomes([job("op", tmp_path, *kinds)], tmp_path)
    assert [(row["item"], row["outcome"]) for row in rows] == [
        ("0 pass", "passed"),
        ("1 raise", "FAILED"),
        ("2 crash", "CRASHED"),
        ("3 break", "FAILED"),
        ("4 spend", "passed"),
        ("5 pass", "passed"),
    ]
    assert rows[1]["message"] == "ValueError: no good"
    assert rows[2]["exit_code"] == 9
    assert rows[3]["broken"] == "an illegal memory access was encountered"
    log = (tmp_path / "logs" / "op.log").read_text().splitlines()
    assert sum(line.startswith("=== ") for line in log) == 4  # the first process, and one for each lost
    assert log.count("printed by an item") == 4  # by all but those that raised and crashed


def test_an_item_that_hangs_is_ended_and_the_rest_run(tmp_path):
    rows = outcomes([job("op", tmp_path, "hang", "pass", item_limit_s=4.0)], tmp_path)
    assert [(row["item"], row["outcome"]) for row in rows] == [("0 hang", "HUNG"), ("1 pass", "passed")]


def test_a_program_that_only_crashes_comes_to_an_end(tmp_path):
    rows = outcomes([job("op", tmp_path, *["crash"] * 20)], tmp_path)
    assert [row["outcome"] for row in rows] == ["CRASHED"] * 9 + ["cut off"]
    dead = pool.Job("dead", [sys.executable, "-c", "import sys; sys.exit('cannot start')"])
    (row,) = outcomes([dead], tmp_path)
    assert (row["item"], row["outcome"], row["exit_code"]) == ("dead", "FAILED", 1)
    assert "cannot start" in row["message"]


def test_a_child_that_keeps_the_output_open_holds_up_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "_FAREWELL_S", 0.5)
    program = "import subprocess; subprocess.Popen(['sleep', '120'], start_new_session=True)"
    start = time.monotonic()
    (row,) = outcomes([pool.Job("parent", [sys.executable, "-c", program])], tmp_path)
    assert row["outcome"] == "passed"
    jobs = [pool.Job("hangs", [sys.executable, "-c", f"{program}; import time; time.sleep(120)"])]
    (row,) = outcomes(jobs, tmp_path, seconds=2.0)
    assert row["outcome"] == "cut off"
    assert time.monotonic() - start < 100


def test_a_crash_in_the_preparation_costs_the_preparation(tmp_path):
    rows = outcomes([job("op", tmp_path, "unprepared", "pass", wait=True)], tmp_path)
    found = [(row["item"], row["outcome"]) for row in rows]
    assert found == [("between items", "CRASHED"), ("0 unprepared", "passed"), ("1 pass", "passed")]


def test_the_deadline_ends_what_runs_and_says_what_was_not_reached(tmp_path):
    jobs = [job("first", tmp_path, "pass", "hang"), job("second", tmp_path, "pass")]
    start = time.monotonic()
    rows = outcomes(jobs, tmp_path, at_once=1, seconds=8.0)
    assert time.monotonic() - start < 50
    assert [(row["job"], row["item"], row["outcome"]) for row in rows] == [
        ("first", "0 pass", "passed"),
        ("first", "1 hang", "cut off"),
        ("second", "all", "cut off"),
    ]
    assert [j.done for j in jobs] == [False, False]


def test_turns_are_taken_one_at_a_time(tmp_path):
    jobs = [job(str(i), tmp_path, "turn", "turn", wait=True) for i in range(3)]
    assert {row["outcome"] for row in outcomes(jobs, tmp_path)} == {"passed"}
    assert (tmp_path / "turns").read_text() == "in out " * 6


# --------------------------------------------------------------------------------------------- the steps


class FakeStep:
    LIMIT_S = 20.0

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def run(self, context: Context, deadline: float) -> None:
        if not self.kinds:
            raise RuntimeError("a mistake in the step")
        context.run([job("job", context.logs, *self.kinds)], deadline)


def test_a_step_that_fails_does_not_take_the_rest_and_all_is_reported(monkeypatch, tmp_path, capsys):
    steps = {"smoke": FakeStep("raise"), "tests": FakeStep(), "extras": FakeStep("pass")}
    monkeypatch.setattr(run, "STEPS", steps)
    monkeypatch.setattr(run, "probe", lambda dry_run: FACTS)
    monkeypatch.setattr(run, "_tables", lambda folder, given: None)
    given = ["--steps", "extras,tests,smoke", "--output", str(tmp_path)]
    assert run.main(given) == 1
    folder = tmp_path / "2026-01-02-Test-GPU-1-abc"
    report = (folder / "report.md").read_text()
    assert "| smoke | FAILED |" in report
    assert "| tests | FAILED |" in report
    assert "| extras | passed |" in report
    assert "RuntimeError: a mistake in the step" in report
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == ["facts", "smoke", "tests", "extras"]
    with tarfile.open(folder / "logs.tar.gz") as archive:
        assert {"smoke/job.log", "extras/job.log"} <= set(archive.getnames())
    assert "FAILED: job: 0 raise: ValueError: no good" in capsys.readouterr().out


def test_no_step_begins_without_time(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "STEPS", {"smoke": FakeStep("pass")})
    monkeypatch.setattr(run, "probe", lambda dry_run: FACTS)
    monkeypatch.setattr(run, "_tables", lambda folder, given: None)
    assert run.main(["--steps", "smoke", "--output", str(tmp_path), "--budget", "13"]) == 0
    (report,) = tmp_path.rglob("report.md")
    assert "| smoke | left out | 0 | 0 | only" in report.read_text()


def test_the_limits_of_the_steps_fit_into_the_budget():
    limits = {name: step.LIMIT_S for name, step in run.STEPS.items() if name not in ("library", "extras")}
    assert limits == {"smoke": 20, "tests": 90, "sanitizer": 45, "benchmarks": 170, "counters": 60}
    assert sum(limits.values()) + run._RESERVE_S + 30 <= run.BUDGET_S  # half a minute to load, and for extras


def test_a_run_without_a_gpu_says_so_and_is_no_failure(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run.main([]) == 0
    assert capsys.readouterr().out.startswith("no CUDA GPU in sight")


def test_the_run_itself_needs_neither_torch_nor_pyops():
    program = "import sys; sys.modules['torch'] = sys.modules['pyops'] = None; import benchmarks.gpu.run"
    run_python("-c", program, environment={"PYTHONPATH": str(ROOT)})


# ------------------------------------------------------------------------------------------ what tools say


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Block Size","gpu__time_duration.sum","launch__registers_per_thread"
"","","","us","register/thread"
"0","void relu<float, 4>(float*)","(256, 1, 1)","12.5","32"
printed by the program
"1","void dot(int)","(128, 1, 1)","1,024.0","40"
"""


def test_counters_are_read_from_what_ncu_prints():
    time, registers = "gpu__time_duration.sum", "launch__registers_per_thread"
    assert counters.kernels(NCU) == [
        ("void relu<float, 4>(float*)", {time: "12.5 us", registers: "32 register/thread"}),
        ("void dot(int)", {time: "1,024.0 us", registers: "40 register/thread"}),
    ]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", "passed"),
        ("========= Invalid __global__ write\n========= ERROR SUMMARY: 3 errors\n", "FAILED"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed"),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n", "FAILED"),
        ("========= COMPUTE-SANITIZER\n", "cut off"),
    ],
)
def test_the_sanitizers_summary_is_the_outcome(tmp_path, text, outcome):
    record = Record(tmp_path / "run", tmp_path, FACTS)
    record.begin("sanitizer", 1.0)
    (tmp_path / "sanitizer").mkdir()
    (tmp_path / "sanitizer" / "memcheck-op-12.txt").write_text(text)
    context = Context(FACTS, record, tmp_path, [], 1, dry_run=False)
    sanitizer._conclude(context, pool.Job("memcheck op", []))
    assert [row["outcome"] for row in record.rows] == [outcome]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compute-sanitizer", "--tol", "memcheck", "true"], "option --tol is not known"),
        (["compute-sanitizer", "--tool", "memchek", "true"], "--tool must be one of memcheck"),
        (["compute-sanitizer", "--log-file", "/nowhere/at/all", "true"], "the folder of --log-file"),
        (["ncu", "--csv", "--page", "raw"], "no program to run"),
    ],
)
def test_the_stand_in_refuses_what_the_tool_would(arguments, message):
    with pytest.raises(SystemExit, match=message):
        stand_in_tool.parse(arguments[0], arguments[1:])


# ------------------------------------------------------------------------------------------- what is run


def test_about_fifty_cases_fill_a_gpu_and_the_profiled_ops_have_one():
    files = [path.stem for path in benchmarks.CASES.glob("[!_]*.py")]
    assert 45 <= sum(len(filling.filling(file)) for file in files) <= 65
    profiled = [file for group in counters.GROUPS for file in group]
    assert len(profiled) == len(set(profiled)) == 10
    assert all(filling.filling(file) for file in profiled)


def test_files_named_in_steps_exist():
    assert all((ROOT / "tests" / "suite" / "ops" / f"{op}.py").exists() for op in sanitizer.TILED)
    assert all((benchmarks.CASES / f"{file}.py").exists() for group in counters.GROUPS for file in group)


# ------------------------------------------------------------------------------------------- the dry run


FAULTY = """
import pytest
from pyops.benchmarks.measure.device import DryRun

@pytest.mark.stand_in
@pytest.mark.parametrize("spoils", [False, True, False])
def test_kernel(spoils):
    if spoils:
        DryRun.fault = "an illegal memory access was encountered"
    assert True

def test_of_the_cpu():
    assert False
"""


def test_a_worker_that_meets_an_illegal_address_is_replaced(tmp_path):
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    command = [sys.executable, "-m", "tests.gpu.pytest_worker", "--device", "dry-run", "--share", "0/1"]
    options = ["-p", "tests.conftest", "--rootdir", str(tmp_path), "-c", "/dev/null", str(tmp_path)]
    rows = outcomes([pool.Job("worker 0", [*command, "--select", shlex.join(options)])], tmp_path)
    assert [(row["item"].partition("::")[2], row["outcome"]) for row in rows] == [
        ("test_kernel[False0]", "passed"),
        ("test_kernel[True]", "FAILED"),
        ("test_kernel[False1]", "passed"),
    ]
    assert rows[1]["message"] == "an illegal memory access was encountered"


def test_a_dry_run_runs_every_step(tmp_path):
    DryRun().backend("cuda")  # built outside of the budget
    start = time.monotonic()
    options = ["--dry-run", "--ops", "softmax", "--workers", "1", "--output", str(tmp_path)]
    done = run_python("-m", "benchmarks.gpu", *options, environment={"PYTHONPATH": str(ROOT)}, timeout=400)
    assert time.monotonic() - start < run.BUDGET_S, done.stdout
    (folder,) = tmp_path.iterdir()
    files = {path.name: path for path in folder.iterdir()}
    assert {"results.jsonl", "report.md", "logs.tar.gz", "results.csv", "runs.csv"} <= set(files)
    assert len(files) <= 8
    rows = [json.loads(line) for line in files["results.jsonl"].read_text().splitlines()]
    found = {step: [row for row in rows if row["step"] == step] for step in run.STEPS}
    assert all(row["outcome"] == "passed" for step in run.STEPS for row in found[step]), done.stdout
    items = {step: {row["item"] for row in found[step]} for step in run.STEPS}
    assert items["library"] == {"cpp", "cuda"}
    assert {"cuda softmax float32", "triton log_softmax float32"} <= items["smoke"]
    assert any("softmax" in item and "triton" in item for item in items["tests"])
    assert {"softmax_forward", "softmax_backward", "summary"} <= items["sanitizer"]
    case = "softmax [32, 10] float32 forward+backward"
    assert items["benchmarks"] == {"machine", "ceilings", case}
    assert items["counters"] == {"softmax", "a_kernel(int, float)"}
    timed = {row["section"]: row["result"] for row in rows if "result" in row}
    assert set(timed) == {"results", "overhead", "compile"}
    assert timed["results"]["clock"] == "GraphClock"
    assert worker.FAILED not in files["report.md"].read_text()
    assert case.rpartition(" ")[0] in files["report.md"].read_text()


def test_a_triton_that_cannot_be_imported_does_not_hide_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('half of it is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = probe(dry_run=True)
    assert facts["torch"] == torch.__version__
    assert facts["triton"] is None
