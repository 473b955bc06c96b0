"""The ways in which CUDA runs the time loop of a recurrent layer (csrc/cuda/recurrent/recurrent.cuh):
which one is taken, and that it is right. Layers that fit one block are in test_recurrent.py."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable

import pytest
import torch

from tests.cuda_emulation import build
from tests.suite import checks
from tests.suite.backends import CUDA_SOURCES, Backend
from tests.suite.cases import Case
from tests.suite.ops.recurrent import GATES, OPS, case

pytestmark = [
    pytest.mark.usefixtures("nan_filled_memory"),
    pytest.mark.parametrize("backend", CUDA_SOURCES, ids=str, indirect=True),
]

#: What the weights of a layer that runs in one block take at most.
BLOCK_BYTES = 96 << 10

# Not relu in bfloat16, where a rounding decides of many units whether they are 0.
FORMATS = [
    *((op, torch.float32) for op in GATES),
    *((op, torch.bfloat16) for op in GATES if op != "rnn_relu"),
    ("lstm", torch.float16),
]

Counter = Callable[[], int | None]


@pytest.fixture
def cooperative_launches(backend: Backend) -> Counter:
    """How many launches there have been whose blocks wait for each other; None where nobody counts."""
    count: Callable[[], int]
    if backend.name == "emulated":
        count = ctypes.CDLL(str(build.build_ops())).pyops_cooperative_launches
    elif backend.name == "ptx":
        nvcc = importlib.import_module("tests.ptx_machine.nvcc")

        def count() -> int:  # all of the kernels of grid.cu
            return sum(number for kernel, number in nvcc.launches().items() if kernel.source == "grid")

    else:
        return lambda: None
    before = count()
    return lambda: count() - before


def beyond_a_block(op: str, dtype: torch.dtype) -> int:
    """The fewest units, a multiple of 8, whose recurrent weights no block can hold."""
    return next(h for h in range(8, 999, 8) if GATES[op] * h * h * dtype.itemsize > BLOCK_BYTES)


def grid_case(op: str, dtype: torch.dtype) -> Case:
    """Four tiles of 16 sequences, more than there are groups of blocks; the last tiles are not full."""
    hidden = beyond_a_block(op, dtype)
    return case("grid", op, 3, 60, 3, hidden, sizes=(60, 35, 2), bidirectional=True)


@pytest.mark.parametrize(("op", "dtype"), FORMATS, ids=str)
def test_blocks_that_have_some_of_the_units(
    backend: Backend, cooperative_launches: Counter, op: str, dtype: torch.dtype
) -> None:
    checks.check_accuracy(grid_case(op, dtype), backend, dtype)
    assert cooperative_launches() in (None, 4)  # forward and backward of both directions


@pytest.mark.parametrize(("op", "dtype"), [("lstm", torch.bfloat16), ("gru", torch.float32)], ids=str)
def test_blocks_in_any_order(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, op: str, dtype: torch.dtype
) -> None:
    sized = case("order", op, 4, 20, 3, beyond_a_block(op, dtype))
    tensors = checks.on_device(sized.tensors(dtype), backend.device)
    results = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
        results.append(checks.run(OPS[op].pyops, sized, tensors))
    for other in results[1:]:
        checks.assert_bit_equal(results[0], other, "between orders of blocks and threads")


@pytest.mark.parametrize(
    ("batch", "hidden"), [(3, 81), (400, 80)], ids=["rows_of_odd_bytes", "many_sequences"]
)
def test_step_by_step_where_nothing_else_applies(
    backend: Backend, cooperative_launches: Counter, batch: int, hidden: int
) -> None:
    sized = case("steps", "lstm", 2, batch, 3, hidden, sizes=(batch, 2))
    checks.check_accuracy(sized, backend, torch.float32)
    if backend.name == "emulated":  # a device may hold more blocks
        assert cooperative_launches() == 0


def test_initial_state_at_an_odd_address(backend: Backend) -> None:
    """The blocks read states 16 bytes at once."""
    sized = case("odd", "gru", 2, 3, 2, beyond_a_block("gru", torch.bfloat16))
    tensors = checks.on_device(sized.tensors(torch.bfloat16), backend.device)
    expected = OPS["gru"].pyops(**tensors)[0]
    h_0 = tensors["h_0"]
    storage = torch.empty(h_0.numel() + 1, dtype=h_0.dtype, device=h_0.device)
    tensors["h_0"] = storage[1:].view(h_0.shape).copy_(h_0)
    torch.testing.assert_close(OPS["gru"].pyops(**tensors)[0], expected, rtol=2**-7, atol=2**-8)


def test_more_steps_than_one_launch_tells_of(backend: Backend) -> None:
    """Where the steps of a packed batch begin is handed over in chunks of 256."""
    sizes = (3,) * 254 + (2, 2, 2, 1)
    many = case("many_steps", "rnn_tanh", len(sizes), 3, 1, 2, sizes=sizes, bidirectional=True)
    checks.check_accuracy(many, backend, torch.float64)
