"""cross_entropy on every backend, against float64 formulas and torch.nn.functional.cross_entropy."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from pyops.functional import cross_entropy
from tests.suite import checks
from tests.suite.backends import BACKENDS, Backend
from tests.suite.cases import DTYPES, REDUCTIONS, Case, name_of, pairwise, product, sweep
from tests.suite.class_losses import (
    EMPTY,
    EXTREME_SHAPES,
    EXTREMES,
    IGNORED,
    LARGE_SIZES,
    SHAPES,
    SIZES,
    loss_case,
)
from tests.suite.layouts import LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

case = partial(loss_case, "cross_entropy")


def from_settings(settings: dict, prefix: str = "", quick: bool = True) -> Case:
    return case(prefix + name_of(settings), **settings, quick=quick)


# ------------------------------------------------------------------------------------------------ accuracy

# torch's options. Index targets with every smoothing kind (none, some, all) and every place of ignore_index.
_OPTIONS = {
    "shape": SHAPES,
    "weight": [False, True],
    "label_smoothing": [0.0, 0.1, 1.0],
    "reduction": REDUCTIONS,
}
INDEX_AXES = {**_OPTIONS, "ignored": IGNORED}
PROBABILITY_AXES = {**_OPTIONS, "probability_target": [True]}
# What torch does not have, with each other and with a sample of what it has.
EXTRA_AXES = {
    **_OPTIONS,
    "ignored": [None, 1],
    "z_loss": [0.0, 0.1],
    "sample_weight": [False, True],
    "return_lse": [False, True],
    "inplace_backward": [False, True],
}
EXTRA_PROBABILITY_AXES = {**EXTRA_AXES, "ignored": [None], "probability_target": [True]}
PAIRWISE = [
    from_settings(s)
    for axes in (INDEX_AXES, PROBABILITY_AXES, EXTRA_AXES, EXTRA_PROBABILITY_AXES)
    for s in pairwise(**axes)
]
PAIRWISE = list({c.id: c for c in PAIRWISE}.values())
EVERYTHING = [
    from_settings(s, quick=False) for axes in (INDEX_AXES, PROBABILITY_AXES) for s in product(**axes)
]


@sweep(PAIRWISE)
def test_accuracy_of_every_pair_of_options(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(EVERYTHING, [torch.float32], [b for b in BACKENDS if b.name in ("cpp", "cuda")])
def test_accuracy_of_every_combination_of_torchs_options(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    checks.check_accuracy(case, backend, dtype)


def sized(shape: tuple[int, ...], quick: bool) -> list[Case]:
    """Every kind of pass over the classes: none of its own, smoothing with weights, probabilities."""
    name = "x".join(map(str, shape))
    return [
        case(f"size_{name}", shape, quick=quick),
        case(f"size_{name}_smoothing_weight", shape, weight=True, label_smoothing=0.2, quick=quick),
        case(f"size_{name}_probabilities", shape, probability_target=True, reduction="sum", quick=quick),
    ]


@sweep([c for s in SIZES for c in sized(s, True)])
def test_accuracy_at_sizes_that_end_inside_a_vector_or_tile(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep([c for s in LARGE_SIZES for c in sized(s, False)], [torch.float32, torch.bfloat16])
def test_accuracy_at_large_sizes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


_EMPTY = [
    case(f"empty_{'x'.join(map(str, s))}_{r}_{target}", s, reduction=r, probability_target=target != "index")
    for s in EMPTY
    for r in REDUCTIONS
    for target in ("index", "probabilities")
]


@sweep(_EMPTY, [torch.float32])
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


def test_no_classes(kernels: Backend) -> None:
    """Rows without classes can only be ignored; torch refuses, we give what the formula gives."""
    logits = torch.zeros(3, 0, device=kernels.device, requires_grad=True)
    target = torch.full((3,), -100, device=kernels.device)
    loss = cross_entropy(logits, target, reduction="none")
    assert torch.equal(loss.cpu(), torch.zeros(3))
    assert cross_entropy(logits, target, reduction="sum").item() == 0
    assert cross_entropy(logits, target).isnan()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.shape == (3, 0)
    loss = cross_entropy(logits, torch.zeros(3, 0, device=kernels.device), reduction="none")
    assert torch.equal(loss.detach().cpu(), torch.zeros(3))
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (3, 0)


_EXTREMES = [
    case(f"{name}_{'x'.join(map(str, shape))}_{kind}", shape, change=change, reduction=reduction, **kinds)
    for shape in EXTREME_SHAPES
    for (name, change), reduction in zip(EXTREMES.items(), itertools.cycle(REDUCTIONS))
    for kind, kinds in {
        "plain": {},
        "smoothing_weight": {"label_smoothing": 0.1, "weight": True},
        "probabilities": {"probability_target": True},
        "ignored": {"ignored": 1},
    }.items()
    # Where the softmax saturates, smoothed gradients cancel to e/C of their terms: a matter of luck.
    if (name, kind) != ("spread_1e4", "smoothing_weight")
]


@sweep(_EXTREMES, [torch.float32])
def test_extreme_logits(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


# ------------------------------------------------------------------------------------------------- layouts

_LAYOUT_CASES = [
    case("layout", (3, 5, 6), reduction="none", ignored=1, weight=True, label_smoothing=0.1),
    case("layout_rows", (6, 9), reduction="mean", sample_weight=True),
    case("layout_image", (2, 5, 3, 4), reduction="none", z_loss=0.1, sample_weight=True, return_lse=True),
    case("layout_probabilities", (2, 5, 3, 4), probability_target=True, reduction="sum", sample_weight=True),
    case("layout_unbatched", (7,), return_lse=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep(_LAYOUT_CASES, [torch.float32, torch.bfloat16])
def test_strided_arguments(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep([c for c in _LAYOUT_CASES if c.options.get("reduction") == "none"], [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 5, 6)])
def test_gradient_keeps_the_memory_format_of_the_logits(kernels: Backend, shape: tuple[int, ...]) -> None:
    logits = LAYOUTS["channels_last"](torch.randn(shape)).to(kernels.device).requires_grad_()
    target = torch.randint(0, 5, (shape[0], *shape[2:]), device=kernels.device)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, target), logits)
    assert gradient.stride() == logits.stride()


def test_arguments_are_left_alone(backend: Backend) -> None:
    c = PAIRWISE[0]
    tensors = checks.on_device(c.tensors(torch.float32), backend.device)
    before = {k: (t.clone(), t._version) for k, t in tensors.items()}
    loss = cross_entropy(**{**tensors, "input": tensors["input"].requires_grad_()})
    loss.backward()
    for name, (value, version) in before.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name]._version == version, name


# -------------------------------------------------------------------------- return values, torch's samples


@pytest.mark.parametrize("dtype", DTYPES)
def test_returned_lse_is_in_the_accumulation_dtype(backend: Backend, dtype: torch.dtype) -> None:
    logits = torch.randn(3, 5, dtype=dtype, device=backend.device)
    target = torch.randint(0, 5, (3,), device=backend.device)
    _, lse = cross_entropy(logits, target, return_lse=True)
    assert lse.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert lse.shape == (3,)


def test_legacy_reduction_arguments_as_in_torch(backend: Backend) -> None:
    logits = torch.randn(3, 5, device=backend.device)
    target = torch.randint(0, 5, (3,), device=backend.device)
    checks.check_legacy_reduction(cross_entropy, torch.nn.functional.cross_entropy, logits, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    check_torchs_samples("cross_entropy", cross_entropy, backend, dtype, every=7, equal_nan=True)
