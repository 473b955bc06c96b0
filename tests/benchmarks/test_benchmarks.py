"""The benchmark harness itself: wrong results are refused, ratios are right, every case is sound."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pyops.benchmarks import cases, run
from pyops.benchmarks.cases import inference, training_step
from pyops.benchmarks.cases.tools.traffic import rows_traffic
from pyops.benchmarks.measure import ceilings, checks, harness, memory
from pyops.benchmarks.measure.case import FORWARD, FORWARD_BACKWARD, TRAINING_STEP, Case, Inputs, Traffic
from pyops.benchmarks.measure.clocks import HostClock
from pyops.benchmarks.report import store, text
from pyops.benchmarks.report.rows import from_raw

import pyops.functional
from pyops import backends
from pyops.convert import steps

CPU = torch.device("cpu")
SETTINGS = harness.Settings(
    warmup_s=0.0, block_s=1e-4, budget_s=0.0, min_rounds=3, max_rounds=3, compile=False
)


class FakeClock:
    """Hands out scripted times by the name a call returns, and counts what was asked of it."""

    max_calls = 100

    def __init__(self, times: dict[str, Callable[[int], float]]) -> None:
        self.times = times
        self.asked: list[tuple[str, int]] = []

    def block(self, call: Callable[[], str], calls: int, before_call: object = None) -> float:
        name = call()
        index = sum(1 for asked, _ in self.asked if asked == name)
        self.asked.append((name, calls))
        return self.times[name](index)


def tiny_case(**more) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return {
            "input": torch.randn(64, 40, device=device),
            "target": torch.randint(40, (64,), device=device),
        }

    return Case("cross_entropy", "tiny", inputs, rows_traffic((64, 40)), **more)


def test_ratio_is_taken_within_a_round_against_the_fastest_baseline():
    samples = {
        "pyops cpp": [1.0, 10.0, 2.0],
        "eager": [3.0, 30.0, 6.0],
        "compile": [2.0, 20.0, 4.0],  # both drift with the machine; the ratio does not
    }
    best, speedup = harness.compare(samples, ["pyops cpp"], ["eager", "compile"])
    assert best == "compile"
    assert speedup["pyops cpp"] == harness.Spread(2.0, 2.0, 2.0)


def test_spread_is_median_and_quartiles():
    assert harness.Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == harness.Spread(3.0, 2.0, 4.0)
    assert harness.Spread.of([7.0]) == harness.Spread(7.0, 7.0, 7.0)


def test_rounds_rotate_and_blocks_are_long_enough_for_the_clock():
    clock = FakeClock({"a": lambda i: 1e-3, "b": lambda i: 5e-3, "c": lambda i: 1.0})
    settings = harness.Settings(warmup_s=0.0, block_s=0.02, budget_s=1.1, min_rounds=4, max_rounds=9)
    samples = harness.run_rounds({name: lambda name=name: name for name in "abc"}, clock, settings)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    warm_up, measured = clock.asked[:5], clock.asked[5:]
    assert warm_up == [("a", 1), ("a", 20), ("b", 1), ("b", 4), ("c", 1)]
    assert [name for name, _ in measured] == list("abcbcacababc")
    assert dict(measured) == {"a": 20, "b": 4, "c": 1}


def test_the_budget_bounds_the_rounds():
    clock = FakeClock({"a": lambda i: 1.0})
    settings = harness.Settings(warmup_s=0.0, block_s=1.0, budget_s=5.0, min_rounds=2, max_rounds=50)
    assert len(harness.run_rounds({"a": lambda: "a"}, clock, settings)["a"]) == 5
    clock = FakeClock({"a": lambda i: 100.0})
    settings = harness.Settings(warmup_s=0.0, block_s=1.0, budget_s=5.0, min_rounds=9, max_rounds=50)
    assert len(harness.run_rounds({"a": lambda: "a"}, clock, settings)["a"]) == 3


def test_time_before_a_call_is_not_measured():
    filler: list[int] = []
    slow = lambda: filler.extend(range(200_000))  # noqa: E731
    assert HostClock().block(lambda: None, 3, slow) < 1e-3
    assert len(filler) == 600_000


def test_a_case_is_checked_timed_and_reported():
    machine_limits = ceilings.Ceilings(copy=2e9, read=2e9, gemm={"float32": 1e12})
    result = harness.measure(tiny_case(), FORWARD_BACKWARD, CPU, SETTINGS, ceilings=machine_limits)
    assert set(result.seconds) == {"pyops cpp", "eager"}
    assert all(len(values) == 3 for values in result.samples.values())
    assert result.best_baseline == "eager"
    assert result.errors["pyops cpp"]["gradient of input"].median < 1e-5
    assert result.peak["pyops cpp"].allocated >= 64 * 40 * 4  # at least the gradient
    assert result.floor_seconds == pytest.approx(3 * 64 * 40 * 4 / 2e9, rel=0.3)
    json.dumps(result.as_dict())


def test_a_training_step_is_checked_timed_and_reported():
    case = training_step.case("lenet", 4, 12)
    result = harness.measure(case, TRAINING_STEP, CPU, SETTINGS)
    subjects = {"pyops cpp", "pyops cpp channels_last"}
    assert set(result.seconds) == subjects | {"eager", "channels_last"}
    assert set(result.speedup) == subjects
    assert set(result.errors["pyops cpp"]) >= {"changes of the loss over 3 steps", "gradient of 0.weight"}
    assert result.flops > 3 * 2 * 4 * 12 * 12 * 6 * 25  # the first convolution alone, less its data gradient


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("loss", "loss: norm error"),
        ("optimizer", "changes of the loss over 3 steps"),
        ("gradient", "gradient of 0.weight: norm error"),
    ],
)
def test_a_training_step_with_wrong_updates_is_never_timed(monkeypatch, wrong, message):
    case = training_step.case("lenet", 4, 12)
    build = training_step.StepCase.run

    def broken(self, library, inputs, dtype=None):
        training = build(self, library, inputs, dtype)
        if library == "pyops" and wrong == "loss":
            right = training.loss
            training.loss = lambda *batch: right(*batch) + 1
        if library == "pyops" and wrong == "optimizer":
            training.optimizer.step = lambda: None
        if library == "pyops" and wrong == "gradient":
            training.net[0].weight.register_hook(torch.zeros_like)
        return training

    monkeypatch.setattr(training_step.StepCase, "run", broken)
    with pytest.raises(checks.WrongResult, match=message):
        harness.measure(case, TRAINING_STEP, CPU, SETTINGS)


def test_inference_is_checked_timed_and_reported(monkeypatch):
    case = inference.case("resnet56", 2, 8, width=4)
    result = harness.measure(case, FORWARD, CPU, SETTINGS)
    assert set(result.seconds) == {"pyops cpp", "pyops cpp channels_last", "eager", "channels_last"}
    assert result.flops > 2 * 2 * 8 * 8 * 9 * 4 * 4 * 18  # the first stage alone
    monkeypatch.setattr(steps, "_fold", lambda conv, norm: (conv.weight, norm.bias))
    with pytest.raises(checks.WrongResult, match="output: norm error"):
        harness.measure(case, FORWARD, CPU, SETTINGS)


@pytest.mark.parametrize("network", ["lenet", "batchnorm_lenet"])
def test_training_steps_leave_the_parameters_as_they_were(network):
    case = training_step.case(network, 4, 12)
    contender = case.contenders(TRAINING_STEP, CPU, compiled=False)[0]
    with backends.use_backend(None):  # a contender chooses its own and leaves it in use
        loss, changes, *gradients = contender.run()
        losses = [contender.call()[0].item() for _ in range(3)]
        again = contender.run()
    assert losses == [losses[0]] * 3
    assert all(torch.equal(*pair) for pair in zip(again, (loss, changes, *gradients), strict=True))
    assert len(set(changes.tolist())) == 3


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Stand in for ``pyops.functional.cross_entropy``."""
    return lambda function: monkeypatch.setattr(pyops.functional, "cross_entropy", function)


