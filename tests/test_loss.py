"""The elementwise losses on every backend, against float64 formulas and torch's functions."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch

import pyops
from pyops import functional as F

from .suite import checks
from .suite.backends import CPP, SLOW, THOROUGH, WITH_KERNELS, Backend, raw
from .suite.cases import Case, name_of, product, sweep
from .suite.layouts import LAYOUTS
from .suite.ops.loss import BCE, DIFFERENCES, NAMES, OPS
from .suite.ops.loss import loss_case as case
from .suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_FLOAT = [torch.float32]
_BOTH = [torch.float32, torch.bfloat16]
REDUCTIONS = ("none", "mean", "sum")

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


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [
    case("mse_loss", "compact", (3, 5), weight=True),
    case("l1_loss", "compact", (3, 5), reduction="sum"),
    case("huber_loss", "compact", (4, 7), reduction="none"),
    case("smooth_l1_loss", "compact", (4, 7), beta=0.5),
    case(BCE, "compact", (3, 5), weight=(3, 1), pos_weight=(5,)),
]


@sweep(_COMPACT, [torch.float64])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep(_COMPACT, _BOTH, WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, _FLOAT)
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(_COMPACT, _BOTH, THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    # A written gradient is scaled afterwards, and so rounded twice; a compiled one is not.
    written = backend == CPP and dtype is torch.float32 and case.options.get("reduction") != "none"
    checks.check_compile(case, backend, dtype, exact=not written)


@sweep(
    [case(op, "threads", (70_001,), quick=False) for op in ("mse_loss", BCE)]
    + [case("mse_loss", "runs", (700,), weight=True)],
    _BOTH,
    WITH_KERNELS,
)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(
    [
        case(op, name_of({"amp": True, **s}), (3, 5), **s)
        for op in ("mse_loss", "l1_loss", "huber_loss", BCE)
        for s in product(reduction=REDUCTIONS[:2], weight=[False, True])
    ],
    [torch.float32, torch.bfloat16, torch.float16],
    THOROUGH,
)
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_number_of_gradients(backend: Backend, op: str, reduction: str) -> None:
    """attorch#20: as many gradients as inputs, each where it belongs, whoever asks for one."""
    x, y = torch.randn(2, 40, device=backend.device), torch.rand(2, 40, device=backend.device)
    for needs in [(True, False), (False, True), (True, True)]:
        x.requires_grad_(needs[0]), y.requires_grad_(needs[1])
        leaves = [t for t in (x, y) if t.requires_grad]
        found, wanted = (
            torch.autograd.grad(f(x, y, reduction=reduction).sum(), leaves)
            for f in (OPS[op].pyops, OPS[op].torch)
        )
        torch.testing.assert_close(found, wanted)


