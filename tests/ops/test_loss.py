"""The elementwise losses: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyops import functional as F
from tests.suite import checks
from tests.suite.backends import THOROUGH, Backend
from tests.suite.ops.loss import BCE, NAMES, OPS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


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
    assert checks.saved_for_backward(lambda: F.huber_loss(x, y, reduction="none"), x, y) <= 4
    assert checks.saved_for_backward(
        lambda: F.binary_cross_entropy_with_logits(x, y, weights, pos_weight=weights), x, y, weights
    ) <= 4  # fmt: skip