class _WrongGradient(torch.autograd.Function):
    """Right loss; the gradient's small entries (all but the target's) are zero."""

    @staticmethod
    def forward(ctx, input, target):
        ctx.save_for_backward(input, target)
        return F.cross_entropy(input, target)

    @staticmethod
    def backward(ctx, grad):
        input, target = ctx.saved_tensors
        index = target[:, None]
        value = (input.softmax(1).gather(1, index) - 1) / len(target)
        return grad * torch.zeros_like(input).scatter(1, index, value), None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda input, target: F.cross_entropy(input, target) * 1.0001, "output: norm error"),
        (lambda input, target: F.cross_entropy(input, target) * float("nan"), "output: norm error"),
        (lambda input, target: F.cross_entropy(input, target)[None], r"output: shape \(1,\)"),
        (_WrongGradient.apply, "gradient of input"),
        (lambda input, target: F.cross_entropy(input.half().float(), target), "output: norm error"),
    ],
    ids=["scaled", "nan", "shape", "gradient", "precision"],
)
def test_a_wrong_result_is_never_timed(replaced, wrong, message):
    replaced(lambda input, target: wrong(input, target))
    clock = FakeClock({})
    with pytest.raises(checks.WrongResult, match=f"cross_entropy tiny .*pyops cpp: {message}"):
        harness.measure(tiny_case(), FORWARD_BACKWARD, CPU, SETTINGS, clock=clock)
    assert not clock.asked


