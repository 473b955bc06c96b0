"""Reports: what is kept of a run, and that the committed ones are rendered from what is kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from pyops.benchmarks import run
from pyops.benchmarks.measure.case import FORWARD
from pyops.benchmarks.report import page, readme, store, tables
from pyops.benchmarks.report.rows import Report, Row, Run

from tests.suite.imports import imports


def small_report(
    date: str = "2026-01-02T00:00:00Z", case: str = "[1]", speedup: float = 0.5, algorithm: str = ""
) -> Report:
    """One case on a machine of its own, as a run would report it."""
    facts = {field.name: "1" for field in fields(Run)} | {"machine": "A CPU 2 cores", "date": date, "gpu": ""}
    key = ("A CPU 2 cores", "time", "op", case, "float32", FORWARD)
    ratio = {"speedup": speedup, "speedup_q1": 0.4, "speedup_q3": 0.6, "algorithm": algorithm}
    rows = [
        Row(*key, "pyops cpp", 1000.0, **ratio, peak_bytes=4 << 20, date=date),
        Row(*key, "eager", 1000.0 * speedup, peak_bytes=1 << 20, date=date),
    ]
    return Report([Run(**facts)], rows)


def test_losses_are_listed_in_time_and_memory():
    lines = tables.losses(small_report(speedup=0.5))
    assert lines == [
        "op [1] float32 fwd, pyops cpp: 0.50x against eager (0.40-0.60)",
        "op [1] float32 fwd, pyops cpp: peak memory 4.0 MiB against 1.0 of eager",
    ]


def test_rows_survive_the_tables_and_newer_ones_replace_older(tmp_path):
    old, new = small_report("2026-01-02T00:00:00Z"), small_report("2026-01-03T00:00:00Z", speedup=1.25)
    other = small_report("2026-01-01T00:00:00Z", case="[2, 3]", algorithm="winograd")
    for report in (new, old, other):
        store.add(report, tmp_path)
    found = store.read(tmp_path)
    assert found.rows == [*new.rows, *other.rows]
    assert found.runs == [*other.runs, *new.runs]
    shown = (tmp_path / "a-cpu-2-cores.md").read_text()
    assert "| op [1] float32 | fwd | cpp | 1.000 | 1.250 | - | - | 1.25x | 0.40-0.60 | - | 2 | - |" in shown
    assert (
        "| op [2, 3] float32 | fwd | cpp | 1.000 | 0.500 | - | - | 0.50x | 0.40-0.60 | - | 1 | winograd |"
        in shown
    )
    assert "run 2: measured 2026-01-03T00:00:00Z" in shown


def test_a_case_that_was_not_started_keeps_its_older_rows(tmp_path):
    store.add(small_report("2026-01-02T00:00:00Z"), tmp_path)
    late = small_report("2026-01-03T00:00:00Z")
    row = replace(late.rows[0], contender="", microseconds=None, speedup=None, note="not started: time limit")
    store.add(Report(late.runs, [row]), tmp_path)
    assert [found.date[:10] for found in store.read(tmp_path).runs] == ["2026-01-02"]
    failed = replace(row, note="wrong: far off")
    store.add(Report(late.runs, [failed]), tmp_path)
    assert tables.problems(store.read(tmp_path)) == ["op [1] float32 fwd: wrong: far off"]
    assert tables.losses(store.read(tmp_path)) == []


def test_committed_reports_are_rendered_from_the_committed_tables():
    committed = {path.name: path.read_text() for path in store.FOLDER.iterdir() if path.is_file()}
    for others in ("README.md", "gpu-model.csv", "gpu-model.md"):  # the model's are of benchmarks/gpu_model
        committed.pop(others)
    assert committed == store.files(store.read(store.FOLDER)), "run python -m pyops.benchmarks.report"


def test_cases_measure_and_report_import_one_way():
    """``measure`` knows no case, and a report knows neither."""
    above = {"measure": {"cases", "report"}, "cases": {"report"}, "report": {"cases", "measure"}}
    for file, imported in imports(Path(run.__file__).parent, "pyops.benchmarks").items():
        assert not {other.parts[0] for other in imported} & above.get(file.parts[0], set()), file


def a_run() -> dict:
    """Raw results as of a run: a win, a loss beside a neighbour, and a case that failed."""

    def result(op: str, ratio: float, **more: object) -> dict:
        spread = {"median": ratio, "q1": ratio * 0.9, "q3": ratio * 1.1}
        seconds = {"pyops cpp": {"median": 1e-3, "q1": 1e-3, "q3": 1e-3}, "eager": dict(spread)}
        seconds["eager"] = {name: 1e-3 * value for name, value in spread.items()}
        peak = {name: {"allocated": 1 << 20, "resident": 1 << 20} for name in seconds}
        return {
            "case": f"{op} [8] float32",
            "op": op,
            "mode": FORWARD,
            "dtype": "float32",
            "seconds": seconds,
            "best_baseline": "eager",
            "speedup": {"pyops cpp": spread},
            "peak": peak,
            "beside": None,
            "algorithm": {},
            "notes": {},
            "left_out": {},
            "bytes_read": 1000,
            "bytes_written": 1000,
            "flops": 4000,
            "floor_seconds": 1e-4,
            **more,
        }

    beside = result("relu", 0.5) | {"neighbours": 1}
    machine = {"cpu": "A CPU", "cores": 2, "torch_cpu_capability": "AVX2", "date": "2026-01-02T00:00:00Z"}
    return {
        "machine": machine | {"pyops_libraries": {}, "load_average": 0.1},
        "settings": {},
        "ceilings": {"copy": 1e10, "read": 1e10, "gemm": {"float32": 1e11}, "text": "fast"},
        "sizes": [
            result("gelu", 2.0, elements=elements, case=f"gelu [{elements}] float32")
            | {
                "seconds": {
                    way: {"median": 1e-6, "q1": 1e-6, "q3": 1e-6} for way in ("pyops default", "eager")
                }
            }
            | {"speedup": {"pyops default": {"median": 1.0, "q1": 1.0, "q3": 1.0}}}
            for elements in (1024, 4096)
        ],
        "results": [result("relu", 2.0, beside=beside), result("softmax<b>", 0.5)],
        "failures": [
            {"case": "tanh [8] float32", "mode": FORWARD, "kind": "error", "message": "no memory"},
        ],
    }


def test_the_page_has_pictures_losses_and_rows(tmp_path):
    page.write(a_run(), tmp_path / "report.html")
    shown = (tmp_path / "report.html").read_text()
    for title in (
        "Speed beside torch",
        "Roofline, float32",
        "Memory",
        "Time against size",
        "On a shared machine",
    ):
        assert f"<h2>{title}</h2>" in shown
    assert shown.count("data:image/png;base64,") == 10  # in the colours of a light and of a dark page
    assert "http" not in shown  # it needs no other file, and no network
    assert "softmax&lt;b&gt; [8] float32 fwd, pyops cpp: 0.50x against eager" in shown
    assert "beside neighbours 0.50x, 25 % of the 2.00x alone" in shown
    assert "tanh [8] float32 fwd: error: no memory" in shown
    rows = (tmp_path / "report.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 + 2 + 2 * 2 + 1
    assert 'href="report.csv"' in shown


def test_the_readme_shows_what_the_tables_say():
    text = readme.README.read_text()
    message = "run: python -m pyops.benchmarks.report"
    assert readme.render(text, store.read(store.FOLDER)) == text, message
    for op, beginning in readme.SHOWN:
        assert f"| {op.replace('_', ' ')} {beginning}" in text, (
            f"{op} {beginning}: measure it, or show another"
        )


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="one line <!-- measured: begin -->"):
        readme.render("# pyops", small_report())
