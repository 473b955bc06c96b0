"""The machine code for AMX's tiles, as compiled, on a CPU that has none: it gives the bits of the twin."""

from __future__ import annotations

import pytest
import torch

from pyops import _library
from tests.amx_emulation import library

pytestmark = [
    pytest.mark.skipif(library.missing_reason() is not None, reason=str(library.missing_reason())),
    pytest.mark.skipif("amx_bf16" in _library.cpu_features(), reason="the CPU has the instructions"),
]


def operands(m: int, n: int, k: int, a_t: bool, b_t: bool) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn((k, m) if a_t else (m, k)), torch.randn((n, k) if b_t else (k, n))
    a, b = a.bfloat16(), b.bfloat16()
    a.view(-1)[:7] = 1e-39  # subnormal, which counts as zero
    return (a.t() if a_t else a), (b.t() if b_t else b)


# Edges everywhere; rows of whole tiles, read where they lie; several blocks of terms.
@pytest.mark.parametrize("size", [(37, 51, 70), (64, 48, 64), (17, 33, 1100)], ids=str)
@pytest.mark.parametrize(("a_t", "b_t"), [(False, True), (True, False)])
def test_the_instructions_give_the_twins_bits(size: tuple[int, int, int], a_t: bool, b_t: bool) -> None:
    a, b = operands(*size, a_t, b_t)
    found, used = library.gemm(a, b, twin=False)
    wanted, none = library.gemm(a, b, twin=True)
    assert torch.equal(found, wanted)
    assert all(used.values()), used
    assert used["ldtilecfg"] == used["tilerelease"]
    assert not any(none.values())
    exact = a.double() @ b.double()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_infinity_and_nan_are_the_twins() -> None:
    a, b = operands(20, 18, 40, False, True)
    a[3, 5], a[7, 39], b[2, 11] = torch.inf, torch.nan, -torch.inf
    found, wanted = (library.gemm(a, b, twin=twin)[0] for twin in (False, True))
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    assert found.isnan().sum() >= 18
