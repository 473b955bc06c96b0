"""nll_loss: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

from pyops.functional import log_softmax, nll_loss
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.cases import REDUCTIONS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


def test_no_classes(kernels: Backend) -> None:
    """Rows without classes can only be ignored."""
    log_probs = torch.zeros(3, 0, device=kernels.device, requires_grad=True)
    target = torch.full((3,), -100, device=kernels.device)
    assert torch.equal(nll_loss(log_probs, target, reduction="none").cpu(), torch.zeros(3))
    assert nll_loss(log_probs, target).isnan()


# ---------------------------------------------------------------------------------- gradients, dispatching


def test_backward_keeps_no_log_probabilities(kernels: Backend) -> None:
    """The gradient does not depend on them; they can be freed."""
    log_probs = torch.randn(16, 50, device=kernels.device, requires_grad=True)
    target = torch.randint(0, 50, (16,), device=kernels.device)
    assert checks.saved_for_backward(lambda: nll_loss(log_probs, target), target) <= 8


def test_log_softmax_then_nll_loss_is_cross_entropy(backend: Backend) -> None:
    logits = torch.randn(6, 9, device=backend.device)
    target = torch.randint(0, 9, (6,), device=backend.device)
    composed = nll_loss(log_softmax(logits, 1), target)
    torch.testing.assert_close(composed, torch.nn.functional.cross_entropy(logits, target))


# ---------------------------------------------------------------------------- regressions by pitfall number


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pitfall_09_all_rows_ignored(backend: Backend, reduction: str) -> None:
    log_probs = torch.randn(4, 5, device=backend.device, requires_grad=True)
    target = torch.full((4,), -100, device=backend.device)
    loss = nll_loss(log_probs, target, reduction=reduction)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert (gradient == 0).all()


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("shape", [(4, 7), (2, 7, 3)])
def test_pitfall_16_target_out_of_range(kernels: Backend, bad: int, shape: tuple[int, ...]) -> None:
    log_probs = torch.randn(shape, device=kernels.device, requires_grad=True)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64, device=kernels.device)
    target.view(-1)[1] = bad
    if kernels.refuses_bad_targets:
        for reduction in REDUCTIONS:
            with pytest.raises(IndexError, match=rf"target must be in \[0, 7\).*got {bad}"):
                nll_loss(log_probs, target, reduction=reduction)
        return
    assert nll_loss(log_probs, target).isnan()
    loss = nll_loss(log_probs, target, reduction="none").reshape(-1)
    assert loss.isnan().cpu().nonzero().tolist() == [[1]]
    (gradient,) = torch.autograd.grad(loss, log_probs, torch.ones_like(loss))
    rows = gradient.movedim(1, -1).reshape(-1, 7).isnan().cpu()
    assert rows.all(1).nonzero().tolist() == rows.any(1).nonzero().tolist() == [[1]]


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    rows, classes = 2**16 + 1, 2**15 + 1
    log_probs = torch.zeros(rows, classes, dtype=torch.bfloat16, device=kernels.device)
    log_probs[-1, -1] = -3.0
    target = torch.full((rows,), classes - 1, device=kernels.device)
    loss = nll_loss(log_probs.requires_grad_(), target, reduction="sum")
    assert loss.item() == 3.0
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[-1, -1].item() == -1.0


# ------------------------------------------------------------------------------------- options and samples


def test_uint8_targets_as_in_torch(backend: Backend) -> None:
    log_probs = torch.randn(4, 5, device=backend.device)
    target = torch.tensor([0, 1, 4, 2], dtype=torch.uint8, device=backend.device)
    torch.testing.assert_close(nll_loss(log_probs, target), nll_loss(log_probs, target.long()))


def test_legacy_reduction_arguments_as_in_torch(backend: Backend) -> None:
    log_probs = torch.randn(3, 5, device=backend.device)
    target = torch.randint(0, 5, (3,), device=backend.device)
    checks.check_legacy_reduction(nll_loss, torch.nn.functional.nll_loss, log_probs, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    check_torchs_samples("nll_loss", nll_loss, backend, dtype, every=5, equal_nan=True)
