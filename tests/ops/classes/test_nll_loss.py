"""nll_loss on every backend, against float64 formulas and torch.nn.functional.nll_loss."""

from __future__ import annotations

import pytest
import torch

from pyops.functional import log_softmax, nll_loss
from tests.suite import checks
from tests.suite.backends import BACKENDS, THOROUGH, WITH_KERNELS, Backend, raw
from tests.suite.cases import REDUCTIONS, Case, name_of, pairwise, product, sweep
from tests.suite.class_losses import IGNORED, SHAPES, SIZES, loss_case
from tests.suite.layouts import LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def case(id: str, shape: tuple[int, ...], **arguments) -> Case:
    return loss_case("nll_loss", id, shape, **arguments)


# ------------------------------------------------------------------------------------------------ accuracy

AXES = {"shape": SHAPES, "weight": [False, True], "reduction": REDUCTIONS, "ignored": IGNORED}
PAIRWISE = [case(name_of(s), **s) for s in pairwise(**AXES)]
EVERYTHING = [case(name_of(s), **s, quick=False) for s in product(**AXES)]


@sweep(PAIRWISE)
def test_accuracy_of_every_pair_of_options(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(EVERYTHING, [torch.float32], [b for b in BACKENDS if b.name in ("cpp", "cuda")])
def test_accuracy_of_every_combination_of_options(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(
    [case(f"size_{'x'.join(map(str, s))}", s, weight=True) for s in SIZES]
    + [case("large", (70_001, 3), weight=True, quick=False)],
    [torch.float32, torch.bfloat16],
)
def test_accuracy_at_sizes_that_end_inside_a_block(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(
    [case(f"empty_{s}_{r}", s, reduction=r) for s in [(0, 5), (0, 5, 3), (2, 5, 0)] for r in REDUCTIONS],
    [torch.float32],
)
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


def test_no_classes(kernels: Backend) -> None:
    """Rows without classes can only be ignored."""
    log_probs = torch.zeros(3, 0, device=kernels.device, requires_grad=True)
    target = torch.full((3,), -100, device=kernels.device)
    assert torch.equal(nll_loss(log_probs, target, reduction="none").cpu(), torch.zeros(3))
    assert nll_loss(log_probs, target).isnan()


def _one(value: float):
    def change(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[0, 0] = value
        return logits

    return change


@sweep(
    [
        case(f"{v}_{r}_{i}", (6, 3), change=_one(v), reduction=r, ignored=i)
        for v in (torch.nan, torch.inf, -torch.inf)
        for r in REDUCTIONS
        for i in (None, 1)
    ],
    [torch.float32],
)
def test_inf_and_nan(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


# ------------------------------------------------------------------------------------------------- layouts

_LAYOUT_CASES = [
    case("layout_rows", (6, 9), weight=True),
    case("layout_image", (2, 5, 3, 4), reduction="none", ignored=1),
    case("layout_unbatched", (7,)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep(_LAYOUT_CASES, [torch.float32, torch.bfloat16])
def test_strided_arguments(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_LAYOUT_CASES[1:2], [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [
    case("compact_mean", (3, 5, 4), weight=True, ignored=1),
    case("compact_none", (4, 7), reduction="none"),
    case("compact_unbatched", (7,)),
]


@sweep([*_COMPACT[1:], case("gradcheck", (8, 5), weight=True, ignored=1)], [torch.float64])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


@sweep(
    [case("threads", (70_001, 3), weight=True, quick=False), case("runs", (300, 7), weight=True)],
    [torch.float32, torch.bfloat16],
    WITH_KERNELS,
)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(_COMPACT[:1], [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


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
            with pytest.raises(RuntimeError, match=rf"target must be in \[0, 7\).*got {bad}"):
                nll_loss(log_probs, target, reduction=reduction)
        return
    assert nll_loss(log_probs, target).isnan()
    loss = nll_loss(log_probs, target, reduction="none").reshape(-1)
    assert loss.isnan().cpu().nonzero().tolist() == [[1]]


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


# -------------------------------------------------------------------------------------------------- errors

_X, _Y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "reduction must be", {"reduction": "meen"}),
        (ValueError, "input must have at least one dimension", {"input": torch.zeros(())}),
        (TypeError, "input must be a floating", {"input": _X.long()}),
        (TypeError, "target must be a Tensor, got list", {"target": [0, 1, 2]}),
        (ValueError, r"target must have shape \(3,\).*got \(3, 1\)", {"target": _Y[:, None]}),
        (ValueError, r"target must have shape \(3,\).*got \(2,\)", {"target": _Y[:2]}),
        (TypeError, "target must hold int64.*got torch.int32", {"target": _Y.int()}),
        (ValueError, r"weight must have shape \(5,\).*got \(4,\)", {"weight": torch.ones(4)}),
        (TypeError, "weight must be a floating", {"weight": torch.ones(5, dtype=torch.int64)}),
        (RuntimeError, "target must be on cpu.*got meta", {"target": _Y.to("meta")}),
        (RuntimeError, "weight must be on cpu.*got meta", {"weight": _X[0].to("meta")}),
    ],
)
def test_bad_argument_is_named(error: type[Exception], message: str, change: dict) -> None:
    with pytest.raises(error, match=f"nll_loss: {message}"):
        nll_loss(**{"input": _X, "target": _Y, **change})


_ONE = torch.ones(())


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("forward", {0: torch.zeros(())}),
        ("forward", {0: _X.long()}),
        ("forward", {0: torch.zeros(5, 3).t()}),
        ("forward", {1: _Y[:2]}),
        ("forward", {1: _Y.int()}),
        ("forward", {1: torch.zeros(6, dtype=torch.int64)[::2]}),
        ("forward", {2: torch.ones(4)}),
        ("forward", {2: torch.ones(5, dtype=torch.float64)}),
        ("forward", {3: 3}),
        ("backward", {0: torch.ones(3)}),
        ("backward", {0: torch.ones((), dtype=torch.float64)}),
        ("backward", {1: _Y.int()}),
        ("backward", {1: torch.zeros(6, dtype=torch.int64)[::2]}),
        ("backward", {2: torch.ones(4)}),
        ("backward", {3: torch.ones(1)}),
        ("backward", {3: torch.ones((), dtype=torch.float16)}),
        ("backward", {4: -1}),
        ("backward", {5: 0}),  # rows want one upstream gradient each
        ("backward", {5: -1}),
        ("backward", {7: torch.int64}),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, change: dict) -> None:
    good = {
        "forward": (_X, _Y, None, 1, -100),
        "backward": (_ONE, _Y, None, _ONE, 5, 1, -100, torch.float32),
    }[op]
    arguments = [change.get(i, a) for i, a in enumerate(good)]
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=f"nll_loss_{op}"):
        raw(kernels, f"nll_loss_{op}")(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
