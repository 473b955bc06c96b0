"""Mistakes in the cross-entropies of other libraries, by the number of the pitfall."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from pyops.functional import cross_entropy
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.cases import REDUCTIONS, Case, sweep
from tests.suite.class_losses import loss_case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

case = partial(loss_case, "cross_entropy")


def test_pitfall_03_rows_beyond_the_last_full_block_are_counted(backend: Backend) -> None:
    """2049 rows of few classes: a buffer sized by floor division loses the last row."""
    rows = 2049 if backend.thorough else 257
    logits = torch.zeros(rows, 3, device=backend.device)
    logits[-1, 0] = 50.0
    loss = cross_entropy(logits, torch.full((rows,), 1, device=backend.device), reduction="none")
    assert loss[-1].item() == 50.0
    torch.testing.assert_close(loss[:-1].cpu(), torch.full((rows - 1,), 3.0).log())


@sweep(
    [
        case(f"pitfall_8_{i}_{s}_{k}", shape, weight=True, label_smoothing=s, ignored=i, reduction="mean")
        for i, s, (k, shape) in itertools.product(
            (0, 2, 255, -1), (0.1, 1.0), {"rows": (9, 5), "image": (2, 5, 7)}.items()
        )
    ]
)
def test_pitfall_08_ignore_index_with_smoothing_and_weight(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pitfall_09_all_rows_ignored(backend: Backend, shape: tuple[int, ...], smoothing: float) -> None:
    """The mean of nothing is NaN as in torch, sum and rows are 0, and no gradient is NaN."""
    logits = torch.randn(shape, device=backend.device, requires_grad=True)
    target = torch.full((shape[0], *shape[2:]), -100, device=backend.device)
    for reduction in REDUCTIONS:
        loss = cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
        assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert (gradient == 0).all(), reduction


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("shape", [(3, 5), (3, 70), (1, 5, 40)])
def test_pitfall_10_ignored_row_that_holds_inf_or_nan(
    backend: Backend, value: float, shape: tuple[int, ...]
) -> None:
    """Ignored rows are selected away, not multiplied by 0."""
    logits = torch.randn(shape, device=backend.device)
    target = torch.randint(0, 5, (shape[0], *shape[2:]), device=backend.device)
    target.view(-1)[1] = -100
    (logits[1] if len(shape) == 2 else logits[0, :, 1]).fill_(value)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        leaf = logits.clone().requires_grad_()
        for reduction in REDUCTIONS:
            loss = cross_entropy(leaf, target, reduction=reduction, **options)
            assert loss.isfinite().all()
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            assert gradient.isfinite().all()
            ignored = gradient.movedim(1, -1).reshape(-1, shape[1])[1]
            assert (ignored == 0).all()


@pytest.mark.parametrize("offset", [-200.0, -1e4, 1e4])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_pitfall_11_loss_does_not_change_with_a_common_offset(
    backend: Backend, offset: float, options: dict
) -> None:
    logits = torch.randint(-8, 8, (6, 37), device=backend.device).float()  # exact when the offset is added
    target = torch.randint(0, 37, (6,), device=backend.device)
    results = []
    for x in (logits, logits + offset):
        x.requires_grad_()
        loss = cross_entropy(x, target, reduction="none", **options)
        results.append((loss, *torch.autograd.grad(loss.sum(), x)))
    if backend.name == "reference":
        torch.testing.assert_close(results[0], results[1])
    else:
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


def _inplace(device: str) -> tuple[Tensor, Tensor, Tensor]:
    leaf = torch.randn(4, 5, device=device, requires_grad=True)
    target = torch.randint(0, 5, (4,), device=device)
    return leaf, leaf * 2, target


def test_pitfall_12_another_consumer_of_overwritten_logits_is_told(kernels: Backend) -> None:
    _, logits, target = _inplace(kernels.device)
    other = logits.square().sum()  # its backward needs the logits
    loss = cross_entropy(logits, target, inplace_backward=True)
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(other, logits)


def test_pitfall_12_second_backward_over_overwritten_logits_raises(kernels: Backend) -> None:
    _, logits, target = _inplace(kernels.device)
    loss = cross_entropy(logits, target, inplace_backward=True)
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logits)


def test_pitfall_12_inplace_backward_refuses_a_leaf(kernels: Backend) -> None:
    leaf, _, target = _inplace(kernels.device)
    with pytest.raises(RuntimeError, match="inplace_backward would overwrite a leaf"):
        cross_entropy(leaf, target, inplace_backward=True)


def test_pitfall_12_second_backward_without_inplace_is_the_same(backend: Backend) -> None:
    leaf, logits, target = _inplace(backend.device)
    loss = cross_entropy(logits, target)
    first = torch.autograd.grad(loss, leaf, torch.tensor(0.5, device=backend.device), retain_graph=True)
    second = torch.autograd.grad(loss, leaf)
    assert torch.equal(first[0] * 2, second[0])


def test_pitfall_13_rows_with_their_own_upstream_gradients(backend: Backend) -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, device=backend.device, requires_grad=True)
    target = torch.randint(0, 7, (5,), device=backend.device)
    factors = torch.tensor([0.0, 1.0, -2.0, 1e6, 1e-6], dtype=torch.float64, device=backend.device)
    loss = cross_entropy(logits, target, reduction="none")
    (gradient,) = torch.autograd.grad(loss, logits, factors)
    onehot = torch.nn.functional.one_hot(target, 7)
    wanted = (logits.softmax(1) - onehot) * factors[:, None]
    torch.testing.assert_close(gradient, wanted.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pitfall_14_target_gradient_is_computed_before_rounding(backend: Backend, dtype: torch.dtype) -> None:
    """p_y = 0.9975: rounded to bfloat16 first, p_y - 1 would be 0 or 4 times what it is."""
    logits = torch.tensor([[6.0, 0.0]], dtype=dtype, device=backend.device, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0], device=backend.device))
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().softmax(1)[0, 0] - 1
    assert abs(gradient[0, 0].double() - exact) <= abs(exact) * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("shape", [(4, 7), (2, 7, 3)])
def test_pitfall_16_target_out_of_range(kernels: Backend, bad: int, shape: tuple[int, ...]) -> None:
    """Named in an error on the CPU; poisons its row, and no other, where that would synchronise."""
    logits = torch.randn(shape, device=kernels.device, requires_grad=True)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64, device=kernels.device)
    target.view(-1)[1] = bad
    if kernels.refuses_bad_targets:
        for reduction in REDUCTIONS:
            with pytest.raises(IndexError, match=rf"target must be in \[0, 7\).*got {bad}"):
                cross_entropy(logits, target, reduction=reduction)
        return
    assert cross_entropy(logits, target).isnan()
    loss = cross_entropy(logits, target, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    poisoned = torch.zeros(target.numel(), dtype=torch.bool)
    poisoned[1] = True
    assert torch.equal(loss.isnan().reshape(-1).cpu(), poisoned)
    rows = gradient.movedim(1, -1).reshape(-1, 7).isnan().cpu()
    assert torch.equal(rows, poisoned[:, None].expand(-1, 7))


def test_pitfall_17_mean_divides_by_the_counted_targets_of_the_whole_batch(backend: Backend) -> None:
    """Accumulated micro-batches of sums over one divisor equal the mean of the whole."""
    logits = torch.randn(6, 5, device=backend.device)
    target = torch.tensor([0, -100, 2, -100, -100, 4], device=backend.device)
    parts = [cross_entropy(logits[i : i + 2], target[i : i + 2], reduction="sum") for i in (0, 2, 4)]
    torch.testing.assert_close(cross_entropy(logits, target), sum(parts) / 3)


def test_class_zero_counts_by_default(backend: Backend) -> None:
    """apex's padding_idx is 0 by default and drops the class (pitfall 17)."""
    logits = torch.zeros(1, 4, device=backend.device)
    loss = cross_entropy(logits, torch.tensor([0], device=backend.device))
    torch.testing.assert_close(loss.cpu(), torch.tensor(4.0).log())


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    rows, classes = 2**16 + 1, 2**15 + 1
    logits = torch.zeros(rows, classes, dtype=torch.bfloat16, device=kernels.device)
    logits[-1, -1] = 30.0
    target = torch.full((rows,), classes - 1, device=kernels.device)
    loss = cross_entropy(logits.requires_grad_(), target, reduction="none")
    assert loss[-1].item() == 0.0
    torch.testing.assert_close(loss[0].float().cpu(), torch.tensor(float(classes)).log(), rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[-1, -1].item() == 0.0
    assert gradient[-2, -1].item() == -1.0
