"""The model of GPUs: launches of which every count is known, and the command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from pyops.benchmarks.gpu_model import __main__ as command
from pyops.benchmarks.gpu_model import model, record, results, table
from pyops.benchmarks.gpu_model.gpus import A100, GPUS, H100, H200

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import add_one, store_shared
from tests.suite.processes import run_python

needs_compiler = pytest.mark.skipif(
    machine.missing_reason() is not None, reason=str(machine.missing_reason())
)


THREADS = 128


def adding(blocks: int, stride: int = 1, *, sample: int = 0) -> model.Work:
    """The work of so many blocks, each thread of which adds 1 to a word of its own."""
    launch = add_one(blocks, stride=stride, threads=THREADS, sample=sample)[0]
    return model.work("add", launch, launch.counters)


# ---- GPUs ------------------------------------------------------------------------------------------------


def test_published_figures_agree_with_each_other():
    assert H200.dram > H100.dram > A100.dram
    # FP32 rates of the data sheets, in TFLOP/s.
    for gpu, rate in ((H200, 67), (H100, 67), (A100, 19.5)):
        assert 2 * gpu.fp32 * gpu.multiprocessors * gpu.clock == pytest.approx(rate * 1e12, rel=0.01)
        assert gpu.fp64 * 2 == gpu.fp32
        assert gpu.tensor["bfloat16"] == pytest.approx(2 * gpu.tensor["float32"], rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "threads", "registers", "shared", "expected"),
    [
        (H200, 256, 64, 0, (4, "registers")),
        (H200, 256, 0, 0, (8, "threads")),
        (H200, 1024, 32, 0, (2, "threads")),
        (H200, 32, 16, 0, (32, "blocks")),
        (H200, 128, 32, 100 << 10, (2, "shared")),
        (A100, 128, 32, 100 << 10, (1, "shared")),
        (A100, 128, 32, 200 << 10, (0, "shared")),
    ],
)
def test_occupancy(gpu, threads, registers, shared, expected):
    assert gpu.resident_blocks(threads, registers, shared) == expected


# ---- bounds ----------------------------------------------------------------------------------------------


@needs_compiler
def test_accesses_side_by_side_move_their_bytes():
    work = adding(8)
    assert work.dram_bytes == 4 * 8 * THREADS
    assert model.bounds(work, H200, "float32")["DRAM"] == pytest.approx(work.dram_bytes / 4.8e12)
    assert model.bounds(work, A100, "float32")["DRAM"] == pytest.approx(work.dram_bytes / 2.039e12)


@needs_compiler
def test_accesses_far_apart_move_a_sector_each():
    near, far = adding(8), adding(8, stride=8)
    assert far.dram_bytes == 8 * near.dram_bytes
    a, b = (model.bounds(work, H200, "float32") for work in (near, far))
    assert b["L1"] == pytest.approx(8 * a["L1"])
    assert b["issue"] == a["issue"]


@needs_compiler
@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (32, 31), (33, 1)])
def test_bank_conflicts_cost_a_clock_each(stride, wavefronts):
    launch = store_shared(stride)
    work = model.work("store", launch, launch.counters)
    assert work.shared_bytes == 4096
    assert model.bounds(work, H200, "float32")["shared"] == pytest.approx(wavefronts / H200.clock)


@needs_compiler
@pytest.mark.parametrize("stride", [0, 1, 8])
def test_a_sample_of_the_blocks_scales_to_the_whole_grid(stride):
    whole, sampled = adding(200, stride), adding(200, stride, sample=10)
    assert sampled.blocks_run == 10
    assert replace(sampled, blocks_run=200) == whole


@needs_compiler
def test_one_block_too_many_costs_a_turn():
    even, odd = (model.bounds(adding(blocks), H200, "float32") for blocks in (132, 133))
    assert odd["issue"] == pytest.approx(2 * even["issue"])
    assert odd["DRAM"] == pytest.approx(133 / 132 * even["DRAM"])


@needs_compiler
def test_few_blocks_leave_multiprocessors_idle():
    work = adding(1)
    clocks = (work.warp_instructions - work.warps["move"]) / 4
    one, two = (model.bounds(adding(blocks), H200, "float32") for blocks in (1, 2))
    assert one["issue"] == two["issue"] == pytest.approx(clocks / H200.clock)


@needs_compiler
def test_what_fits_into_the_l2_cache_costs_no_dram_where_it_is_warm():
    work = adding(1000)
    assert model.warm_bound(work, H200, "float32").resource != "DRAM"
    large = replace(work, dram_bytes=H200.l2_bytes + H200.dram * 1.0)
    assert model.warm_bound(large, H200, "float32") == model.Bound(1.0, "DRAM")


@needs_compiler
def test_tensor_cores_bound_by_the_rate_of_their_type():
    work = adding(132)
    work = replace(work, counts={**work.counts, "tensor_flops": 989.4e12})
    found = {dtype: model.bounds(work, H200, dtype)["tensor"] for dtype in H200.tensor}
    assert found["bfloat16"] == pytest.approx(1.0)
    assert found["float32"] == pytest.approx(2.0)


@needs_compiler
def test_launches_of_one_shape_are_added_up():
    one, other = adding(8), adding(9)
    added = model.add_up([one, other, one])
    assert [(work.launches, work.blocks) for work in added] == [(2, 8), (1, 9)]
    for gpu in GPUS:
        once, twice = (model.bound(work, gpu, "float32") for work in (one, added[0]))
        assert twice.seconds == pytest.approx(2 * once.seconds)


@needs_compiler
def test_how_far_two_samples_are_apart_is_a_share_of_the_whole_case():
    small, large = adding(8), adding(72)
    assert record.deviation([small, large], [small, large]) == 0
    assert record.deviation([small, large], [adding(16), large]) == pytest.approx(0.1)
    assert record.deviation([small, adding(8, stride=8)], [small, small]) == pytest.approx(7 / 9)
    assert record.deviation([small], [small, small]) == float("inf")


# ---- the command -----------------------------------------------------------------------------------------


def test_it_says_what_it_needs_where_the_sources_are_not(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tests.ptx_machine", None)
    monkeypatch.setenv("PYOPS_SIZES_OF_GPU", "1")
    with pytest.raises(SystemExit):
        command.main(["relu"])
    assert "needs a checkout of the sources" in capsys.readouterr().err


def test_the_command_shows_relu_as_one_pass_over_memory(tmp_path):
    nvcc = pytest.importorskip("tests.ptx_machine.nvcc")
    if nvcc.missing_reason():
        pytest.skip(nvcc.missing_reason())
    file = tmp_path / "model.json"
    arguments = ("relu", "--case", "[2048, 2048] float32", "--json", str(file))
    shown = run_python("-m", "pyops.benchmarks.gpu_model", *arguments).stdout
    assert shown.startswith(table.PREAMBLE)
    assert table.PREAMBLE.startswith("A model: no GPU has run this")
    assert "relu [2048, 2048] float32, forward+backward" in shown
    (found,) = json.loads(file.read_text())
    forward, backward = found["launches"]
    assert found["deviation"] == 0
    assert forward["dram_bytes"] == 2 * 4 * 2048**2
    for launch in (forward, backward):
        assert launch["grid"][0] == 4096  # as on a GPU
        assert launch["blocks_run"] == launch["grid"][0]  # few enough for all to run
        assert launch["counts"]["load_sectors"] == 16 * launch["counts"]["load_requests"]
        assert launch["bounds"]["H200"]["resource"] == "DRAM"
        assert launch["bounds"]["H200"]["seconds"] == pytest.approx(launch["dram_bytes"] / 4.8e12)


# ---- the table of all families ---------------------------------------------------------------------------


def test_committed_page_is_made_of_the_committed_table():
    rows = results.read(results.RESULTS / "gpu-model.csv")
    assert results.page(rows) == (results.RESULTS / "gpu-model.md").read_text(encoding="utf-8")
    assert {row["case"] for row in rows} == set(results.CASES)
    for case, mode in results.selected():
        assert {row["when"] for row in rows if results.case_key(row) == (case.name, mode)} == {
            "before",
            "now",
        }


def test_page_compares_a_case_with_what_was_before():
    before = dict.fromkeys(results.FIELDS, "1") | {
        "when": "before", "case": "relu", "mode": "forward", "kernel": "f", "floor_megabytes": "4.8",
        "microseconds": "2.0", "resource": "issue", "limit": "threads",
    }  # fmt: skip
    now = before | {"when": "now", "microseconds": "1.25", "instructions": "0.25"}
    page = results.page([before, now])
    assert "| relu, forward | 1.0 | 0.2 | 1.00 | 1.00 | 4.80 | 2.00 | 1.25 | 50% | 80% |" in page
    assert "no GPU measured this" in page
