"""softmax and log_softmax on every backend, against float64 formulas and torch.nn.functional."""

from __future__ import annotations

import itertools

import pytest
import torch

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import THOROUGH, WITH_KERNELS, Backend, raw
from tests.suite.cases import DTYPES, Case, normal, sweep
from tests.suite.class_losses import EXTREME_SHAPES, EXTREMES
from tests.suite.layouts import LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

OPS = ["softmax", "log_softmax"]
FUNCTIONS = {
    "softmax": (F.softmax, torch.nn.functional.softmax),
    "log_softmax": (F.log_softmax, torch.nn.functional.log_softmax),
}


def case(op: str, name: str, shape: tuple[int, ...], dim: int, *, change=None, quick: bool = True) -> Case:
    def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = normal(generator, shape)
        return {"input": x if change is None else change(x)}

    id = f"{op}_{name}_{'x'.join(map(str, shape)) or 'scalar'}_dim{dim}"
    return Case(id, op, make, {"dim": dim}, quick)


def both(name: str, shape: tuple[int, ...], dim: int, **arguments) -> list[Case]:
    return [case(op, name, shape, dim, **arguments) for op in OPS]


def flat(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


# ------------------------------------------------------------------------------------------------ accuracy

# Each dimension of up to four, counted from either end; the scalar, which is a row of one class.
_DIMS = flat(
    both("dims", shape, dim)
    for shape in [(), (7,), (5, 7), (3, 5, 4), (2, 3, 4, 5)]
    for dim in {*range(-max(len(shape), 1), max(len(shape), 1))}
)
# Primes end inside every vector and tile; 4099 is one piece of the C++ loop more than one, 257 one block of
# threads more than one. Strided rows: 33 and 129 neighbours end inside a panel.
_SIZES = flat(
    both("size", shape, 1)
    for shape in [(1, 1), (3, 16), (5, 127), (1, 1009), (2, 4099), (257, 3), (2, 17, 33)]
)
_LARGE = flat(both("large", shape, 1, quick=False) for shape in [(3, 65_537), (70_001, 3), (2, 1009, 129)])
_EMPTY = flat(both("empty", s, d) for s in [(0, 5), (5, 0), (2, 0, 3), (2, 3, 0), (0, 0)] for d in (0, 1))
_EXTREMES = flat(both(n, s, 1, change=f) for s in EXTREME_SHAPES for n, f in EXTREMES.items())


@sweep(_DIMS, [torch.float32])
def test_every_dimension(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_SIZES)
def test_accuracy_at_sizes_that_end_inside_a_vector_or_tile(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_LARGE, [torch.float32, torch.bfloat16])
def test_accuracy_at_large_sizes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_EMPTY, [torch.float32])
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_EXTREMES, [torch.float32])
def test_extreme_logits(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
@pytest.mark.parametrize("op", OPS)
def test_result_does_not_change_with_a_common_offset(backend: Backend, op: str, offset: float) -> None:
    logits = torch.randint(-8, 8, (6, 37), device=backend.device).float()  # exact when the offset is added
    assert torch.equal(FUNCTIONS[op][0](logits, 1), FUNCTIONS[op][0](logits + offset, 1))


def test_probabilities_sum_to_one(backend: Backend) -> None:
    sums = F.softmax(torch.randn(8, 1000, device=backend.device), 1).double().sum(1)
    assert (sums - 1).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------- layouts

_LAYOUT_CASES = flat(
    both("layout", s, d) for s, d in [((6, 7), 1), ((3, 5, 6), 1), ((2, 5, 3, 4), 1), ((4, 6), 0)]
)


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep(_LAYOUT_CASES, [torch.float32, torch.bfloat16])
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_LAYOUT_CASES, [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradient_keep_the_memory_format(kernels: Backend, op: str, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    y = FUNCTIONS[op][0](x, 1)
    assert y.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.stride() == x.stride()


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = flat(both("compact", s, d) for s, d in [((4, 7), 1), ((2, 5, 3), 1)])


@sweep(flat(both("gradcheck", s, d) for s, d in [((3, 5), 1), ((2, 4, 3), 1)]), [torch.float64])
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


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    shapes = [(4, 7), (5, 9), (11, 3)]
    checks.check_compiles_once(F.log_softmax, [(torch.randn(shape), 1) for shape in shapes])


@sweep(
    [c for s, d in [((70_001, 3), 1), ((7, 40_009), 1), ((3, 19, 5003), 1)]
     for c in both("threads", s, d, quick=False)] + both("runs", (9, 33), 1),
    [torch.float32, torch.bfloat16],
    WITH_KERNELS,
)  # fmt: skip
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(_COMPACT[:2], [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


@pytest.mark.parametrize("op", OPS)
def test_backward_keeps_the_output_alone(kernels: Backend, op: str) -> None:
    x = torch.randn(16, 50, device=kernels.device, requires_grad=True)
    assert checks.saved_for_backward(lambda: FUNCTIONS[op][0](x, 1), x) == 16 * 50 * 4


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    x = torch.zeros(2**16 + 1, 2**15 + 1, dtype=torch.bfloat16, device=kernels.device)
    x[-1, -1] = 30.0
    y = F.softmax(x, 1)
    assert y[-1, -1].item() == 1.0
    assert y[-1, -2].item() < 1e-12
    assert abs(y[-2, -1].item() * (2**15 + 1) - 1) < 0.01


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_argument_casts_first(backend: Backend, op: str, dtype: torch.dtype) -> None:
    ours, torchs = FUNCTIONS[op]
    for x in (torch.randn(3, 5), torch.randint(0, 5, (3, 5)), torch.randn(3, 5, dtype=torch.float16)):
        x = x.to(backend.device)
        found, wanted = ours(x, 1, dtype=dtype), torchs(x, 1, dtype=dtype)
        assert found.dtype is dtype
        error, scale = (found - wanted).abs().max().item(), wanted.abs().max().item()
        assert error <= 2 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 3, 4), (2, 3, 4, 2)])
def test_implicit_dimension_is_torchs_and_warns(backend: Backend, op: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=backend.device)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as ours:
        found = FUNCTIONS[op][0](x)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as theirs:
        wanted = FUNCTIONS[op][1](x)
    torch.testing.assert_close(found, wanted)
    assert ours[0].filename == theirs[0].filename == __file__


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, op: str, dtype: torch.dtype) -> None:
    check_torchs_samples(op, FUNCTIONS[op][0], backend, dtype)


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "input must be a floating.*got torch.int64", (torch.zeros(3, dtype=torch.int64), 0)),
        (TypeError, "input must be a Tensor, got list", ([1.0], 0)),
        (IndexError, r"dim must be in \[-2, 1\], got 2", (torch.zeros(3, 5), 2)),
        (IndexError, r"dim must be in \[-2, 1\], got -3", (torch.zeros(3, 5), -3)),
        (IndexError, r"dim must be in \[-1, 0\], got 1", (torch.zeros(()), 1)),
    ],
)
def test_bad_argument_is_named(op: str, error: type[Exception], message: str, arguments: tuple) -> None:
    with pytest.raises(error, match=f"{op}: {message}"):
        FUNCTIONS[op][0](*arguments)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_give_shapes(op: str) -> None:
    assert FUNCTIONS[op][0](torch.empty(3, 5, device="meta"), 1).shape == (3, 5)


_ROW = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("softmax_forward", (_ROW, 2, False)),
        ("softmax_forward", (_ROW, -3, False)),
        ("softmax_forward", (_ROW.t(), 0, False)),
        ("softmax_forward", (_ROW.long(), 1, False)),
        ("softmax_forward", (_ROW.bool(), 1, False)),
        ("softmax_backward", (_ROW, _ROW, 2, False)),
        ("softmax_backward", (_ROW[:2], _ROW, 1, False)),
        ("softmax_backward", (_ROW.double(), _ROW, 1, False)),
        ("softmax_backward", (_ROW.view(5, 3).t(), _ROW, 1, False)),
        ("softmax_backward", (_ROW, _ROW.view(5, 3).t(), 1, False)),
        ("softmax_backward", (_ROW.long(), _ROW.long(), 1, False)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