def test_one_of_two_gradients(backend: Backend) -> None:
    x = torch.randn(40, device=backend.device, requires_grad=True)
    y = torch.rand(40, device=backend.device, requires_grad=True)
    for leaf in (x, y):
        found, wanted = (
            torch.autograd.grad(f(x, y), leaf) for f in (F.mse_loss, torch.nn.functional.mse_loss)
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
def test_gradients_of_weights(backend: Backend) -> None:
    """Where torch has them: of what it composes of several ops."""
    x, y = torch.randn(4, 6, device=backend.device), torch.rand(4, 6, device=backend.device)
    for op in ("mse_loss", "l1_loss", "huber_loss"):
        w = torch.rand(4, 6, device=backend.device, requires_grad=True)
        found, wanted = (torch.autograd.grad(f(x, y, weight=w), w) for f in (OPS[op].pyops, OPS[op].torch))
        torch.testing.assert_close(found, wanted)
    w, p = (torch.rand(6, device=backend.device, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad(F.binary_cross_entropy_with_logits(x, y, w, pos_weight=p), (w, p))
    wanted = torch.autograd.grad(OPS[BCE].formula(x, y, w, pos_weight=p), (w, p))
    torch.testing.assert_close(found, wanted)


def test_backward_keeps_input_and_target_alone(kernels: Backend) -> None:
    x = torch.randn(2, 400, device=kernels.device, dtype=torch.bfloat16, requires_grad=True)
    y = torch.rand(2, 400, device=kernels.device, dtype=torch.bfloat16)
    for op in NAMES:
        assert checks.saved_for_backward(lambda op=op: OPS[op].pyops(x, y), x, y) <= 8


# ------------------------------------------------------------- the gradient that forward writes, on the CPU


@pytest.fixture
def cpp() -> None:
    with pyops.use_backend("cpp"):
        yield


def _pair(n: int = 700) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, requires_grad=True), torch.rand(n, requires_grad=True)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, torch.inf])
@pytest.mark.parametrize("op", NAMES)
def test_written_gradient_serves_every_upstream_gradient(op: str, upstream: float) -> None:
    x, y = _pair()
    leaves = [x] if op == BCE else [x, y]
    y = y if op != BCE else y.detach()
    scale = torch.tensor(upstream)
    found, wanted = (torch.autograd.grad(f(x, y), leaves, scale) for f in (OPS[op].pyops, OPS[op].torch))
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("op", NAMES)
def test_second_backward_does_not_see_what_became_of_the_first(op: str) -> None:
    x, y = _pair()
    loss = OPS[op].pyops(x, y.detach())
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.fill_(77.0)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(kept, second)
    (third,) = torch.autograd.grad(loss, x, torch.tensor(3.0))
    torch.testing.assert_close(third, 3 * kept)


@pytest.mark.usefixtures("cpp")
def test_backward_after_a_change_of_the_input_raises() -> None:
    leaf, y = _pair()
    x = leaf * 1
    loss = F.huber_loss(x, y)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("cpp")
def test_accumulated_gradients_own_their_memory() -> None:
    x, y = _pair()
    for _ in range(2):
        F.mse_loss(x, y.detach()).backward()
    single = torch.autograd.grad(F.mse_loss(x, y.detach()), x)[0]
    torch.testing.assert_close(x.grad, 2 * single)


@pytest.mark.usefixtures("cpp")
def test_double_backward_with_a_written_gradient() -> None:
    x, y = _pair(9)
    loss = F.mse_loss(x, y)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), x)[0], torch.full_like(x, 2 / 9))


# --------------------------------------------------------------------------------- broadcasting and dtypes


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("op", DIFFERENCES)
@pytest.mark.parametrize("shapes", [((3, 1), (3, 4)), ((4,), (3, 4)), ((3, 4), ()), ((2, 1, 4), (3, 1))])
def test_broadcasting_with_torchs_warning(backend: Backend, op: str, shapes: tuple) -> None:
    x, y = (torch.randn(s, device=backend.device, requires_grad=True) for s in shapes)
    results = []
    for function in (OPS[op].pyops, OPS[op].torch):
        with pytest.warns(UserWarning, match="different to the input size.*broadcasting") as caught:
            loss = function(x, y)
        assert [w.filename for w in caught] == [__file__]
        results.append((loss, *torch.autograd.grad(loss, (x, y))))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_weights_of_a_broadcast_input(backend: Backend) -> None:
    x, y = torch.randn(3, 1, device=backend.device), torch.randn(3, 4, device=backend.device)
    weight = torch.rand(3, 1, device=backend.device)
    for op in ("mse_loss", "l1_loss", "huber_loss"):
        torch.testing.assert_close(*(f(x, y, weight=weight) for f in (OPS[op].pyops, OPS[op].torch)))


