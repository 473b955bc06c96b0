"""dropout, alone and fused, on every backend, with the mask that the suite computes: values and layouts."""

from __future__ import annotations

import math

import pytest
import torch

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import WITH_KERNELS, Backend
from tests.suite.cases import Case, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.dropout import ACTIVATIONS, factors, fixed_seed, fused_case, plain_case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy

_PLAIN = [plain_case(s) for s in [(), (1,), (5, 7), (2, 3, 4, 5)]] + [
    plain_case((3, 419), p) for p in (1e-3, 0.1, 0.5, 0.9, 1.0)
]
_LARGE = [plain_case((70_001, 3), quick=False), plain_case((3, 40_009), quick=False)]
# Rows of groups of eight and not, joined rows, rows with one bias each, tiles in both directions.
_FUSED = [
    fused_case((32, 16), (16,)),
    fused_case((5, 300), (300,)),
    fused_case((37, 13), (1, 13)),
    fused_case((3, 4, 5, 6), (4, 1, 1), "sigmoid"),
    fused_case((3, 4, 8, 16), (4, 1, 1), "gelu", residual=True),
    fused_case((2, 3, 17, 13), (1, 3, 1, 1)),
    fused_case((4, 6), (1,)),
    fused_case((4, 6), ()),
    fused_case((6, 4), (6, 1), None),
    fused_case((7,), (7,), residual=True),
    fused_case((3, 41), None, None, residual=True),
    fused_case((3, 41), None, "tanh"),
    fused_case((5, 24), (24,), "sigmoid", p=0.0),
    fused_case((5, 24), (24,), "sigmoid", p=0.9),
    fused_case((5, 24), (24,), "silu", p=1.0),
]
_FUSED_LARGE = [
    fused_case((9000, 37), (37,), "sigmoid", quick=False),
    fused_case((150, 2500), (2500,), quick=False),
    fused_case((70, 5, 7, 7), (5, 1, 1), quick=False),
    fused_case((3, 5, 190, 190), (5, 1, 1), "relu", residual=True, quick=False),
]
_ACTIVATIONS = [
    fused_case((11, 40), (40,), name, residual) for name in ACTIVATIONS for residual in (False, True)
]
_EMPTY = [
    plain_case((0, 5)),
    fused_case((0, 5), (5,)),
    fused_case((5, 0), (0,)),
    fused_case((3, 4, 0), (4, 1)),
]


@sweep(_PLAIN + _LARGE)
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_FUSED + _FUSED_LARGE)
def test_accuracy_of_fused_forms(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_ACTIVATIONS)
def test_every_activation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_EMPTY, [torch.float32])
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


def test_nan_and_infinity_pass_as_in_torch(backend: Backend) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 10, device=backend.device)
    with fixed_seed():
        torch.testing.assert_close(
            F.dropout(x, 0.5).cpu(), x.cpu() * factors(0.5, x.shape).float(), equal_nan=True
        )
        assert F.dropout(x, 1.0)[:3].isnan().all()


def test_pitfall_20_float16_does_not_overflow_before_the_product() -> None:
    x = torch.full((4096,), 1.0, dtype=torch.float16)
    y = F.dropout(x, 1 - 1e-5)  # the scale, 65536, is no float16
    assert set(y.unique().tolist()) <= {0.0, math.inf}
    assert F.dropout(x / 4, 1 - 1e-5).max().item() in (0.0, 16384.0)


# --------------------------------------------------------------------------------------------- determinism


@sweep(
    [plain_case((7, 40_009), quick=False), plain_case((9, 33)), *_FUSED_LARGE, fused_case((40, 13), (13,))],
    [torch.float32, torch.bfloat16],
    WITH_KERNELS,
)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


# ------------------------------------------------------------------------------------------------- layouts

_LAYOUT_CASES = [
    plain_case((2, 5, 3, 4)),
    fused_case((2, 5, 3, 4), (5, 1, 1), "gelu", residual=True),
    fused_case((6, 7), (7,)),
]


@pytest.mark.parametrize("layout", ["sliced", "expanded", "offset"])
@sweep(_LAYOUT_CASES, [torch.float32, torch.bfloat16])
def test_strided_tensors(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
@pytest.mark.parametrize("fused", [False, True])
def test_permuted_tensors_keep_their_strides(backend: Backend, layout: str, fused: bool) -> None:
    x = LAYOUTS[layout](torch.rand(2, 5, 3, 4) + 1).to(backend.device).requires_grad_()
    bias = torch.rand(5, 1, 1, device=backend.device, requires_grad=True) if fused else None
    y = F.dropout(x, 0.5, bias=bias)
    assert y.stride() == x.stride()
    wanted = (y != 0) * 2.0
    torch.testing.assert_close(y, (x if bias is None else x + bias) * wanted)
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x] if bias is None else [x, bias], upstream)
    torch.testing.assert_close(gradients[0], upstream * wanted)
    assert gradients[0].stride() == x.stride()
    if bias is not None:
        torch.testing.assert_close(gradients[1], (upstream * wanted).sum((0, 2, 3)).view(5, 1, 1))


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_LAYOUT_CASES, [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)
