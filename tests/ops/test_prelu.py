"""prelu on every backend, against the float64 formula and torch.nn.functional."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import BACKENDS, CPP, THOROUGH, WITH_KERNELS, Backend, raw
from tests.suite.cases import Case, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.prelu import case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy

# One slope; a slope per column, fewer and more than a row of slopes is wide; few pixels, many pixels.
_SIZES = [
    case((5,), (1,)),
    case((3, 1031), (1,)),
    case((33, 7), (7,)),
    case((3, 1100), (1100,)),
    case((2, 5, 7), (5,)),
    case((2, 3, 17, 19), (3,)),
]
_SHAPES = [
    case((), (1,)),
    case((), ()),
    case((7,), ()),
    case((0, 3), (3,)),
    case((3, 0), (0,)),
    case((2, 0, 3), (1,)),
    case((2, 4, 1, 3, 2), (4,)),
    case((40, 1), (1,)),
]
# Several blocks of sums each way; 20_011 elements of a channel are several chunks.
_LARGE = [
    case((300_007,), (1,), quick=False),
    case((50_021, 7), (7,), quick=False),
    case((70, 5003), (5003,), quick=False),
    case((40, 130, 50), (130,), quick=False),
    case((3, 3, 20_011), (3,), quick=False),
]


@sweep(_SIZES)
def test_accuracy_of_every_layout_of_slopes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_SHAPES, [torch.float32])
def test_shapes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_LARGE, [torch.float32, torch.bfloat16], [CPP])
def test_accuracy_at_large_sizes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


def test_boundaries_nan_and_infinity(kernels: Backend) -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, math.nan, math.inf, -math.inf])
    results = []
    for function, device in ((F.prelu, kernels.device), (torch.nn.functional.prelu, "cpu")):
        x = values.to(device).requires_grad_()
        weight = torch.tensor([0.25], device=device, requires_grad=True)
        y = function(x, weight)
        gradients = torch.autograd.grad(y, (x, weight), torch.full_like(y, 2.0))
        results.append([t.detach().cpu() for t in (y, *gradients)])
    torch.testing.assert_close(*results, equal_nan=True)


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep([case((6, 7), (7,)), case((2, 5, 3, 4), (5,))], [torch.float32])
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep([case((2, 5, 3, 4), (5,))], [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradient_keep_the_memory_format(kernels: Backend, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    weight = torch.rand(5, device=kernels.device)
    y = F.prelu(x, weight)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == gradient.stride() == x.stride()


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [case((4, 7), (7,)), case((2, 3, 4), (1,))]


@sweep([*_COMPACT, case((), (1,))], [torch.float64], [CPP, BACKENDS[-1]])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep([*_COMPACT, case((2, 5, 3, 4), (5,))], [torch.float32], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


@sweep([*_LARGE, *_COMPACT], [torch.float32], [CPP])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@sweep(_COMPACT, [torch.float32, torch.bfloat16, torch.float64], THOROUGH)
def test_autocast_gives_torchs_dtypes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, torch.bfloat16)


def test_gradient_of_one_argument_alone(kernels: Backend) -> None:
    x, weight = torch.randn(3, 5, device=kernels.device), torch.rand(5, device=kernels.device)
    for first, second in ((True, False), (False, True)):
        a, w = x.clone().requires_grad_(first), weight.clone().requires_grad_(second)
        F.prelu(a, w).sum().backward()
        b, v = x.clone().requires_grad_(first), weight.clone().requires_grad_(second)
        torch.nn.functional.prelu(b, v).sum().backward()
        torch.testing.assert_close((a.grad, w.grad)[not first], (b.grad, v.grad)[not first])


def test_backward_makes_no_tensor_of_products() -> None:
    with pyops.use_backend("cpp"):
        x = torch.randn(64, 40, requires_grad=True)
        weight = torch.rand(40, requires_grad=True)
        assert checks.saved_for_backward(lambda: F.prelu(x, weight), x, weight) == 0
        y = F.prelu(x, weight)
        with checks._Recorder() as recorder:
            y.sum().backward()
    assert [str(call[0]) for call in recorder.calls] == ["pyops.prelu_backward.default"]


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "input must be a Tensor, got list", ([1.0], torch.ones(1))),
        (TypeError, "weight must be a Tensor, got float", (torch.ones(3), 0.25)),
        (TypeError, "input must be a floating.*int64", (torch.ones(3).long(), torch.ones(1))),
        (TypeError, "weight must have dtype torch.float32.*float64", (torch.ones(3), torch.ones(1).double())),
        (ValueError, r"weight must .* 1 dimension, got shape \(1, 3\)", (torch.ones(2, 3), torch.ones(1, 3))),
        (ValueError, "weight must have 1 or 3 elements, .* got 2", (torch.ones(2, 3), torch.ones(2))),
        (ValueError, "weight must have 1 element, got 3", (torch.ones(3), torch.ones(3))),
        (RuntimeError, "weight must be on cpu", (torch.ones(3), torch.ones(1, device="meta"))),
    ],
)  # fmt: skip
def test_bad_argument_is_named(error: type[Exception], message: str, arguments: tuple) -> None:
    with pyops.use_backend("cpp"), pytest.raises(error, match=f"prelu: {message}"):
        F.prelu(*arguments)


def test_meta_tensors_give_shapes() -> None:
    assert F.prelu(torch.empty(30, 50, device="meta"), torch.empty(50, device="meta")).shape == (30, 50)


_X, _W = torch.zeros(3, 5), torch.zeros(5)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("prelu_forward", (_X, _W, 0)),
        ("prelu_forward", (_X, _W, 2)),
        ("prelu_forward", (_X, _W, -1)),
        ("prelu_forward", (_X, _W[:3], 1)),
        ("prelu_forward", (_X, _W[None], 1)),
        ("prelu_forward", (_X, _W.double(), 1)),
        ("prelu_forward", (_X.t(), _W, 0)),
        ("prelu_forward", (_X.long(), _W.long(), 1)),
        ("prelu_forward", (_X[0, 0], _W, 0)),
        ("prelu_backward", (_X[:2], _X, _W, 1)),
        ("prelu_backward", (_X.double(), _X, _W, 1)),
        ("prelu_backward", (_X.view(5, 3).t(), _X, _W, 1)),
        ("prelu_backward", (_X, _X, _W[::2], 1)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
