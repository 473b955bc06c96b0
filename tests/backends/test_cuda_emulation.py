"""The CUDA sources on the CPU: the emulator itself, and what the shared suite cannot see of the kernels.

The suite in the other test files runs on the emulated backend for values, options and shapes. Here: does
the emulator find what it is there to find, are results the same for every order of threads, does a bad
class index stay away from memory, does AddressSanitizer agree.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyops
import pyops.functional as F
from tests.cuda_emulation import build
from tests.hostile import build as sanitizers
from tests.suite import checks
from tests.suite.ops import conv2d
from tests.suite.processes import ROOT

pytestmark = pytest.mark.skipif(
    build.missing_reason() is not None, reason=f"no CUDA emulator: {build.missing_reason()}"
)

IGNORE_INDEX = -100
SEEDS = ("0", "1", "2")


# ---- the emulator --------------------------------------------------------------------------------------


def call(entry: str, out: object = None) -> str:
    """Run a self-test entry; returns the emulator's complaint, empty when there is none."""
    error = ctypes.create_string_buffer(2000)
    failed = getattr(build.load_selftest(), entry)(out, error, len(error))
    return error.value.decode() if failed else ""


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_operations(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_int * (7 * 128))()
    assert call("run_shuffles", out) == ""
    every_third = sum(1 << lane for lane in range(0, 32, 3))
    for thread in range(128):
        lane = thread % 32
        down = lane + 3 if lane % 8 + 3 < 8 else lane
        up = lane - 3 if lane >= 3 else lane
        ballot = ctypes.c_int(every_third).value
        votes = 1 if lane < 16 else 2
        expected = [lane ^ 5, down, up, 17, ballot, votes, sum(range(32)) + 16]
        assert out[7 * thread : 7 * thread + 7] == expected


def test_block_and_thread_indices() -> None:
    out = (ctypes.c_int * 1)()
    assert call("run_count", out) == ""
    assert out[0] == 3 * 2 * 2 * 8 * 4 * 2


def test_dynamic_shared_memory() -> None:
    out = (ctypes.c_int * 3)()
    assert call("run_dynamic_sum", out) == ""
    assert list(out) == [sum(range(100))] * 3


def test_large_dynamic_shared_memory() -> None:
    out = (ctypes.c_int * 1)()
    assert call("run_large_shared", out) == ""
    assert out[0] == sum(range(100))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_load_matrices(monkeypatch: pytest.MonkeyPatch, seed: str, transposed: bool) -> None:
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_int * 128)()
    assert call("run_load_transposed" if transposed else "run_load_matrices", out) == ""
    for lane, matrix in itertools.product(range(32), range(4)):
        row, column = lane // 4, lane % 4 * 2
        pair = [(row, column), (row, column + 1)]
        low, high = (100 * matrix + (10 * c + r if transposed else 10 * r + c) for r, c in pair)
        assert out[4 * lane + matrix] == high << 16 | low


@pytest.mark.parametrize(("dtype", "depth"), [("bfloat16", 16), ("float16", 16), ("tf32", 8)])
@pytest.mark.parametrize("seed", SEEDS)
def test_multiply_add(monkeypatch: pytest.MonkeyPatch, seed: str, dtype: str, depth: int) -> None:
    """Fragments as PTX lays them out; all numbers are exact in every dtype."""
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_float * 128)()
    assert call(f"run_multiply_{dtype}", out) == ""
    k = torch.arange(depth)
    a = (1 + 2 * torch.arange(16)[:, None] + k * 0.125).to(getattr(torch, dtype, torch.float32)).double()
    b = (torch.arange(8) - k[:, None]).double()
    assert torch.equal(torch.tensor(list(out)).view(16, 8).double(), a @ b + 0.5)


def test_asynchronous_copies_are_made_when_waited_for() -> None:
    out = (ctypes.c_int * 12)()
    assert call("run_copies", out) == ""
    assert list(out) == [1, 2, 3, 4, 0, 0, 0, 0, -1, -1, -1, -1]


