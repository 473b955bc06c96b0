"""linear_cross_entropy: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyops.functional import cross_entropy, linear_cross_entropy
from tests.suite import checks
from tests.suite.backends import CPP, Backend
from tests.suite.cases import REDUCTIONS, Case, sweep
from tests.suite.ops.linear_cross_entropy import SINGLE_CALL, SMALL, case
from tests.suite.ops.linear_cross_entropy import linear_cross_entropy as formula

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_result_hardly_depends_on_the_chunks(kernels: Backend, reduction: str) -> None:
    c = case("chunks", 9, bias=True, weight=True, ignored=1, reduction=reduction)
    tensors = checks.on_device(c.tensors(torch.float64), kernels.device)
    results = [
        checks.run(lambda n=n, **a: linear_cross_entropy(chunk_size=n, **a), c, tensors) for n in (1, 4, 9)
    ]
    for name, value in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------------------- gradients, dispatching


@pytest.mark.parametrize(
    "wanted", [("input",), ("linear_weight",), ("linear_bias",), ("input", "linear_bias")]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_wanted_gradients_are_formed(backend: Backend, reduction: str, wanted: tuple[str, ...]) -> None:
    c = case("wanted", bias=True, chunk_size=5, reduction=reduction)
    exact = c.tensors(torch.float64)
    leaves = {k: t.detach().to(backend.device).requires_grad_(k in wanted) for k, t in exact.items()}
    copies = {k: t.detach().requires_grad_(k in wanted) for k, t in exact.items()}
    found = torch.autograd.grad(
        linear_cross_entropy(**leaves, **c.options).sum(), [leaves[k] for k in wanted]
    )
    exact_grads = torch.autograd.grad(formula(**copies, **c.options).sum(), [copies[k] for k in wanted])
    for f, e in zip(found, exact_grads, strict=True):
        torch.testing.assert_close(f.cpu(), e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_backward_with_retain_graph_is_the_same(backend: Backend, reduction: str) -> None:
    """Pitfall 12: gradients formed in forward must not be scaled or overwritten by the first backward."""
    hidden = torch.randn(7, 4, device=backend.device, requires_grad=True)
    matrix = torch.randn(9, 4, device=backend.device, requires_grad=True)
    target = torch.randint(0, 9, (7,), device=backend.device)
    loss = linear_cross_entropy(hidden, matrix, target, reduction=reduction, chunk_size=3).sum()
    half = torch.tensor(0.5, device=backend.device)
    first = torch.autograd.grad(loss, (hidden, matrix), half, retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, matrix), half, retain_graph=True)
    full = torch.autograd.grad(loss, (hidden, matrix))
    for a, b, c in zip(first, again, full, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a * 2, c)


def test_accumulated_gradients_do_not_share_memory_with_what_is_saved(backend: Backend) -> None:
    """Adding into .grad after backward must not change the next backward of the same graph."""
    hidden = torch.randn(7, 4, device=backend.device)
    matrix = torch.randn(9, 4, device=backend.device, requires_grad=True)
    target = torch.randint(0, 9, (7,), device=backend.device)
    loss = linear_cross_entropy(hidden, matrix, target, reduction="sum")
    loss.backward(retain_graph=True)
    first = matrix.grad.clone()
    matrix.grad.mul_(3.0)
    matrix.grad = None
    loss.backward()
    assert torch.equal(matrix.grad, first)


# ------------------------------------------------------------------- small problems on the CPU: one call each


def _names(calls: list) -> list[str]:
    return [call[0].name().removeprefix("pyops::") for call in calls]


@sweep(SINGLE_CALL, [torch.float32, torch.float64], [CPP])
def test_small_problem_is_one_call_each_way(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)
    first, *others = _names(checks.recorded_calls(case, backend, dtype))
    assert first == "linear_cross_entropy_with_grad"
    assert others == ["elementwise_loss_regrade_"] * (3 if "bias" in case.id else 2)


@pytest.mark.parametrize("upstream", [1.0, 0.5])
def test_small_problem_gives_its_gradients_away_once(upstream: float) -> None:
    hidden, matrix = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, matrix, torch.randint(0, 9, (7,)))
    grads = [
        torch.autograd.grad(loss, (hidden, matrix), torch.tensor(upstream), retain_graph=True)
        for _ in range(3)
    ]
    kept = [g.clone() for g in grads[1]]
    for g in grads[0]:
        g.fill_(77.0)
    for again, before in zip((*grads[1], *grads[2]), (*kept, *kept), strict=True):
        assert torch.equal(again, before)


def test_small_problem_forms_no_gradient_that_is_not_asked_for() -> None:
    hidden, matrix = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4)
    target = torch.randint(0, 9, (7,))
    loss = linear_cross_entropy(hidden, matrix, target)
    *_, grad_matrix, grad_bias = loss.grad_fn.saved_tensors
    assert grad_matrix.numel() == grad_bias.numel() == 0
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, matrix, target), loss.detach())


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_are_never_all_held(kernels: Backend, reduction: str) -> None:
    """No tensor is as large as the [N, V] logits, forward or backward."""
    rows, classes, features, chunk = 64, 96, 4, 8
    hidden = torch.randn(rows, features, device=kernels.device, requires_grad=True)
    matrix = torch.randn(classes, features, device=kernels.device, requires_grad=True)
    target = torch.randint(0, classes, (rows,), device=kernels.device)

    def train() -> None:
        linear_cross_entropy(hidden, matrix, target, reduction=reduction, chunk_size=chunk).sum().backward()

    assert checks.largest_allocation(train) <= max(chunk * classes, features * classes)


def test_default_chunk_holds_a_bounded_number_of_bytes(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    rows, classes = 4096, 8192  # 128 MiB of float32 logits
    hidden = torch.randn(rows, 4, device=kernels.device)
    matrix = torch.randn(classes, 4, device=kernels.device)
    target = torch.randint(0, classes, (rows,), device=kernels.device)
    largest = checks.largest_allocation(lambda: linear_cross_entropy(hidden, matrix, target))
    limit = {"cpu": 32 << 20, "cuda": 512 << 20}[kernels.device]
    assert largest * 4 <= limit


# ---------------------------------------------------------------------------- regressions by pitfall number


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_pitfall_15_weight_gradient_of_many_chunks_accumulates_in_float32(
    kernels: Backend, reduction: str
) -> None:
    """In bfloat16 the sum over chunks would stall once it is 256 times a chunk's share."""
    rows = 512 if kernels.thorough else 16
    c = case("pitfall_15", rows, (17,), 5, bias=True, reduction=reduction)
    tensors = c.tensors(torch.bfloat16)
    tensors["input"] = tensors["input"].abs()  # no cancellation: the sum grows with the rows
    tensors["target"].fill_(3)
    exact = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    dtypes = [torch.bfloat16]
    wanted = checks.run(formula, c, exact, upstream_dtypes=dtypes)
    errors = {}
    for chunk in (1, rows):
        found = checks.run(
            lambda n=chunk, **a: linear_cross_entropy(chunk_size=n, **a),
            c,
            checks.on_device(tensors, kernels.device),
        )
        for name in ("gradient of linear_weight", "gradient of linear_bias"):
            error = (found[name].double().cpu() - wanted[name]).abs().max() / wanted[name].abs().max()
            errors[name, chunk] = error.item()
    for name in ("gradient of linear_weight", "gradient of linear_bias"):
        assert errors[name, rows] <= 0.01
        assert errors[name, 1] <= 1.25 * errors[name, rows] + torch.finfo(torch.bfloat16).eps / 4, errors


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pitfall_09_all_rows_ignored(backend: Backend, reduction: str) -> None:
    hidden = torch.randn(7, 4, device=backend.device, requires_grad=True)
    matrix = torch.randn(9, 4, device=backend.device, requires_grad=True)
    target = torch.full((7,), -100, device=backend.device)
    loss = linear_cross_entropy(hidden, matrix, target, reduction=reduction, chunk_size=3)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    for gradient in torch.autograd.grad(loss.sum(), (hidden, matrix)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_pitfall_16_target_out_of_range(kernels: Backend, reduction: str) -> None:
    hidden = torch.randn(7, 4, device=kernels.device)
    matrix = torch.randn(9, 4, device=kernels.device)
    target = torch.full((7,), 9, device=kernels.device)
    if kernels.refuses_bad_targets:
        with pytest.raises(IndexError, match=r"target must be in \[0, 9\).*got 9"):
            linear_cross_entropy(hidden, matrix, target, reduction=reduction)
    else:
        assert linear_cross_entropy(hidden, matrix, target, reduction=reduction).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pitfall_17_sum_of_many_rows_stays_in_float16s_range(kernels: Backend, dtype: torch.dtype) -> None:
    """The mean over rows whose summed loss exceeds 65504."""
    rows = 4096 if kernels.thorough else 64
    hidden = torch.full((rows, 1), 40.0 if kernels.thorough else 2000.0, dtype=dtype, device=kernels.device)
    matrix = torch.tensor([[0.0], [1.0]], dtype=dtype, device=kernels.device, requires_grad=True)
    target = torch.zeros(rows, dtype=torch.int64, device=kernels.device)
    loss = linear_cross_entropy(hidden, matrix, target)
    assert loss.item() == hidden[0].item()
    (gradient,) = torch.autograd.grad(loss, matrix)
    assert gradient.flatten().tolist() == [-hidden[0].item(), hidden[0].item()]


def test_equals_torchs_own_function(backend: Backend) -> None:
    theirs = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if theirs is None:
        pytest.skip("torch has it from 2.13 on")
    c = SMALL[0]
    tensors = checks.on_device(c.tensors(torch.float32), backend.device)
    tensors.pop("weight")
    options = {k: v for k, v in c.options.items() if k != "chunk_size"}
    found = linear_cross_entropy(**tensors, **options, chunk_size=5)
    torch.testing.assert_close(found, theirs(**tensors, **options))


# -------------------------------------------------------------------------------------------------- errors


def test_gradients_of_targets_and_weights(backend: Backend) -> None:
    c = case("all", 5, (4,), 3, probability_target=True, weight=True, sample_weight=True)
    exact = c.tensors(torch.float64)
    for name in ("target", "weight", "sample_weight"):
        leaves = {k: t.detach().to(backend.device).requires_grad_(k == name) for k, t in exact.items()}
        copies = {k: t.detach().requires_grad_(k == name) for k, t in exact.items()}
        (found,) = torch.autograd.grad(linear_cross_entropy(**leaves), leaves[name])
        (wanted,) = torch.autograd.grad(formula(**copies), copies[name])
        torch.testing.assert_close(found.cpu(), wanted)


def test_matches_cross_entropy_of_the_logits(backend: Backend) -> None:
    for rows, smoothing in itertools.product((1, 9), (0.0, 0.1)):
        hidden = torch.randn(rows, 4, dtype=torch.float64, device=backend.device)
        matrix = torch.randn(7, 4, dtype=torch.float64, device=backend.device)
        target = torch.randint(0, 7, (rows,), device=backend.device)
        wanted = cross_entropy(hidden @ matrix.t(), target, label_smoothing=smoothing)
        found = linear_cross_entropy(hidden, matrix, target, label_smoothing=smoothing)
        torch.testing.assert_close(found, wanted)
