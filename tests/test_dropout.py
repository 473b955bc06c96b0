"""dropout, alone and fused, on every backend: its masks, its values, its gradients."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyops
import pyops.functional as F
from pyops.ops.dropout import draw_seed

from .suite import checks
from .suite.backends import BACKENDS, THOROUGH, WITH_KERNELS, Backend, activate, raw
from .suite.cases import DTYPES, Case, sweep
from .suite.layouts import LAYOUTS
from .suite.ops.dropout import (
    ACTIVATIONS,
    SEED,
    draws,
    factors,
    fixed_seed,
    fused_case,
    philox,
    plain_case,
)

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

RATES = [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0]


def moved(backend: Backend, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(backend.device) for t in tensors]


# -------------------------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_suites_philox_gives_the_published_answers(counter, key, words) -> None:
    """The known-answer vectors of Random123 (kat_vectors, philox4x32 10)."""
    assert tuple(philox(np.array([counter], np.uint64), key)[0]) == words


@pytest.mark.parametrize("seed", [(0, 0), SEED, (-1, -1), (2**63 - 1, -(2**63)), (1, 0), (0, 1)])
def test_mask_is_philox_of_seed_and_element(backend: Backend, seed: tuple[int, int]) -> None:
    with fixed_seed(seed):
        for p in (0.25, 0.9):
            mask = F.dropout(torch.ones(1900, device=backend.device), p).cpu()
            assert torch.equal(mask, factors(p, (1900,), seed).float())


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 255, 257, 1023, 1025, 2049])
def test_mask_at_sizes_that_end_inside_a_block(kernels: Backend, size: int) -> None:
    with fixed_seed():
        for dtype in DTYPES:
            x = torch.ones(size, dtype=dtype, device=kernels.device)
            assert torch.equal(F.dropout(x, 0.5).cpu().double(), factors(0.5, (size,)))


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pitfall_01_mask_beyond_2_to_the_32(kernels: Backend, dtype: torch.dtype) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    count = 2**32 + 9
    mask = raw(kernels, "dropout")(
        torch.ones(count, dtype=dtype, device=kernels.device), torch.tensor(SEED, device=kernels.device), 0.5
    )
    tail = torch.from_numpy(draws(SEED, 1000, count - 1000).astype(np.int64) >= 2**15)
    assert torch.equal(mask[-1000:].cpu() != 0, tail)


@pytest.mark.parametrize("p", RATES[1:-1])
def test_share_of_kept_elements_and_scale(p: float) -> None:
    count, threshold = 1 << 20, max(1, round(p * 65536))
    y = F.dropout(torch.ones(count), p)
    keep = 1 - threshold / 65536
    assert abs((y != 0).double().mean().item() - keep) < 5 * math.sqrt(keep * (1 - keep) / count)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / keep).item()}


@pytest.mark.parametrize("lag", [1, 2, 7, 8, 16, 1024])
def test_neighbours_are_independent(lag: int) -> None:
    count = 1 << 20
    kept = (F.dropout(torch.ones(count + lag), 0.5) != 0).double() * 2 - 1
    assert abs((kept[lag:] * kept[:-lag]).mean().item()) < 5 / math.sqrt(count)


def test_halves_of_words_slots_of_blocks_and_seeds_are_independent() -> None:
    count = 1 << 20
    one, other = ((F.dropout(torch.ones(count), 0.5) != 0).double() * 2 - 1 for _ in range(2))
    assert abs((one * other).mean().item()) < 5 / math.sqrt(count)
    slots = one.view(-1, 8)
    correlation = slots.T @ slots / len(slots) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max().item() < 5.5 / math.sqrt(len(slots))
    assert slots.mean(0).abs().max().item() < 5 / math.sqrt(len(slots))


def test_seeds_that_differ_in_one_bit_give_unrelated_masks() -> None:
    count, masks = 1 << 16, []
    for bit in (0, 31, 32, 63):
        for part in (0, 1):
            seed = [5, 6]
            seed[part] ^= 1 << bit if bit < 63 else -(1 << 63)
            with fixed_seed((seed[0], seed[1])):
                masks.append((F.dropout(torch.ones(count), 0.5) != 0).double() * 2 - 1)
    stacked = torch.stack(masks)
    correlation = stacked @ stacked.T / count - torch.eye(len(masks), dtype=torch.float64)
    assert correlation.abs().max().item() < 5.5 / math.sqrt(count)


def test_tiny_and_large_probabilities_are_not_rounded_away() -> None:
    x = torch.ones(1 << 20)
    assert 0 < (F.dropout(x, 1e-7) == 0).sum() < 64
    assert 0 < (F.dropout(x, 1 - 1e-7) != 0).sum() < 64


def test_manual_seed_and_generator_fix_the_mask(backend: Backend) -> None:
    x = torch.ones(500, device=backend.device)
    torch.manual_seed(5)
    first, second = F.dropout(x), F.dropout(x)
    torch.manual_seed(5)
    assert torch.equal(F.dropout(x), first)
    assert not torch.equal(first, second)
    generator = torch.Generator(backend.device).manual_seed(1)
    own = F.dropout(x, generator=generator), F.dropout(x, activation="relu", generator=generator)
    assert torch.equal(F.dropout(x), second)  # torch's own generator was left alone
    assert torch.equal(F.dropout(x, generator=generator.manual_seed(1)), own[0])
    assert torch.equal(F.dropout(x, activation="relu", generator=generator), own[1])
    assert not torch.equal(*own)


# -------------------------------------------------------------------------------------------------- accuracy

_PLAIN = [plain_case(s) for s in [(), (1,), (5, 7), (2, 3, 4, 5)]] + [
    plain_case((3, 419), p) for p in RATES if p > 0
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


# --------------------------------------------------------------------------------------------------- layouts

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


# ----------------------------------------------------------------------------------- gradients, dispatching

_SMALL = [
    plain_case((3, 5)),
    fused_case((3, 5), (5,), "relu"),
    fused_case((3, 5), (5,), "sigmoid"),
    fused_case((2, 4, 3), (4, 1), "gelu", residual=True),
    fused_case((3, 5), (5,), "softplus"),
    fused_case((3, 5), None, None, residual=True),
]


@sweep(_SMALL, [torch.float64])
def test_gradcheck_of_first_and_second_derivative(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


def test_third_derivative_has_the_same_mask(backend: Backend) -> None:
    x = torch.randn(40, dtype=torch.float64, device=backend.device, requires_grad=True)
    y = F.dropout(x, 0.5)
    (g,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    (t,) = torch.autograd.grad(h.sum(), x)
    mask = (y != 0).double() * 2
    torch.testing.assert_close(t, 6 * mask**3)


@sweep(_SMALL, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_SMALL, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(
    [plain_case((7, 40_009), quick=False), plain_case((9, 33)), *_FUSED_LARGE, fused_case((40, 13), (13,))],
    [torch.float32, torch.bfloat16],
    WITH_KERNELS,
)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(_SMALL[:2], [torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


@pytest.mark.parametrize("size", [10, 100_000])
def test_plain_dropout_keeps_16_bytes(backend: Backend, size: int) -> None:
    if size > 1000 and not backend.thorough:
        pytest.skip("too slow")
    x = torch.randn(size, device=backend.device, requires_grad=True)
    if backend.name != "reference":
        assert checks.saved_for_backward(lambda: F.dropout(x, 0.3), x) == 16


@pytest.mark.parametrize(
    ("activation", "residual", "kept"),
    [(None, False, 0), ("relu", False, 400), ("sigmoid", False, 400), ("gelu", False, 0), ("relu", True, 0)],
)
def test_fused_form_keeps_output_or_input(kernels: Backend, activation, residual: bool, kept: int) -> None:
    x = torch.randn(10, 10, device=kernels.device, requires_grad=True)
    bias = torch.randn(10, device=kernels.device, requires_grad=True)
    r = torch.randn(10, 10, device=kernels.device) if residual else None
    given = [x, bias] + ([] if r is None else [r])
    call = partial(F.dropout, x, 0.3, bias=bias, activation=activation, residual=r)
    assert checks.saved_for_backward(call, *given) == kept + 16
    assert checks.saved_for_backward(partial(call, training=False), *given) == kept


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_repeats_the_mask(backend: Backend, reentrant: bool) -> None:
    x = torch.rand(6, 40, device=backend.device) + 1
    bias = torch.rand(40, device=backend.device)

    def block(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.dropout(x, 0.5, bias=bias, activation="relu"), 0.3)

    results = []
    for call in (block, partial(checkpoint, block, use_reentrant=reentrant)):
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        torch.manual_seed(3)
        y = call(*leaves)
        results.append(
            (y, *torch.autograd.grad(y.sum(), leaves)) if not reentrant else (y, *_backward(y, leaves))
        )
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


def _backward(y: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    y.sum().backward()  # reentrant checkpointing does not work with torch.autograd.grad
    return [t.grad for t in leaves if t.grad is not None]


# --------------------------------------------------------------------------------------------- torch.compile


def _plain(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5)


def _fused(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, bias=x[0], activation="relu")


def _inplace(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x * 1, 0.5, inplace=True)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("function", [_plain, _fused, _inplace])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph_uses_one_mask_both_ways(backend: Backend, function, compiler: str) -> None:
    if compiler == "inductor" and backend.name == "reference":
        pytest.skip("torch's formulas are torch's")
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    outputs = []
    for _ in range(2):
        x = (torch.rand(8, 33, device=backend.device) + 1).requires_grad_()
        y = compiled(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        kept = y != 0
        assert 0.3 < kept.double().mean() < 0.7
        wanted = kept * 2.0
        if function is _fused:
            wanted[0] += wanted.sum(0)
        torch.testing.assert_close(gradient, wanted)
        outputs.append(kept)
    assert not torch.equal(*outputs)


def test_compile_with_another_rate_and_in_evaluation() -> None:
    compiled = torch.compile(F.dropout, fullgraph=True, backend="aot_eager")
    x = torch.rand(300) + 1
    for p in (0.0, 0.25, 1.0):
        torch.manual_seed(1)
        found = compiled(x, p)
        torch.manual_seed(1)
        assert torch.equal(found, F.dropout(x, p))
    assert torch.equal(compiled(x, 0.5, False), x)


# --------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_to_drop_returns_the_input(backend: Backend, inplace: bool) -> None:
    for x in (torch.randn(3, device=backend.device), torch.arange(3), torch.empty(0)):
        assert F.dropout(x, 0.0, True, inplace) is x
        assert F.dropout(x, 0.5, False, inplace) is x
    assert F.dropout(torch.empty(0, 3), 0.5).shape == (0, 3)


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"training": False}])
def test_fused_form_without_mask_still_adds_and_activates(backend: Backend, arguments: dict) -> None:
    x, bias, residual = moved(backend, torch.randn(4, 6), torch.randn(6), torch.randn(4, 6))
    found = F.dropout(x, bias=bias, activation="tanh", residual=residual, **arguments)
    torch.testing.assert_close(found, residual + torch.tanh(x + bias))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_as_in_torch(dtype: torch.dtype) -> None:
    x = torch.ones(4, 4).to(dtype)
    with pytest.raises(TypeError, match=r"dropout: input must be a floating-point tensor, got torch\."):
        F.dropout(x, 0.5)
    found, wanted = F.dropout(x, 1.0), torch.nn.functional.dropout(x, 1.0)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def test_inplace_writes_into_the_input(backend: Backend) -> None:
    for make in (lambda x: x, lambda x: x.t(), lambda x: x[:, ::2]):
        base = torch.rand(6, 8, device=backend.device) + 1
        x = make(base.clone())
        before, pointer = x.clone(), x.data_ptr()
        y = F.dropout(x, 0.5, inplace=True)
        assert y is x
        assert y.data_ptr() == pointer
        torch.testing.assert_close(y, before * (y != 0) * 2)
        assert 0 < (y != 0).sum() < y.numel()


def test_inplace_in_a_graph(backend: Backend) -> None:
    leaf = (torch.rand(6, 8, device=backend.device) + 1).requires_grad_()
    for make in (lambda x: x * 1, lambda x: (x * 1)[:, ::2], lambda x: (x * 1)[1:3]):
        x = make(leaf)
        y = F.dropout(x, 0.5, inplace=True)
        assert y is x
        (found,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
        wanted = torch.zeros_like(leaf)
        make_view = {(6, 8): wanted, (6, 4): wanted[:, ::2], (2, 8): wanted[1:3]}[tuple(y.shape)]
        make_view.copy_((y != 0) * 2.0)
        torch.testing.assert_close(found, wanted)
    square = leaf**2
    z = square.exp()
    F.dropout(z, 0.5, inplace=True)  # exp needs its output
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_inplace_on_a_leaf_is_refused_and_leaves_it_alone(backend: Backend) -> None:
    leaf = torch.ones(50, device=backend.device, requires_grad=True)
    for x in (leaf, leaf[1:]):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            F.dropout(x, 0.5, inplace=True)
    assert (leaf == 1).all()
    with torch.no_grad():
        assert F.dropout(leaf, 0.5, inplace=True) is leaf


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("which", ["bias", "residual"])
def test_dtypes_are_promoted_as_in_a_sum(backend: Backend, which: str, other: torch.dtype) -> None:
    x = torch.randn(4, 6, device=backend.device)
    tensor = torch.randn(6 if which == "bias" else (4, 6), device=backend.device).to(other)
    found = F.dropout(x, 0.0, **{which: tensor})
    torch.testing.assert_close(found, x + tensor)


def test_a_gradient_that_is_not_needed_is_none(kernels: Backend) -> None:
    x, bias, residual = moved(kernels, torch.randn(4, 6), torch.randn(6), torch.randn(4, 6))
    for i in range(3):
        tensors = [x.clone(), bias.clone(), residual.clone()]
        tensors[i].requires_grad_()
        y = F.dropout(tensors[0], 0.5, bias=tensors[1], activation="relu", residual=tensors[2])
        y.sum().backward()
        assert [t.grad is not None for t in tensors] == [j == i for j in range(3)]


def test_module(backend: Backend) -> None:
    module = pyops.nn.Dropout(0.25)
    x = torch.rand(300, device=backend.device) + 1
    torch.manual_seed(2)
    found = module(x)
    torch.manual_seed(2)
    assert torch.equal(found, F.dropout(x, 0.25))
    assert module.eval()(x) is x
    assert repr(pyops.nn.Dropout(0.1, True)) == repr(torch.nn.Dropout(0.1, True))
    fused = pyops.nn.Dropout(0.25, activation="relu")
    assert "activation='relu'" in repr(fused)
    bias = torch.randn(300, device=backend.device)
    torch.testing.assert_close(fused.eval()(-x, bias=bias, residual=x), x + torch.relu(bias - x))


# ---------------------------------------------------------------------------------------------------- errors

_X = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "p must be a probability between 0 and 1, got 1.5", {"p": 1.5}),
        (ValueError, "p must be a probability between 0 and 1, got -0.1", {"p": -0.1}),
        (ValueError, "p must be a probability between 0 and 1, got nan", {"p": math.nan, "training": False}),
        (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
        (TypeError, "input must be a Tensor, got list", {"input": [1.0], "activation": "relu"}),
        (TypeError, "input must be a floating.*int64", {"input": _X.long(), "activation": "relu"}),
        (TypeError, "bias must be a Tensor, got float", {"bias": 1.0}),
        (TypeError, "bias must be a floating.*int64", {"bias": torch.zeros(5).long()}),
        (ValueError, r"bias must have.*\(3, 5\), got \(3,\)", {"bias": torch.zeros(3)}),
        (ValueError, r"bias must have.*\(3, 5\), got \(3, 5\)", {"bias": _X}),
        (ValueError, r"bias must have.*\(3, 5\), got \(1, 1, 5\)", {"bias": torch.zeros(1, 1, 5)}),
        (ValueError, r"bias must have.*\(\), got \(\)", {"input": torch.zeros(()), "bias": torch.zeros(())}),
        (RuntimeError, "bias must be on cpu", {"bias": torch.zeros(5, device="meta")}),
        (ValueError, r"residual must have shape \(3, 5\)", {"residual": torch.zeros(5)}),
        (ValueError, "activation must be None or one of 'relu'.*'nope'", {"activation": "nope"}),
        (ValueError, "inplace=True cannot be combined", {"inplace": True, "activation": "relu"}),
    ],
)
def test_bad_argument_is_named(error: type[Exception], message: str, arguments: dict) -> None:
    with pytest.raises(error, match=f"dropout: {message}"):
        F.dropout(**{"input": _X, **arguments})


def test_meta_tensors_give_shapes() -> None:
    x, bias = torch.empty(3, 5, device="meta"), torch.empty(5, device="meta")
    assert F.dropout(x).shape == (3, 5)
    assert F.dropout(x, bias=bias, activation="relu").shape == (3, 5)


_SEED = torch.tensor(SEED)
_FORWARD, _BACKWARD = "bias_activation_dropout_forward", "bias_activation_dropout_backward"


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("dropout", (_X, _SEED, 1.5)),
        ("dropout", (_X, _SEED, math.nan)),
        ("dropout", (_X, _SEED[:1], 0.5)),
        ("dropout", (_X, _SEED.int(), 0.5)),
        ("dropout", (_X.t(), _SEED, 0.5)),
        ("dropout", (_X.long(), _SEED, 0.5)),
        ("dropout_", (_X.t(), _SEED, 0.5)),
        ("dropout_", (_X, _SEED[::2], 0.5)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 12, 0.0, 0.0, 1)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, -1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 1, 0.0, 0.0, 2)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 1, 0.0, 0.0, 0)),
        (_FORWARD, (_X, _X[0].double(), None, _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, None, _X[:2], _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, None, _X.view(5, 3).t(), _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_BACKWARD, (_X, None, None, _SEED, 0.5, 1, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 8, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 2, -1.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X[:2], None, _SEED, 0.5, 1, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, _X[0, :3], _SEED, 0.5, 8, 0.0, 0.0, 1, False, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 1, 0.0, 0.0, 2, True, True)),
        (_BACKWARD, (_X, _X, None, _SEED, 2.0, 1, 0.0, 0.0, 1, True, True)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    placed = [
        a.to(kernels.device) if isinstance(a, torch.Tensor) and a.is_contiguous() else a for a in arguments
    ]
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*placed)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.device == "cuda"], ids=str, indirect=True)
def test_cuda_graph_replays_draw_new_masks(backend: Backend) -> None:
    x = torch.ones(4096, device="cuda")
    F.dropout(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y.clone())
    assert not torch.equal(*masks)


def test_every_backend_makes_the_same_mask() -> None:
    seed, x = draw_seed(torch.device("cpu")), torch.ones(1111)
    masks = []
    for backend in (b for b in BACKENDS if b.device == "cpu"):
        activate(backend)
        with pyops.use_backend(backend.name), fixed_seed(tuple(seed.tolist())):
            masks.append(F.dropout(x, 0.4))
    assert len(masks) >= 2
    assert all(torch.equal(mask, masks[0]) for mask in masks)