@pytest.mark.parametrize("seed", SEEDS)
def test_barrier(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_float * 64)()
    assert call("run_neighbours", out) == ""
    assert list(out) == [(i + 1) % 64 for i in range(64)]


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_barrier_shows_as_nan(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_float * 64)()
    assert call("run_racy_neighbours", out) == ""
    assert any(value != value for value in out)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_cooperative_launch_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
    out = (ctypes.c_int * 16)()
    assert call("run_together", out) == ""
    assert list(out) == [b * (b + 1) // 2 for b in range(16)]


def test_orders_of_threads_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    results = set()
    for seed in SEEDS:
        monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
        out = (ctypes.c_float * 64)()
        call("run_racy_neighbours", out)
        results.add(str(list(out)))
    assert len(results) == len(SEEDS)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "run_exit_before_barrier",
            r"deadlock: 1 thread\(s\) exited.*; 63 .* waiting at the barrier selftest.cu:\d+",
        ),
        ("run_two_barriers", r"divergent barrier: thread \(0, 0, 0\) waits at selftest.cu:\d+, thread"),
        (
            "run_exit_before_shuffle",
            r"waits in a warp operation for a thread that has exited \(selftest.cu:\d+\)",
        ),
        ("run_two_shuffles", r"meets another warp operation in its warp"),
        ("run_foreign_lane", r"reads from a lane outside the mask"),
        ("run_deadlock", r"deadlock: .*waiting at the barrier .*waiting in the warp operation"),
        ("run_misaligned_copy", r"copies from or to an address that is no multiple of the copy's size"),
        ("run_much_shared", r"more than 48 KiB of dynamic shared memory"),
        ("run_too_large_shared", r"more than 99 KiB of dynamic shared memory"),
        ("run_too_many_together", r"17 cooperating blocks, more than the 16 that can be resident at once"),
        (
            "run_wait_for_nobody",
            r"deadlock: 63 .* at the barrier .*; 1 .* waiting for a counter grid_sync.cuh:\d+",
        ),
        ("run_wide_block", r"1 to 1024 threads, got 1025"),
        ("run_tall_grid", r"grid \(1, 65536, 1\) is outside"),
    ],
)
def test_hopeless_kernels_are_reported(entry: str, message: str) -> None:
    out = (ctypes.c_int * 128)()
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(call(entry, out))
    # The fibers that were left behind are fit for the next launch.
    test_dynamic_shared_memory()


# ---- the kernels ---------------------------------------------------------------------------------------


@pytest.fixture
def ops() -> object:
    build.load()
    return torch.ops.pyops_emulated


