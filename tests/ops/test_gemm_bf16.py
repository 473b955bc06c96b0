"""Products of bfloat16 by instructions that multiply pairs, by tiles, and without either."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from pyops import _library
from tests.ops.test_gemm import assert_product, operands
from tests.suite.backends import CPP, raw
from tests.suite.processes import run_python

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_LAYOUTS = list(itertools.product((False, True), repeat=2))

# Several blocks of terms; one more row and column than micro-tiles and vectors have; odd and even numbers of
# terms; whole tiles, whose rows are read where they lie; several blocks of rows, and of columns.
_SIZES = [(33, 47, 2081), (29, 17, 62), (96, 64, 96), (37, 151, 1030), (150, 33, 1000)]


@pytest.mark.parametrize("size", _SIZES, ids=str)
def test_blocks(size: tuple[int, int, int]) -> None:
    m, n, k = size
    for (a_t, b_t), dtype in itertools.product(_LAYOUTS, (torch.bfloat16, torch.float32)):
        a, b = operands(m, n, k, torch.bfloat16, a_t, b_t, "cpu")
        before = torch.randn(m, n).to(dtype)
        for beta in (0.0, -0.5):
            out = before.clone()
            raw(CPP, "gemm_")(out, a, b, beta)
            assert_product(CPP, out, a.double() @ b.double() + beta * before.double(), a, k)


@pytest.mark.parametrize("k", [31, 32])
@pytest.mark.parametrize(("a_t", "b_t"), _LAYOUTS)
def test_numbers_beside_the_operands_are_not_multiplied(k: int, a_t: bool, b_t: bool) -> None:
    """Not even by the zeros behind an odd number of terms."""
    a, b = operands(35, 37, k, torch.bfloat16, a_t, b_t, "cpu")

    def embedded(matrix: torch.Tensor) -> torch.Tensor:
        around = torch.full((64, 64), torch.nan, dtype=torch.bfloat16)
        around = around.t() if matrix.stride(0) == 1 else around
        inner = around[: matrix.size(0), : matrix.size(1)]
        return inner.copy_(matrix)

    out = torch.empty(35, 37)
    raw(CPP, "gemm_")(out, embedded(a), embedded(b), 0.0)
    assert_product(CPP, out, a.double() @ b.double(), a, k)


@pytest.mark.parametrize(("a_t", "b_t"), [(False, True), (True, False)])
@pytest.mark.parametrize("size", [(290, 100, 1030), (100, 290, 96)], ids=str)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count(size: tuple[int, int, int], a_t: bool, b_t: bool) -> None:
    m, n, k = size
    a, b = operands(m, n, k, torch.bfloat16, a_t, b_t, "cpu")
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(torch.ones(m, n))
        raw(CPP, "gemm_")(results[-1], a, b, 1.0)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("features", ["amx_twin", "none"])
def test_with_other_instructions(features: str) -> None:
    """This file, and what test_gemm.py has of bfloat16."""
    if features != "none" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("tiles are in the AVX-512 variant")
    folder = Path(__file__).parent
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, str(folder / "test_gemm.py"), "-k")
    chosen = "test_blocks or test_numbers or test_same_bits or (cpp and (dtype2 or bf16 or unaligned))"
    done = run_python(*arguments, chosen, environment={"PYOPS_CPU_FEATURES": features})
    assert "passed" in done.stdout


_SEES_SUBNORMALS = """
import torch, pyops
x, out = torch.full((8, 64), 1e-39).bfloat16(), torch.empty(8, 8)
torch.ops.pyops.gemm_(out, x, torch.full((64, 8), 1e4).bfloat16(), 0.0)
print(bool(out.any()))
"""


def test_the_instructions_are_used() -> None:
    """They take subnormal numbers for zeros, and nothing else here does."""
    if "avx512_bf16" not in _library.cpu_features():
        pytest.skip("this CPU has no VDPBF16PS")
    for features, sees in (("avx512_bf16", "False"), ("amx_twin", "False"), ("none", "True")):
        done = run_python("-c", _SEES_SUBNORMALS, environment={"PYOPS_CPU_FEATURES": features})
        assert done.stdout.strip() == sees
