"""batch_norm on every backend, against the float64 formula and torch.nn.functional."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import pyops
import pyops.functional as F
from pyops.ops.tools.batch_norm import mask_elements
from tests.suite import checks
from tests.suite.backends import BACKENDS, CPP, THOROUGH, WITH_KERNELS, Backend, raw
from tests.suite.cases import Case, sweep
from tests.suite.layouts import LAYOUTS, channels_last
from tests.suite.ops.batch_norm import case, check_running_statistics

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy

# Rows in which channels alternate, short runs among them, and long runs of one channel.
_SIZES = [
    case((37, 5), activation="relu"),
    case((9, 5, 3), residual=True, activation="relu"),
    case((5, 3, 7, 19), residual=True, activation="relu"),
    case((3, 5, 3, 7), last=True),
]
_OPTIONS = [
    case((7, 5), training=False),
    case((7, 5), training=False, activation="relu", residual=True, quick=False),
    case((2, 3, 5, 13), training=False, activation="relu", quick=False),
    case((2, 3, 5, 13), affine=False, running=False),
    case((2, 3, 5, 7), last=True, activation="silu", residual=True),
    case((2, 3, 5, 13), activation="gelu", quick=False),
    case((2, 3, 5, 13), activation="sigmoid", residual=True, quick=False),
    case((2, 3, 5, 13), last=True, training=False, activation="elu"),
    case((2, 3, 5, 13), eps=0.5, momentum=1.0, quick=False),
]
_SHAPES = [
    case((5, 1)),
    case((40, 1), activation="relu", residual=True, quick=False),
    case((0, 3)),
    case((0, 3, 4, 5), activation="relu", residual=True),
    case((4, 0, 5), affine=False, quick=False),
    case((1, 2, 1, 5)),
    case((1, 2, 17), quick=False),
    case((2, 3, 2, 3, 4), residual=True, activation="relu"),
]
# Several pieces of a run, chunks of rows, strips of columns.
_LARGE = [
    case((3, 5, 70, 121), activation="relu", residual=True, quick=False),
    case((2, 300, 20, 20), activation="relu", quick=False),
    case((4099, 19), activation="relu", residual=True, quick=False),
    case((11, 2500), residual=True, activation="relu", quick=False),
    case((8, 67, 30, 31), last=True, activation="relu", quick=False),
    case((700, 131, 7), residual=True, quick=False),
]


@sweep(_SIZES)
def test_accuracy_of_every_layout(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_OPTIONS, [torch.float32, torch.bfloat16])
def test_accuracy_of_every_option(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_SHAPES, [torch.float32])
def test_shapes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_LARGE, [torch.float32, torch.bfloat16], [CPP])
def test_accuracy_at_large_sizes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("shape", [(64, 5), (4, 5, 6, 13), (2, 3, 8, 601)])
@pytest.mark.parametrize("last", [False, True])
def test_a_mean_far_from_zero_does_not_cancel(backend: Backend, shape: tuple, last: bool) -> None:
    """Mean 1e4 and deviation 1e-2: float32 holds neither the mean nor the difference of squares."""
    if not backend.thorough and math.prod(shape) > 1000:
        pytest.skip("slow")
    x = (torch.randn(shape, dtype=torch.float64) * 1e-2 + 1e4).float()
    x = (channels_last(x) if last else x).to(backend.device).requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = torch.randn(shape, device=backend.device)
    running = [torch.zeros(shape[1], device=backend.device), torch.ones(shape[1], device=backend.device)]
    y = F.batch_norm(x, *running, training=True, momentum=1.0, activation="relu")
    wanted = torch.nn.functional.batch_norm(exact, None, None, training=True).relu()
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-6)
    (found,) = torch.autograd.grad(y, x, upstream)
    (gradient,) = torch.autograd.grad(wanted, exact, upstream.double())
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-3 * gradient.abs().max().item())
    others = [d for d in range(x.dim()) if d != 1]
    torch.testing.assert_close(running[1].double(), exact.detach().var(others), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(33, 5), (3, 5, 8, 9)])
def test_squares_that_overflow_float32(shape: tuple) -> None:
    x = (torch.randn(shape) + 1) * 1e30
    for moved in (x, channels_last(x)):
        with pyops.use_backend("cpp"):
            y = F.batch_norm(moved, None, None, training=True)
        wanted = torch.nn.functional.batch_norm(x.double(), None, None, training=True)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_constant_input_becomes_the_bias(backend: Backend) -> None:
    for shape in ((6, 3), (2, 3, 5, 13)):
        x = torch.full(shape, 3.7, device=backend.device)
        bias = torch.tensor([1.0, -2.0, 0.0], device=backend.device)
        y = F.batch_norm(x, None, None, bias=bias, training=True)
        torch.testing.assert_close(y, bias.view(-1, *[1] * (x.dim() - 2)).expand_as(y), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(8, 4), (2, 4, 5, 13)])
def test_nan_and_infinity_stay_in_their_channel(backend: Backend, shape: tuple) -> None:
    x = torch.randn(shape, device=backend.device)
    x[0, 0] = math.nan
    x[1, 1] = math.inf
    x.requires_grad_()
    for training in (True, False):
        running = [torch.zeros(4, device=backend.device), torch.ones(4, device=backend.device)]
        theirs = [t.clone() for t in running]
        found = F.batch_norm(x, *running, training=training, activation="relu")
        wanted = torch.nn.functional.batch_norm(x, *theirs, training=training).relu()
        torch.testing.assert_close(found, wanted, equal_nan=True)
        assert torch.equal(running[0].isfinite(), theirs[0].isfinite())
        torch.testing.assert_close(running[0][2:], theirs[0][2:])
        gradients = [torch.autograd.grad(t, x, torch.ones_like(t))[0] for t in (found, wanted)]
        torch.testing.assert_close(gradients[0][:, 2:], gradients[1][:, 2:], atol=1e-5, rtol=1e-4)
        if not training:
            torch.testing.assert_close(*gradients, equal_nan=True)


def test_what_is_stored_as_zero_passes_no_gradient(kernels: Backend) -> None:
    """2^-25 is positive, but 0 in float16: relu's gradient follows the output, as torch's does."""
    x = torch.tensor([[1.0], [-1.0], [3.0]], dtype=torch.float16, device=kernels.device)
    residual = torch.zeros_like(x).requires_grad_()
    mean, var = torch.zeros(1, device=kernels.device), torch.ones(1, device=kernels.device)
    weight = torch.full((1,), 2.0**-25, device=kernels.device)
    y = F.batch_norm(x, mean, var, weight, eps=0.0, activation="relu", residual=residual)
    assert y.flatten().tolist() == [0.0, 0.0, 2.0**-23]
    (gradient,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    assert gradient.flatten().tolist() == [0.0, 0.0, 1.0]
    plain = x.clone().requires_grad_()
    y = F.batch_norm(plain, mean, var, weight * 2**20, bias=None, eps=0.0, activation="relu")
    (gradient,) = torch.autograd.grad(y, plain, torch.ones_like(y))
    assert (gradient.flatten() != 0).tolist() == [True, False, True]


# ------------------------------------------------------------------------------------- running statistics


def test_running_statistics_are_updated_once(backend: Backend) -> None:
    check_running_statistics(backend)


def test_running_statistics_follow_strided_and_16_bit_vectors(kernels: Backend) -> None:
    x = torch.randn(6, 5, 4, device=kernels.device)
    wide = torch.zeros(2, 10, device=kernels.device)
    mean, var = wide[0, ::2], wide[1, ::2]
    theirs = [torch.zeros(5), torch.zeros(5)]
    version = wide._version
    F.batch_norm(x, mean, var, training=True)
    torch.nn.functional.batch_norm(x.cpu(), *theirs, training=True)
    torch.testing.assert_close([mean.cpu(), var.cpu()], theirs)
    assert wide[:, 1::2].eq(0).all()
    assert wide._version > version
    half = [torch.zeros(5, dtype=torch.bfloat16, device=kernels.device) for _ in range(2)]
    F.batch_norm(x.bfloat16(), *half, training=True)
    torch.testing.assert_close([t.float().cpu() for t in half], theirs, rtol=1e-2, atol=1e-3)


def test_an_empty_batch_leaves_them_alone(backend: Backend) -> None:
    mean, var = torch.ones(3, device=backend.device), torch.full((3,), 2.0, device=backend.device)
    weight = torch.ones(3, device=backend.device, requires_grad=True)
    x = torch.empty(0, 3, 4, 5, device=backend.device, requires_grad=True)
    F.batch_norm(x, mean, var, weight, training=True).sum().backward()
    assert mean.tolist() == [1.0] * 3
    assert var.tolist() == [2.0] * 3
    assert weight.grad.tolist() == [0.0] * 3


def test_autograd_knows_that_they_have_changed(kernels: Backend) -> None:
    mean, var = torch.zeros(3, device=kernels.device), torch.ones(3, device=kernels.device)
    weight = torch.ones(3, device=kernels.device, requires_grad=True)
    product = (weight * mean).sum()
    F.batch_norm(torch.randn(5, 3, 4, device=kernels.device), mean, var, training=True, activation="relu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_eval_gradient_survives_a_later_update(kernels: Backend) -> None:
    """The statistics that forward used are kept, not the buffers."""
    mean, var = torch.zeros(3, device=kernels.device), torch.ones(3, device=kernels.device)
    x = torch.randn(5, 3, 70, device=kernels.device, requires_grad=True)
    y = F.batch_norm(x, mean, var, eps=0.0, activation="relu")
    mean.fill_(7.0)
    var.fill_(9.0)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, (x > 0).to(x.dtype))


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep([case((6, 7)), case((2, 5, 3, 4), residual=True, activation="relu")], [torch.float32])
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    if layout == "expanded":
        pytest.skip("every deviation is 0")
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep([case((2, 5, 3, 4), residual=True, activation="relu")], [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradients_keep_the_memory_format(kernels: Backend, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    residual = torch.randn(2, 5, 3, 4, device=kernels.device).requires_grad_()
    y = F.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    dx, _ = torch.autograd.grad(y, (x, residual), torch.ones_like(y))
    assert y.stride() == dx.stride() == x.stride()


def test_parameters_in_float32_beside_16_bits(backend: Backend) -> None:
    x = torch.randn(5, 3, 70, device=backend.device).bfloat16().requires_grad_()
    weight = torch.rand(3, device=backend.device, requires_grad=True)
    y = F.batch_norm(x, None, None, weight, weight.detach(), training=True)
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [
    case((4, 5), activation="silu"),
    case((2, 3, 4, 5), residual=True, activation="relu"),
    case((2, 3, 4, 5), training=False, activation="relu"),
]


@sweep(
    [*_COMPACT, case((3, 2, 17), residual=True, activation="silu"), case((3, 2), training=False)],
    [torch.float64],
    [CPP, BACKENDS[-1]],
)
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 7)])
def test_opcheck_of_the_two_reductions(kernels: Backend, shape: tuple) -> None:
    x = torch.randn(shape, device=kernels.device)
    mean, rstd = torch.zeros(5, dtype=torch.float64), torch.ones(5)
    options = (None, None, None, None, mean.to(kernels.device), rstd.to(kernels.device), 1, 1, 0.0, 0.0)
    torch.library.opcheck(raw(kernels, "batch_norm_statistics"), (x, 1))
    torch.library.opcheck(raw(kernels, "batch_norm_backward_sums"), (x, x, *options))


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep([*_COMPACT, case((2, 5, 3, 7), last=True, activation="relu")], [torch.float32], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


def test_compiled_module_updates_its_statistics_once() -> None:
    torch.compiler.reset()
    ours = pyops.nn.BatchNorm2d(3, activation="relu")
    eager = copy.deepcopy(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with pyops.use_backend("cpp"):
        for _ in range(3):
            x = torch.randn(2, 3, 17, 19, requires_grad=True)
            compiled(x).sum().backward()
            eager(x).sum().backward()
    for name, buffer in eager.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=0, atol=0)
    assert ours.num_batches_tracked == 3


@sweep([*_LARGE, *_COMPACT], [torch.float32], [CPP])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@sweep(_COMPACT, [torch.float32, torch.bfloat16, torch.float64], THOROUGH)
def test_autocast_gives_torchs_dtypes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, torch.bfloat16)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_one_argument_alone(kernels: Backend, training: bool) -> None:
    for shape in ((9, 5), (3, 5, 6, 13)):
        tensors = [torch.randn(shape), torch.rand(5), torch.randn(5), torch.randn(shape)]
        running = [torch.zeros(5), torch.ones(5)]
        for wanted in range(4):
            ours = [t.clone().to(kernels.device).requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            moved = [t.clone().to(kernels.device) for t in running]
            x, w, b, r = ours
            F.batch_norm(x, *moved, w, b, training, activation="relu", residual=r).square().sum().backward()
            theirs = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            x, w, b, r = theirs
            moved = [t.clone() for t in running]
            y = torch.nn.functional.batch_norm(x, *moved, w, b, training) + r
            y.relu().square().sum().backward()
            torch.testing.assert_close(ours[wanted].grad.cpu(), theirs[wanted].grad, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ memory


def test_batch_norm_and_relu_keep_two_vectors_and_the_input() -> None:
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    weight, bias = torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)
    with pyops.use_backend("cpp"):
        for moved in (x, x.detach().to(memory_format=torch.channels_last).requires_grad_()):
            kept = checks.saved_for_backward(
                lambda m=moved: F.batch_norm(m, None, None, weight, bias, True, activation="relu"),
                *(moved, weight, bias),
            )
            assert kept == 8 * (8 + 4)  # the mean in float64, rstd in float32


def test_batch_norm_residual_and_relu_keep_one_bit_per_element() -> None:
    x, residual = (torch.randn(4, 8, 32, 32, requires_grad=True) for _ in range(2))
    with pyops.use_backend("cpp"):
        kept = checks.saved_for_backward(
            lambda: F.batch_norm(x, None, None, training=True, activation="relu", residual=residual), x
        )
    assert kept == x.numel() // 8 + 8 * (8 + 4)


def test_no_gradient_no_mask() -> None:
    x = torch.randn(4, 8, 32, 32)
    with pyops.use_backend("cpp"), checks._Recorder() as recorder:
        F.batch_norm(x, None, None, training=True, activation="relu", residual=x)
    assert recorder.calls[0][1][-1] is False


@pytest.mark.parametrize("shape", [(5, 3, 6, 11), (7, 13), (6, 5, 3)])
def test_mask_is_the_same_on_every_backend(kernels: Backend, shape: tuple) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)
    arguments = (None, None, residual, None, None, None, 1, True, 0.1, 1e-5, 1, 0.0, 0.0, True)
    output, _, _, mask = raw(kernels, "batch_norm_forward")(
        x.to(kernels.device), *(a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments)
    )
    assert torch.equal(mask_elements(mask, output.shape), output > 0)


# -------------------------------------------------------------------------------------------------- errors

_IMAGE, _C = torch.ones(2, 3, 4, 5), torch.ones(3)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "input must be a Tensor, got list", ([1.0], None, None), {}),
        (TypeError, "input must be a floating.*int64", (_IMAGE.long(), None, None), {}),
        (ValueError, r"input must have shape \(N, C, \*\), got \(3,\)", (_C, _C, _C), {}),
        (ValueError, "both be tensors or both be None", (_IMAGE, _C, None), {}),
        (ValueError, "must be given unless training", (_IMAGE, None, None), {}),
        (ValueError, r"running_mean must have shape \(3,\) .*got \(4,\)",
         (_IMAGE, torch.ones(4), torch.ones(4)), {}),
        (ValueError, r"weight must have shape \(3,\) .*got \(3, 1\)", (_IMAGE, _C, _C, _C[:, None]), {}),
        (ValueError, r"bias must have shape \(3,\)", (_IMAGE, _C, _C, _C, _C[:2]), {}),
        (TypeError, "running_mean must have dtype torch.float32, got torch.float64",
         (_IMAGE, _C.double(), _C.double()), {}),
        (TypeError, "running_var must have dtype torch.float32, got torch.float16",
         (_IMAGE, _C, _C.half()), {}),
        (TypeError, "weight must have dtype torch.bfloat16 as running_mean has, got torch.float32",
         (_IMAGE.bfloat16(), _C.bfloat16(), _C.bfloat16(), _C), {}),
        (RuntimeError, "weight must be on cpu as the input is, got meta",
         (_IMAGE, _C, _C, _C.to("meta")), {}),
        (RuntimeError, "residual must be on cpu", (_IMAGE, _C, _C), {"residual": _IMAGE.to("meta")}),
        (ValueError, r"residual must have shape \(2, 3, 4, 5\)", (_IMAGE, _C, _C), {"residual": _IMAGE[:1]}),
        (TypeError, "residual must have the input's dtype", (_IMAGE, _C, _C), {"residual": _IMAGE.double()}),
        (ValueError, "expected more than 1 value per channel .* got input of shape",
         (torch.ones(1, 3), None, None), {"training": True}),
        (ValueError, "expected more than 1 value per channel", (torch.ones(1, 3, 1, 1), _C, _C),
         {"training": True}),
        (ValueError, "eps must be positive, got 0", (_IMAGE, _C, _C), {"training": True, "eps": 0.0}),
        (ValueError, "eps must be at least 0, got -1", (_IMAGE, _C, _C), {"eps": -1.0}),
        (TypeError, "momentum must be a number, got None", (_IMAGE, _C, _C), {"momentum": None}),
        (ValueError, "activation must be None or one of", (_IMAGE, _C, _C), {"activation": "relu6"}),
        (RuntimeError, "running_mean cannot be differentiated",
         (_IMAGE, torch.ones(3, requires_grad=True), _C), {}),
    ],
)  # fmt: skip
def test_bad_argument_is_named(error: type[Exception], message: str, arguments: tuple, options: dict) -> None:
    with pyops.use_backend("cpp"), pytest.raises(error, match=f"batch_norm: .*{message}"):
        F.batch_norm(*arguments, **options)


def test_meta_tensors_give_shapes() -> None:
    x, vector = torch.empty(30, 50, 4, device="meta"), torch.empty(50, device="meta")
    assert F.batch_norm(x, vector, vector, training=True, activation="relu").shape == x.shape


_X, _V, _D = torch.zeros(3, 5, 2), torch.ones(5), torch.zeros(5).double()
_PAIR, _M = torch.zeros(2, 5).double(), torch.zeros(3, 2, dtype=torch.uint8)
_TAIL = (1, 0.0, 0.0)


def _forward(*, x=_X, w=_V, b=_V, r=None, m=_V, v=_V, s=None, dim=1, training=True, tail=_TAIL, mask=False):
    return "batch_norm_forward", (x, w, b, r, m, v, s, dim, training, 0.1, 1e-5, *tail, mask)


def _backward(*, g=_X, x=_X, w=_V, b=_V, r=None, mask=None, mean=_D, rstd=_V, means=None, dim=1, tail=_TAIL):
    return "batch_norm_backward", (g, x, w, b, r, mask, mean, rstd, means, dim, True, *tail, True, True, True)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        _forward(dim=0),
        _forward(dim=3),
        _forward(dim=-1),
        _forward(x=_X.transpose(0, 1)),
        _forward(x=_X.long()),
        _forward(w=_V[:4]),
        _forward(b=_V.double()),
        _forward(b=_V.bfloat16()),
        _forward(m=torch.ones(10)[::2]),
        _forward(r=_X[:2]),
        _forward(r=_X.double()),
        _forward(s=_PAIR.float()),
        _forward(s=_PAIR[:1]),
        _forward(m=None, v=None, training=False),
        _forward(m=None, training=False),
        _forward(tail=(12, 0.0, 0.0)),
        _forward(tail=(0, 0.0, 0.0), mask=True),
        _backward(g=_X[:2]),
        _backward(g=_X.double()),
        _backward(w=_V[:4]),
        _backward(r=_X.bfloat16()),
        _backward(mask=_M[:2]),
        _backward(mask=_M.int()),
        _backward(mask=_M, tail=(0, 0.0, 0.0)),
        _backward(mean=_V),
        _backward(rstd=_D),
        _backward(rstd=_V[:4]),
        _backward(means=_PAIR.float()),
        _backward(dim=2),
        _backward(tail=(-1, 0.0, 0.0)),
        ("batch_norm_statistics", (_X, 3)),
        ("batch_norm_statistics", (_X.int(), 1)),
        ("batch_norm_backward_sums", (_X, _X, _V, _V, None, _M[:1], _D, _V, 1, *_TAIL)),
        ("batch_norm_backward_sums", (_X[:1], _X, _V, _V, None, None, _D, _V, 1, *_TAIL)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