def random(shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
    """Normal values in storage that starts ``offset`` elements after an aligned address."""
    size = torch.Size(shape).numel()
    return torch.randn(offset + size, dtype=torch.float64).mul(3).to(dtype)[offset:].view(shape)


# One per launch regime: thread per row, part of a warp, warp, block in registers, block in memory, columns
# alone and shared. Rows enough for every block to loop.
REGIMES = [(2600, 3), (90, 23), (30, 131), (7, 3001), (2, 20011), (2, 5, 700), (2, 67, 90)]


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the largest value; ``expected`` is float64."""
    scale = expected.abs().max().item() or 1.0
    assert (got.double() - expected).abs().max().item() <= 8 * torch.finfo(dtype).eps * scale


def cross_entropy(
    ops: object, x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, reduction: int
) -> list:
    options = (reduction, IGNORE_INDEX, 0.1, 0.01)
    loss, stats, divisor = ops.cross_entropy_forward(x, target, weight, None, *options)
    arguments = (torch.ones_like(loss), None, x, target, weight, None, stats, divisor, *options)
    return [loss, stats, divisor, ops.cross_entropy_backward(*arguments)]


@pytest.mark.parametrize("shape", REGIMES, ids=str)
def test_same_bits_for_every_order_of_threads(
    ops, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, grad = random(shape, torch.float32), random(shape, torch.float32)
    weight = torch.rand(shape[1])
    index = torch.randint(shape[1], shape[:1] + shape[2:])
    probabilities = x.softmax(1)

    def run() -> list[torch.Tensor]:
        y = ops.softmax_forward(x, 1, False)
        loss, total = ops.nll_loss_forward(x, index, weight, 1, IGNORE_INDEX)
        return [
            y,
            ops.softmax_backward(grad, y, 1, False),
            loss,
            total,
            *cross_entropy(ops, x, index, weight, 1),
            *cross_entropy(ops, x, probabilities, weight, 2),
        ]

    results = []
    for seed in SEEDS:
        monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
        results.append(run())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["packs", "strided", "depthwise"])
def test_convolution_has_the_same_bits_for_every_order_of_threads(
    ops, monkeypatch: pytest.MonkeyPatch, case: str, dtype: torch.dtype
) -> None:
    smoke = next(c for c in conv2d.SMOKE if c.id == f"conv2d_{case}")
    tensors = {
        k: t.contiguous(memory_format=torch.channels_last)
        for k, t in smoke.tensors(dtype).items()
        if t.dim() == 4
    }
    results = []
    for seed in SEEDS:
        monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
        with pyops.use_backend("emulated"):
            results.append(checks.run(F.conv2d, smoke, tensors))
    for other in results[1:]:
        checks.assert_bit_equal(results[0], other, "between orders of threads")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("shape", [(3, 131), (2, 1031)], ids=str)
def test_rows_of_any_alignment(ops, shape: tuple[int, ...], offset: int, dtype: torch.dtype) -> None:
    """Rows start at any element; input and output may even start at different ones."""
    torch.manual_seed(0)
    x = random(shape, dtype, offset)
    log_probs = ops.softmax_forward(x, 1, True)
    assert_close(log_probs, x.double().log_softmax(1), dtype)
    index = torch.tensor([5, shape[1] - 1, 0][: shape[0]])
    loss, stats, divisor = ops.cross_entropy_forward(x, index, None, None, 2, IGNORE_INDEX, 0.0, 0.0)
    grad = ops.cross_entropy_backward(
        torch.ones_like(loss), None, x, index, None, None, stats, divisor, 2, IGNORE_INDEX, 0.0, 0.0
    )
    one_hot = torch.nn.functional.one_hot(index, shape[1])
    assert_close(grad, x.double().softmax(1) - one_hot, dtype)


@pytest.mark.parametrize("shape", REGIMES, ids=str)
@pytest.mark.parametrize("kind", ["index", "probability"])
def test_in_place_backward_has_the_same_bits(ops, shape: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(0)
    x, weight = random(shape, torch.bfloat16), torch.rand(shape[1])
    target = torch.randint(shape[1], shape[:1] + shape[2:]) if kind == "index" else x.softmax(1)
    options = (1, IGNORE_INDEX, 0.1, 0.0)
    loss, stats, divisor = ops.cross_entropy_forward(x, target, weight, None, *options)
    rest = (target, weight, None, stats, divisor, *options)
    expected = ops.cross_entropy_backward(torch.ones_like(loss), None, x, *rest)
    ops.cross_entropy_backward_(torch.ones_like(loss), None, x, *rest)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [7, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("shape", [(3, 7), (3, 7, 5)], ids=str)
def test_bad_class_poisons_its_row_only(ops, shape: tuple[int, ...], bad: int, smoothing: float) -> None:
    torch.manual_seed(0)
    x, weight = random(shape, torch.float32), torch.rand(7)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    target[1] = bad
    target[2] = IGNORE_INDEX
    options = (0, IGNORE_INDEX, smoothing, 0.0)
    loss, stats, divisor = ops.cross_entropy_forward(x, target, weight, None, *options)
    arguments = (torch.ones_like(loss), None, x, target, weight, None, stats, divisor, *options)
    nll, total = ops.nll_loss_forward(x, target, weight, 0, IGNORE_INDEX)
    nll_grad = ops.nll_loss_backward(torch.ones_like(nll), target, weight, total, 7, 0, IGNORE_INDEX, x.dtype)
    for per_row in (loss, ops.cross_entropy_backward(*arguments), nll, nll_grad):
        assert per_row[0].isfinite().all()
        assert per_row[1].isnan().all()
        assert (per_row[2] == 0).all()


@pytest.mark.parametrize("reduction", [1, 2])
def test_bad_class_poisons_a_reduced_loss(ops, reduction: int) -> None:
    target = torch.tensor([0, 9, 1])
    x = torch.zeros(3, 4)
    assert ops.cross_entropy_forward(x, target, None, None, reduction, IGNORE_INDEX, 0.0, 0.0)[0].isnan()
    assert ops.nll_loss_forward(x, target, None, reduction, IGNORE_INDEX)[0].isnan()


@pytest.mark.parametrize("shape", [(40, 5), (40, 90), (2, 3000), (1, 20011), (2, 90, 7)], ids=str)
def test_masked_and_extreme_logits(ops, shape: tuple[int, ...]) -> None:
    """Rows with -inf first, last and almost everywhere, and a common offset of 10^4."""
    torch.manual_seed(0)
    x = random(shape, torch.float64)
    x[:, 0] = -torch.inf
    x[:, -2:] = -torch.inf
    x[0, 4:] = -torch.inf
    x += 1e4
    assert_close(ops.softmax_forward(x, 1, False), x.softmax(1), torch.float64)
    target = torch.ones(shape[:1] + shape[2:], dtype=torch.int64)
    loss, stats, _ = ops.cross_entropy_forward(x, target, None, None, 0, IGNORE_INDEX, 0.0, 0.0)
    assert_close(loss, torch.nn.functional.cross_entropy(x, target, reduction="none"), torch.float64)
    assert torch.equal(stats[0], x.amax(1).flatten())


def test_rows_without_a_distribution_are_nan(ops) -> None:
    for value, classes in itertools.product((torch.inf, -torch.inf, torch.nan), (3, 90, 3000)):
        x = torch.zeros(2, classes)
        x[1] = value
        for log in (False, True):
            y = ops.softmax_forward(x, 1, log)
            assert y[0].isfinite().all()
            assert y[1].isnan().all()


# ---- AddressSanitizer ----------------------------------------------------------------------------------


def run_sanitized(task: str, library: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **sanitizers.environment(),
        "PYOPS_EMULATION_LIBRARY": str(library),
        "PYOPS_EMULATION_SEED": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.cuda_emulation.sanitized", task],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


needs_sanitizer = pytest.mark.skipif(
    build.missing_reason() is None and sanitizers.runtime_library() is None,
    reason="the compiler has no AddressSanitizer runtime",
)


@needs_sanitizer
def test_address_sanitizer_sees_a_shared_array_overflow() -> None:
    source = build.EMULATION_DIR / "selftest.cu"
    result = run_sanitized(
        "overflow", build.compile_library("selftest", [source], sanitize=True, torch=False)
    )
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "shared_overflow" in result.stderr


@pytest.mark.nightly  # the PTX machine checks every access, of the compiled kernels
@needs_sanitizer
def test_no_access_outside_memory() -> None:
    result = run_sanitized("ops", build.build_ops(sanitize=True))
    assert result.returncode == 0, result.stderr[-5000:]
    assert result.stdout.strip() == "finished"