@pytest.mark.parametrize(("case", "product"), [(tiny_case(tf32=True), True), (tiny_case(), False)])
def test_tf32_is_allowed_for_products_on_a_gpu_where_torch_allows_it(monkeypatch, case, product):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert case.uses_tf32(torch.device("cuda")) == product
    assert not case.uses_tf32(CPU)
    assert not dataclasses.replace(case, dtype=torch.bfloat16).uses_tf32(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not case.uses_tf32(torch.device("cuda"))


def test_where_tf32_is_allowed_its_error_is_and_no_larger_one(monkeypatch, replaced):
    monkeypatch.setattr(Case, "uses_tf32", lambda self, device: True)
    replaced(lambda input, target: F.cross_entropy(input, target) * (1 + 2.0**-10))
    harness.measure(tiny_case(tf32=True), FORWARD_BACKWARD, CPU, SETTINGS)
    replaced(lambda input, target: F.cross_entropy(input, target) * (1 + 2.0**-6))
    with pytest.raises(checks.WrongResult, match="output: norm error"):
        harness.measure(tiny_case(tf32=True), FORWARD_BACKWARD, CPU, SETTINGS)


def test_a_result_that_changes_while_timing_is_refused(replaced):
    calls = []

    def drifting(input, target):
        calls.append(1)
        return F.cross_entropy(input, target) * (1.0 if len(calls) < 3 else 1.01)

    replaced(drifting)
    with pytest.raises(checks.WrongResult, match="before timing"):
        harness.measure(tiny_case(), FORWARD, CPU, SETTINGS)


def test_a_broken_baseline_is_left_out_with_its_reason():
    def broken(input, target):
        raise NotImplementedError("not on this torch")

    case = tiny_case(baselines={"broken": broken, "wrong": lambda input, target: input.sum() * 0})
    result = harness.measure(case, FORWARD_BACKWARD, CPU, SETTINGS)
    assert set(result.seconds) == {"pyops cpp", "eager"}
    assert "not on this torch" in result.left_out["broken"]
    assert "WrongResult" in result.left_out["wrong"]


def test_an_input_that_the_call_overwrites_is_rewritten_before_each_call():
    case = tiny_case(pyops_options={"inplace_backward": True}, refill="input")
    result = harness.measure(case, FORWARD_BACKWARD, CPU, SETTINGS)
    assert set(result.seconds) == {"pyops cpp", "eager"}


def test_the_callers_backend_is_kept():
    with backends.use_backend("reference"):
        harness.measure(tiny_case(), FORWARD, CPU, SETTINGS)
        assert backends.resolve(torch.zeros(1)) is None


def test_errors_see_small_wrong_values_and_agreeing_infinities():
    reference = torch.tensor([1.0, 1e-6, float("inf"), float("nan")], dtype=torch.float64)
    assert checks.errors(reference.float(), reference).norm < 1e-7
    reference = torch.tensor([1.0, 1e-6, 1e-6, 1e-6, float("inf")], dtype=torch.float64)
    off = checks.errors(torch.tensor([1.0, 0.0, 0.0, 1e-6, float("inf")]), reference)
    assert off.norm < 2e-6
    assert off.median < 1e-6
    off = checks.errors(torch.tensor([1.0, 0.0, 0.0, 0.0, float("inf")]), reference)
    assert off.norm < 2e-6
    assert off.median == pytest.approx(1.0)
    reference = torch.tensor([1.0, 1e-6, float("inf"), float("nan")], dtype=torch.float64)
    finite = torch.tensor([1.0, 1e-6, 3e38, float("nan")])
    assert checks.errors(finite, reference).peak == float("inf")


def test_one_element_that_cancelled_does_not_make_a_result_wrong():
    """It did: a gradient of a small cell in float16, whose other errors were half of torch's."""
    reference = torch.linspace(0.5, 1.0, 64, dtype=torch.float64)
    reference[7] = 1e-5
    ours, torchs = reference + 1e-4, reference + 2e-4
    torchs[7] = reference[7]
    found = checks.require_close("a", [ours], [reference], [torchs], ["b"], torch.float16)
    assert found["b"].median < 3e-4


def test_peak_memory_counts_what_a_call_holds_at_once():
    count = 1 << 20

    def call() -> torch.Tensor:
        first = torch.ones(count)
        second = first + 1
        del first
        return second * 2

    peak = memory.peak(call, CPU, None)
    assert peak.allocated == pytest.approx(2 * 4 * count, rel=0.01)
    assert peak.resident is None or peak.resident >= 0


def test_floor_is_the_slower_of_bytes_and_arithmetic():
    limits = ceilings.Ceilings(copy=100.0, read=200.0, gemm={"float32": 1000.0, "bfloat16": 4000.0})
    assert limits.floor_seconds(Traffic(300, 100), torch.float32) == pytest.approx(2.0 + 1.0)
    assert limits.floor_seconds(Traffic(0, 100), torch.float32) == pytest.approx(1.0)
    assert limits.floor_seconds(Traffic(1, 1, 8000), torch.float32) == pytest.approx(8.0)
    assert limits.floor_seconds(Traffic(1, 1, 8000), torch.bfloat16) == pytest.approx(2.0)


@pytest.mark.parametrize("case", cases.discover(), ids=lambda case: case.name)
def test_every_case_builds_its_inputs_and_states_its_work(case: Case):
    inputs = case.build("meta")
    assert set(case.differentiable) <= set(inputs)
    assert all(inputs[name].dtype == case.dtype for name in case.differentiable)
    assert case.modes
    assert case.devices
    for mode in case.modes:
        traffic = case.traffic(mode)
        assert traffic.read > 0
        assert traffic.written > 0
    if set(case.modes) == {FORWARD, FORWARD_BACKWARD}:
        assert case.traffic(FORWARD_BACKWARD).total > case.traffic(FORWARD).total
    assert callable(case.pyops_call())
    assert callable(case.eager_call())


def test_every_public_function_has_a_benchmark_and_an_overhead_case():
    every = cases.discover()
    functions = set(pyops.functional.__all__)
    assert {case.op for case in every} == functions | {training_step.OP, inference.OP}
    assert {case.op for case in every if case.overhead} == functions


def test_inputs_are_the_same_every_time_and_leave_the_generator_alone():
    case = next(case for case in cases.discover() if case.overhead)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = case.build("cpu"), case.build("cpu")
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def small_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "discover", lambda: [tiny_case(quick=True)])
    monkeypatch.setattr(run, "QUICK", SETTINGS)
    limits = ceilings.Ceilings(1e10, 1e10, {"float32": 1e11})
    monkeypatch.setattr(ceilings, "measure", lambda device, quick: limits)