_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
@pytest.mark.parametrize("op", NAMES)
def test_dtypes_are_promoted_as_in_torch(backend: Backend, op: str, reduction: str) -> None:
    for a, b in itertools.product(_DTYPES, repeat=2):
        x, y = (torch.tensor([0.0, 1.0, 3.0], dtype=d, device=backend.device) for d in (a, b))
        try:
            wanted = OPS[op].torch(x, y, reduction=reduction)
        except RuntimeError:
            with pytest.raises((TypeError, RuntimeError)):
                OPS[op].pyops(x, y, reduction=reduction)
            continue
        found = OPS[op].pyops(x, y, reduction=reduction)
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-2)  # torch rounds in between
        if a.is_floating_point:
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(OPS[op].pyops(x, y, reduction=reduction).sum(), x)
            assert gradient.dtype is a


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("other", _DTYPES)
def test_dtypes_of_weights_as_in_torch(backend: Backend, dtype: torch.dtype, other: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 3.0], dtype=dtype, device=backend.device)
    y, w = torch.zeros_like(x), torch.tensor([1, 2, 3], dtype=other, device=backend.device)
    for op, factor in [("mse_loss", "weight"), ("l1_loss", "weight"), ("huber_loss", "weight"),
                       (BCE, "weight"), (BCE, "pos_weight")]:  # fmt: skip
        results = [f(x, y, **{factor: w}) for f in (OPS[op].pyops, OPS[op].torch)]
        torch.testing.assert_close(*results, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
def test_complex_l1_loss_is_torchs(backend: Backend) -> None:
    x = torch.randn(3, dtype=torch.complex64, device=backend.device)
    torch.testing.assert_close(F.l1_loss(x, x + 1), torch.nn.functional.l1_loss(x, x + 1))


# ------------------------------------------------------------------------------------- options and samples


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("op", ["mse_loss", "l1_loss", "smooth_l1_loss", BCE])
def test_legacy_reduction_arguments_as_in_torch(backend: Backend, op: str) -> None:
    x, y = torch.randn(3, 5, device=backend.device), torch.rand(3, 5, device=backend.device)
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        options = {"size_average": size_average, "reduce": reduce}
        warned = size_average is not None or reduce is not None
        with pytest.warns(UserWarning, match="reduce args will be dep") if warned else nullcontext():
            torch.testing.assert_close(*(f(x, y, **options) for f in (OPS[op].pyops, OPS[op].torch)))


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:.*args will be deprecated")
@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, op: str, dtype: torch.dtype) -> None:
    check_torchs_samples(op, OPS[op].pyops, backend, dtype, equal_nan=True)


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


# -------------------------------------------------------------------------------------------------- errors

