"""Triton as it compiles for a GPU, run by the PTX machine: how kernels get arguments and what they may touch.

Runs with ``PYOPS_TEST_TRITON=compiled`` only, and so do the contracts of the ops over this backend.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

import pyops
from tests.ptx_machine import machine, triton_driver
from tests.suite.backends import COMPILED_TRITON, need_ptx_machine
from tests.suite.cases import DTYPES, Case, combinations
from tests.suite.ops import joined

pytestmark = pytest.mark.compiled_triton


@pytest.fixture(autouse=True)
def _machine() -> None:
    need_ptx_machine()


# ---------------------------------------------------------------------------------------- arguments


@triton.jit
def _store_integers(
    out, a: tl.int1, b: tl.int8, c: tl.uint8, d: tl.int16, e: tl.uint16,
    f: tl.int32, g: tl.uint32, h: tl.int64, i: tl.uint64,
):  # fmt: skip
    tl.store(out, a)
    tl.store(out + 1, b)
    tl.store(out + 2, c)
    tl.store(out + 3, d)
    tl.store(out + 4, e)
    tl.store(out + 5, f)
    tl.store(out + 6, g)
    tl.store(out + 7, h)
    tl.store(out + 8, i)


_INTEGERS = {
    "least": [False, -(2**7), 0, -(2**15), 0, -(2**31), 0, -(2**63), 0],
    # The last is stored in 64 bits with a sign.
    "most": [True, 2**7 - 1, 2**8 - 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63 - 1],
    "small": [True, -1, 1, 16, 17, -18, 19, -20, 21],
}


@pytest.mark.parametrize("values", _INTEGERS.values(), ids=_INTEGERS)
def test_integers_of_every_width(values: list[int]) -> None:
    out = torch.zeros(9, dtype=torch.int64)
    _store_integers[(1,)](out, *values)
    assert out.tolist() == [int(value) for value in values]


def test_an_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        _store_integers[(1,)](torch.zeros(9, dtype=torch.int64), True, 0, 0, 0, 0, 0, -1, 0, 0)


@triton.jit
def _store_floats(out, a: tl.float16, b: tl.bfloat16, c: tl.float32, d: tl.float64, e):
    tl.store(out, a.to(tl.float64))
    tl.store(out + 1, b.to(tl.float64))
    tl.store(out + 2, c.to(tl.float64))
    tl.store(out + 3, d)
    tl.store(out + 4, e.to(tl.float64))


@pytest.mark.parametrize("x", [0.5, -1 / 3, 40000.3, float("inf"), float("nan"), 2])
def test_floats_of_every_width(x: float) -> None:
    out = torch.zeros(5, dtype=torch.float64)
    _store_floats[(1,)](out, x, x, x, x, float(x))
    expected = torch.tensor([x] * 5, dtype=torch.float64)
    expected[0] = expected[0].half().double()
    expected[1] = expected[1].float().view(torch.int32).bitwise_and_(-(1 << 16)).view(torch.float32).double()
    expected[2::2] = expected[2::2].float().double()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


class _Inner(NamedTuple):
    out: torch.Tensor
    absent: torch.Tensor | None
    count: int


class _Outer(NamedTuple):
    first: int
    inner: _Inner
    flag: bool


@triton.jit
def _store_tuple(before, nested, n, SCALE: tl.constexpr):
    if nested.inner.absent is None:
        tl.store(nested.inner.out, before + nested.first)
    tl.store(nested.inner.out + 1, nested.inner.count * SCALE)
    tl.store(nested.inner.out + 2, tl.where(nested.flag, n, -1))


def test_named_tuples_are_taken_apart() -> None:
    out = torch.zeros(3, dtype=torch.int64)
    _store_tuple[(1,)](2**40, _Outer(5, _Inner(out, None, 7), True), 2**35 + 1, SCALE=3)
    assert out.tolist() == [2**40 + 5, 21, 2**35 + 1]


@triton.jit
def _add_one(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + 1.0, mask=i < n)


@pytest.mark.parametrize("offset", [0, 1])
def test_views_and_addresses_that_16_bytes_do_not_divide(offset: int) -> None:
    x, out = torch.randn(1001), torch.zeros(1001)
    _add_one[(4,)](x[offset:], out[offset:], 1001 - offset, BLOCK=256)
    assert torch.equal(out[offset:], x[offset:] + 1)
    assert not out[:offset].any()


def test_no_programs_run_nothing() -> None:
    out = torch.zeros(4)
    _add_one[(0,)](out, out, 4, BLOCK=32)
    assert not out.any()


# ----------------------------------------------------------------------------------- what is refused


def test_a_store_out_of_bounds_names_the_kernel() -> None:
    x, out = torch.randn(300), torch.zeros(256)
    with pytest.raises(machine.Fault, match="_add_one"):
        _add_one[(2,)](x, out, 300, BLOCK=256)


@triton.jit
def _store_at(address, owner):
    tl.store(address.to(tl.pointer_type(tl.float32)), 1.0)


def test_the_memory_of_tensors_that_are_no_arguments_is_out_of_bounds() -> None:
    x = torch.zeros(64)
    _store_at[(1,)](x.data_ptr(), x)
    assert x[0] == 1
    with pytest.raises(machine.Fault, match="_store_at"):
        _store_at[(1,)](x.data_ptr(), torch.zeros(64))


@triton.jit
def _sum_of_products(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tile = i[:, None] * BLOCK + i[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(n):
        tiles = k * BLOCK * BLOCK + tile
        total = tl.dot(tl.load(x + tiles), tl.load(y + tiles), total)
    tl.store(out + tile, total)


def test_more_shared_memory_than_there_is() -> None:
    x = torch.zeros(128, 128, dtype=torch.float32)
    with pytest.raises(OutOfResources, match="shared memory"):
        _sum_of_products[(1,)](x, x, x, 9, BLOCK=128, num_stages=3)


def test_scratch_is_allocated_for_all_programs() -> None:
    ran = []

    class Recorder:
        def run(self, entry: str, grid: Any, block: Any, arguments: list[bytes], **options: Any) -> None:
            ran.append((entry, grid, block, arguments, options))

    metadata = SimpleNamespace(
        name="kernel", num_ctas=1, num_warps=2, shared=64 << 10, launch_cooperative_grid=True,
        global_scratch_size=128, profile_scratch_size=0,
    )  # fmt: skip
    launcher = triton_driver.Launcher(SimpleNamespace(signature={}), metadata)
    launcher(3, 2, 1, 0, Recorder(), None, None, None, None)
    [(entry, grid, block, (scratch, profile), options)] = ran
    assert (entry, grid, block) == ("kernel", (3, 2, 1), (64, 1, 1))
    assert int.from_bytes(scratch, "little") != 0
    assert int.from_bytes(profile, "little") == 0
    assert options == {"shared": 64 << 10, "max_shared": 64 << 10, "cooperative": True}


# ------------------------------------------------------------------------------- the library's kernels


def test_a_case_runs_in_one_dtype_and_alternating_options_meet_them_all() -> None:
    cases = [Case(str(i), "op", lambda generator: {}) for i in range(32)]
    pairs = [(int(case.id), dtype) for _, case, dtype in combinations([COMPILED_TRITON], cases, DTYPES)]
    assert [i for i, _ in pairs] == list(range(32))
    for remainder in range(4):
        assert {dtype for i, dtype in pairs if i % 4 == remainder} == set(DTYPES)


@pytest.mark.parametrize("case", joined("TRITON_CASES").items(), ids=lambda case: case[0])
def test_every_kernel_is_understood(case: tuple[str, Any]) -> None:
    from pyops.triton_kernels.tools.launch import record_launches  # registers kernels: after the driver

    with record_launches(divmod(triton_driver.CAPABILITY, 10)) as launches:
        case[1]()
    for launch in launches:
        compiled = launch.kernel.warmup(*launch.args, grid=(1,), **launch.meta)
        assert "cubin" not in compiled.asm
        machine.Module(compiled.asm["ptx"].decode(), compiled.name).decode(compiled.name)


# Three kernels that no contract of an op runs.


@pytest.fixture
def ops() -> Iterator[None]:
    with pyops.use_backend("triton"):
        yield


@pytest.mark.usefixtures("ops")
def test_indices_of_max_pooling() -> None:
    x = torch.randn(2, 3, 9, 7)
    found = pyops.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    expected = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("ops")
def test_renormalised_rows_of_an_embedding() -> None:
    weight, indices = torch.randn(11, 5), torch.tensor([[0, 3], [3, 10]])
    renormalised = weight.clone()
    torch.nn.functional.embedding(indices, renormalised, max_norm=1.0)
    pyops.functional.embedding(indices, weight, max_norm=1.0)
    torch.testing.assert_close(weight, renormalised)


def test_sums_of_more_partials_than_one_program_adds() -> None:
    from pyops.triton_kernels.tools.merge import reduce_partials

    partials = torch.randint(-8, 8, (2, 20000)).double()
    total, weight = torch.empty((), dtype=torch.float64), torch.empty((), dtype=torch.float64)
    reduce_partials(partials, total, weight)
    assert [total, weight] == partials.sum(1).tolist()