def test_run_writes_json_and_markdown(small_registry, tmp_path, capsys):
    raw_path, text_path = tmp_path / "new" / "raw.json", tmp_path / "report.md"
    assert run.run([], raw_path, "cpu", True, markdown_path=text_path) == 0
    raw = json.loads(raw_path.read_text())
    assert raw["results"][0]["case"] == "cross_entropy tiny float32"
    for key in ("cpu", "cores", "torch", "pyops", "commit", "pyops_libraries", "thp_allocator", "date"):
        assert key in raw["machine"]
    for shown in (text_path.read_text(), text.plain(from_raw(raw)), capsys.readouterr().out):
        assert "cross_entropy tiny float32" in shown
        assert "Where we lose" in shown


def test_run_reports_a_wrong_result_and_fails(small_registry, replaced, tmp_path):
    replaced(lambda input, target: F.cross_entropy(input, target) + 1)
    path = tmp_path / "raw.json"
    assert run.run(["cross_entropy"], path, "cpu", True) == 1
    raw = json.loads(path.read_text())
    assert raw["results"] == []
    assert raw["failures"][0]["kind"] == "wrong"


def test_run_names_the_ops_it_knows(small_registry, capsys):
    assert run.run(["cross_entropi"], None, "cpu", True) == 2
    assert "op must be one of cross_entropy, got cross_entropi" in capsys.readouterr().err


def test_run_puts_its_results_into_tables(small_registry, tmp_path):
    assert run.run([], None, "cpu", True, results_folder=tmp_path) == 0
    found = store.read(tmp_path)
    assert {row.name for row in found.rows} == {"cross_entropy tiny float32"}
    assert {row.contender for row in found.rows} == {"pyops cpp", "eager"}
    assert (tmp_path / f"{store.slug(found.runs[0].machine)}.md").exists()


def _dropout_case() -> Case:
    return next(c for c in cases.discover() if c.op == "dropout" and "relu" in c.name and c.overhead)


def test_a_random_mask_is_judged_by_itself():
    result = harness.measure(_dropout_case(), FORWARD_BACKWARD, CPU, SETTINGS)
    assert len(result.seconds) >= 2
    assert not result.left_out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda input, p, **more: F.dropout(F.relu(input + more["bias"]), 0.8) * 0.4, "share"),
        (lambda input, p, **more: F.dropout(F.relu(input + more["bias"]), p) * 1.01, "output: norm error"),
        (
            lambda input, p, **more: (
                F.dropout(F.relu(input + more["bias"]), p).detach() + 0 * (input + more["bias"])
            ),
            "gradient of input",
        ),
    ],
    ids=["probability", "scale", "gradient"],
)
def test_a_wrong_random_result_is_never_timed(monkeypatch, wrong, message):
    monkeypatch.setattr(pyops.functional, "dropout", wrong)
    with pytest.raises(checks.WrongResult, match=message):
        harness.measure(_dropout_case(), FORWARD_BACKWARD, CPU, SETTINGS)