_X = torch.zeros(3, 5)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize(
    ("op", "error", "message", "change"),
    [
        ("mse_loss", ValueError, "reduction must be", {"reduction": "meen"}),
        ("mse_loss", TypeError, "target must be a Tensor, got list", {"target": [0.0]}),
        ("mse_loss", TypeError, "input must be a Tensor, got float", {"input": 0.5}),
        ("mse_loss", TypeError, "input and target must be float", {"input": _X.long(), "target": _X.long()}),
        ("huber_loss", TypeError, "input must be a floating", {"input": _X.long()}),
        ("l1_loss", RuntimeError, "target must be on cpu.*got meta", {"target": _X.to("meta")}),
        ("l1_loss", ValueError, r"weight must have .*\(3, 5\), got \(5,\)", {"weight": torch.ones(5)}),
        ("l1_loss", RuntimeError, "weight must be on cpu.*got meta", {"weight": _X.to("meta")}),
        ("l1_loss", RuntimeError, r"target must broadcast .*\(3, 5\), got \(4,\)", {"target": _X[0, :4]}),
        ("huber_loss", RuntimeError, "delta must be positive, got 0.0", {"delta": 0}),
        ("huber_loss", RuntimeError, "delta must be positive, got nan", {"delta": torch.nan}),
        ("huber_loss", TypeError, "delta must be a number, got str", {"delta": "1"}),
        ("smooth_l1_loss", RuntimeError, "beta must not be negative, got -1.0", {"beta": -1}),
        ("smooth_l1_loss", TypeError, "beta must be a number, got NoneType", {"beta": None}),
        (BCE, ValueError, r"target must have .*\(3, 5\), got \(5,\)", {"target": _X[0]}),
        (BCE, TypeError, "target must be a floating", {"target": _X.long()}),
        (BCE, TypeError, "input must be a floating", {"input": _X.long()}),
        (BCE, RuntimeError, r"weight must broadcast .*got \(3,\)", {"weight": torch.ones(3)}),
        (BCE, RuntimeError, r"pos_weight must broadcast .*got \(1, 3, 5\)", {"pos_weight": _X[None]}),
        (BCE, TypeError, "weight must be a Tensor, got float", {"weight": 0.5}),
        (BCE, RuntimeError, "pos_weight must be on cpu.*got meta", {"pos_weight": _X.to("meta")}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_bad_argument_is_named(op: str, error: type[Exception], message: str, change: dict) -> None:
    with pytest.raises(error, match=f"{op}: {message}"):
        OPS[op].pyops(**{"input": _X, "target": _X, **change})


_ONE = torch.ones(())
_TENSORS = (_X, _X, _X, 1, torch.ones(5), 1)
_STRIDED = torch.zeros(5, 3).t()


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("forward", {0: _X.long(), 1: _X.long(), 2: None, 4: None}),
        ("forward", {0: _STRIDED}),
        ("forward", {1: _STRIDED}),
        ("forward", {1: torch.zeros(3, 4)}),
        ("forward", {1: _X.double()}),
        ("forward", {2: _X.double()}),
        ("forward", {2: _STRIDED}),
        ("forward", {2: torch.zeros(0)}),
        ("forward", {3: 0}),
        ("forward", {3: -(2**63)}),
        ("forward", {4: torch.zeros(5, dtype=torch.float16)}),
        ("forward", {5: -1}),
        ("forward", {6: -1}),
        ("forward", {6: 5}),
        ("forward", {6: 0}),  # a pos_weight of a difference
        ("forward", {4: None, 6: 2, 7: 0.0}),
        ("forward", {4: None, 6: 3, 7: float("nan")}),
        ("forward", {8: 3}),
        ("backward", {0: torch.ones(3)}),
        ("backward", {0: torch.ones((), dtype=torch.float64)}),
        ("backward", {2: torch.zeros(3, 4)}),
        ("backward", {7: torch.ones(1)}),
        ("backward", {7: torch.ones((), dtype=torch.float16)}),
        ("backward", {10: 0}),  # elements want one upstream gradient each
        ("backward", {11: True}),  # the target's gradient is no difference's
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, change: dict) -> None:
    options = (4, 1.0, 1)
    good = {"forward": (*_TENSORS, *options), "backward": (_ONE, *_TENSORS, _ONE, *options, False)}[op]
    arguments = [change.get(i, a) for i, a in enumerate(good)]
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=f"elementwise_loss_{op}"):
        raw(kernels, f"elementwise_loss_{op}")(*[moved.get(str(i), a) for i, a in enumerate(arguments)])


def test_raw_ops_of_written_gradients_refuse() -> None:
    forward, regrade = raw(CPP, "elementwise_loss_forward_with_grad"), raw(CPP, "elementwise_loss_regrade_")
    for change in ({8: 0}, {0: _X.bfloat16(), 1: _X.bfloat16(), 2: None, 4: None}, {9: True}):
        arguments = [change.get(i, a) for i, a in enumerate((*_TENSORS, 4, 1.0, 1, False))]
        with pytest.raises(RuntimeError, match="elementwise_loss_forward_with_grad"):
            forward(*arguments)
    for arguments in ((_X.clone(), _X), (_X.bfloat16(), _ONE), (_STRIDED, _ONE), (_X, _ONE.double())):
        with pytest.raises(RuntimeError, match="elementwise_loss_regrade_"):
            regrade(*arguments)
