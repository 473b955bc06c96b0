"""The elementwise losses on every backend, against float64 formulas and torch's functions."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyops import functional as F
from tests.suite import checks
from tests.suite.backends import SLOW, THOROUGH, Backend
from tests.suite.cases import REDUCTIONS, Case, name_of, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.loss import BCE, NAMES, OPS
from tests.suite.ops.loss import loss_case as case
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_FLOAT = [torch.float32]
_BOTH = [torch.float32, torch.bfloat16]


# ------------------------------------------------------------------------------------------------ accuracy

OPTIONS = {
    "mse_loss": [{}, {"weight": True}],
    "l1_loss": [{}, {"weight": True}],
    "huber_loss": [{}, {"weight": True}, {"delta": 0.3}],
    "smooth_l1_loss": [{}, {"beta": 0.3}, {"beta": 0}],
    BCE: [{}, {"weight": True}, {"pos_weight": (7,)}, {"weight": (5, 1), "pos_weight": (7,)}],
}
EVERYTHING = [
    case(op, name_of({**o, "reduction": r}), (5, 7), reduction=r, **o)
    for op, several in OPTIONS.items()
    for o, r in itertools.product(several, REDUCTIONS)
]


@sweep(EVERYTHING, backends=THOROUGH)
def test_accuracy_of_every_combination_of_options(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(EVERYTHING, _BOTH, SLOW)
def test_accuracy_of_every_combination_of_options_when_slow(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    checks.check_accuracy(case, backend, dtype)


# 1 to 4 (below a vector), primes, a chunk of 512 and one more, and more than one block of work. Two rows of
# 259 end inside a vector and after a chunk.
SIZES = [(), (1,), (3,), (16,), (127,), (512,), (513,), (2, 259), (3, 2, 2, 11)]
LARGE_SIZES = [(16_384,), (16_385,), (70_001,), (3, 7, 40, 41)]


@sweep(
    [case(op, f"size_{s}", s) for op in ("huber_loss", BCE) for s in SIZES]
    + [case(op, f"size_{s}", s, quick=False) for op in NAMES for s in LARGE_SIZES]
    + [case("mse_loss", "weighted_large", (70_001,), weight=True, quick=False)],
    _BOTH,
)
def test_accuracy_at_sizes_that_end_inside_a_block(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(
    [case(op, f"empty_{s}_{r}", s, reduction=r) for op in NAMES for s in [(0,), (3, 0)] for r in REDUCTIONS]
    + [case("mse_loss", "empty_weight", (0, 2), weight=True), case(BCE, "empty_", (0, 2), weight=(2,))],
    _FLOAT,
)
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


# Factors along one run of dimensions (outer, run, inner), read in place, and others, which are expanded.
FACTORS = [
    (), (1,), (5,), (4, 1), (4, 5), (3, 1, 1), (3, 4, 1), (3, 4, 5), (2, 1, 1, 1), (2, 3, 1, 1), (2, 3, 4, 5),
    (3, 1, 5), (2, 1, 4, 1), (2, 1, 1, 5), (1, 1, 1, 5), (1, 1, 1, 1),
]  # fmt: skip


@sweep(
    [
        case(BCE, f"factors_{w}_{p}", (2, 3, 4, 5), weight=w, pos_weight=p, quick=i % 5 == 0)
        for i, (w, p) in enumerate(zip(FACTORS, FACTORS[5:] + FACTORS[:5], strict=True))
    ],
    _BOTH,
)
def test_factors_of_every_shape(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(
    [
        case(BCE, "columns", (600, 3), weight=(3,), pos_weight=(600, 1)),
        case(BCE, "planes", (2, 3, 700), weight=(3, 1), pos_weight=(700,)),
        case(BCE, "long", (2, 3, 40_001), weight=(40_001,), pos_weight=(3, 1), quick=False),
    ],
    _BOTH,
)
def test_factors_that_repeat_across_chunks(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    x = torch.zeros(2**31 + 9, dtype=torch.bfloat16, device=kernels.device)
    y = torch.zeros_like(x)
    x[-1] = -3.0
    loss = F.huber_loss(x.requires_grad_(), y, reduction="sum")
    assert loss.item() == 2.5
    assert torch.autograd.grad(loss, x)[0][-1].item() == -1.0


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:.*args will be deprecated")
@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, op: str, dtype: torch.dtype) -> None:
    check_torchs_samples(op, OPS[op].pyops, backend, dtype, equal_nan=True)


# ----------------------------------------------------------------------------------------- special numbers

_BORDERS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, 3.0, -3.0, 200.0, -200.0, 1e30, torch.nan]
_BORDERS += [torch.inf, -torch.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("mse_loss", {}),
        ("l1_loss", {}),
        ("huber_loss", {"delta": 0.5}),
        ("huber_loss", {}),
        ("huber_loss", {"delta": torch.inf}),
        ("smooth_l1_loss", {"beta": 0.5}),
        ("smooth_l1_loss", {}),
        ("smooth_l1_loss", {"beta": 1e-38}),
        (BCE, {}),
        (BCE, {"pos_weight": 3.0}),
    ],
)
def test_pitfall_30_borders_nan_and_infinity(
    backend: Backend, op: str, options: dict, dtype: torch.dtype
) -> None:
    """|d| exactly at delta or beta, zeros of both signs, and a negative difference's sign (attorch#19)."""
    values = torch.tensor(_BORDERS, dtype=dtype, device=backend.device)
    if "pos_weight" in options:
        options = {"pos_weight": torch.tensor(options["pos_weight"], dtype=dtype, device=backend.device)}
    results = []
    for function, working in ((OPS[op].pyops, dtype), (OPS[op].torch, torch.float64)):
        x = values.to(working).requires_grad_()
        for target in [0.0, 1.0] if op == BCE else [0.0, torch.inf]:
            loss = function(x, torch.full_like(x, target), reduction="none", **options)
            results.append((loss.to(dtype), torch.autograd.grad(loss, x, torch.ones_like(x))[0].to(dtype)))
    found, wanted = results[:2], results[2:]
    # Where float32 has subnormal numbers only, exp is 0 here.
    tolerance = {"rtol": 32 * torch.finfo(dtype).eps, "atol": 2e-38, "equal_nan": True}
    torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("op", NAMES)
def test_one_nan_makes_a_reduced_loss_nan(backend: Backend, op: str) -> None:
    x = torch.randn(700, device=backend.device)
    x[613] = torch.nan
    x.requires_grad_()
    y = torch.rand(700, device=backend.device)
    loss = OPS[op].pyops(x, y)
    assert loss.isnan()
    found, wanted = (torch.autograd.grad(f(x, y), x)[0] for f in (OPS[op].pyops, OPS[op].torch))
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_sum_of_many_is_as_accurate_as_its_terms(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    x = torch.full((4_000_037,), 0.1, device=kernels.device)
    assert F.l1_loss(x, torch.zeros_like(x)).item() == pytest.approx(x[0].item(), rel=1e-7)


# ------------------------------------------------------------------------------------------------- layouts

_LAYOUT_CASES = [
    case("huber_loss", "layout", (2, 3, 4, 5), reduction="none"),
    case("mse_loss", "layout", (2, 3, 4, 5), weight=True),
    case(BCE, "layout", (2, 3, 4, 5), reduction="none", weight=(2, 3, 4, 5), pos_weight=(3, 1, 1)),
    case(BCE, "layout_row", (6, 9), pos_weight=(9,)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep(_LAYOUT_CASES, _FLOAT)
def test_strided_arguments(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_LAYOUT_CASES[:1], _FLOAT)
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("op", NAMES)
def test_losses_of_elements_keep_torchs_strides(backend: Backend, op: str) -> None:
    plain = torch.rand(2, 3, 4, 5, device=backend.device)
    last = plain.to(memory_format=torch.channels_last)
    for x, y in itertools.product((plain, last), repeat=2):
        found, wanted = (f(x, y, reduction="none") for f in (OPS[op].pyops, OPS[op].torch))
        assert found.stride() == wanted.stride()


def test_dense_permuted_arguments_are_not_copied(kernels: Backend) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.bfloat16, device=kernels.device)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    y, weights = x.detach().clone(), x.detach()[0, :, :1, :1].contiguous()
    assert checks.saved_for_backward(lambda: F.huber_loss(x, y), x, y) <= 4
    assert checks.saved_for_backward(
        lambda: F.binary_cross_entropy_with_logits(x, y, weights, pos_weight=weights), x, y, weights
    ) <= 4  # fmt: skip
