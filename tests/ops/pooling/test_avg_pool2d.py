"""avg_pool2d and adaptive_avg_pool2d on every backend, against float64 formulas and torch.nn.functional."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import SLOW, THOROUGH, WITH_KERNELS, Backend, raw
from tests.suite.cases import DTYPES, Case, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.avg_pool2d import SMOKE, case
from tests.suite.pooling import POOL_LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_OPTIONS: list[tuple[Any, ...]] = [  # kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    (2, None, 0, False, True, None), (3, 2, 1, True, True, None), (3, 2, 1, True, False, None),
    ((3, 4), (1, 3), (1, 2), True, True, None), (3, 1, 1, False, True, 5), (2, 3, 1, True, False, -3),
    ((5, 1), (2, 2), (2, 0), False, False, None), (5, 4, 2, True, True, None),
]  # fmt: skip
_NAMES = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_SIZES = [1, 2, (3, 5), (None, 4), (1, 3), (11, 9), (20, 1)]
_SWEEP = [
    case(
        "avg_pool2d", f"{'x'.join(map(str, shape))}_{'_'.join(map(str, values))}".replace(" ", ""), shape,
        quick=i % 3 == 1 and len(shape) == 4, **dict(zip(_NAMES, values, strict=True)),
    )
    for i, values in enumerate(_OPTIONS)
    for shape in [(2, 3, 9, 12), (3, 11, 38)]
] + [
    case(
        "adaptive_avg_pool2d", f"{'x'.join(map(str, shape))}_{size}".replace(" ", ""), shape,
        quick=i < 3 and len(shape) == 4, output_size=size,
    )
    for i, size in enumerate(_SIZES)
    for shape in [(2, 3, 8, 7), (3, 11, 38)]
]  # fmt: skip
_COMPACT = [
    case("avg_pool2d", "compact", (1, 2, 5, 7), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    case("avg_pool2d", "compact_nhwc", (1, 3, 4, 5), nhwc=True, kernel_size=2, stride=1),
    case("adaptive_avg_pool2d", "compact", (1, 2, 5, 7), output_size=(2, 3)),
    case("adaptive_avg_pool2d", "compact_nhwc", (1, 3, 4, 5), nhwc=True, output_size=1),
]
_LARGE = [
    case("adaptive_avg_pool2d", f"large_{name}", shape, quick=False, output_size=1)
    for name, shape in [("square", (2, 3, 129, 131)), ("tall", (1, 2, 4001, 3)), ("wide", (1, 2, 3, 4001))]
]


@sweep(_SWEEP, [torch.float32, torch.float16])
def test_options(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(SMOKE, DTYPES, THOROUGH)
def test_every_kernel_path(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(SMOKE, [torch.bfloat16], SLOW)
def test_every_kernel_path_on_slow_backends(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_LARGE, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_long_sums(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)
    checks.check_accuracy(case, backend, dtype, layout="channels_last")


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep(
    [case("avg_pool2d", "layout", (2, 5, 6, 7), kernel_size=3, stride=2, padding=1),
     case("adaptive_avg_pool2d", "layout", (2, 5, 6, 7), output_size=(2, 3))], [torch.float32],
)  # fmt: skip
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_COMPACT, [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("shape", POOL_LAYOUTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("avg_pool2d", (3, 2, 1)), ("adaptive_avg_pool2d", ((3, 2),))],
    ids=["avg", "adaptive"],
)
def test_output_and_gradient_keep_the_memory_format(
    kernels: Backend, name: str, options: tuple, shape: str
) -> None:
    x = POOL_LAYOUTS[shape](torch.randn(2, 8, 6, 7)).to(kernels.device).requires_grad_()
    found, wanted = (getattr(m, name)(x, *options) for m in (F, torch.nn.functional))
    assert found.stride() == wanted.stride()
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(*[torch.autograd.grad(y, x, upstream)[0] for y in (found, wanted)])


def test_pitfall_28_clipped_windows_count_what_they_hold(backend: Backend) -> None:
    """In ceil mode the divisor counts the padding at the end, and nothing behind it."""
    x = torch.ones(1, 2, 26, 25, device=backend.device)
    for include in (True, False):
        for kernel, stride, padding in [(3, 2, 1), (4, 3, 2), (5, 4, 0), (2, 5, 1)]:
            options = (kernel, stride, padding, True, include)
            torch.testing.assert_close(F.avg_pool2d(x, *options), torch.nn.functional.avg_pool2d(x, *options))


def test_nan_and_infinity_stay_in_their_windows(backend: Backend) -> None:
    x = torch.zeros(1, 1, 40, 40, device=backend.device)
    x[0, 0, 3, 5], x[0, 0, 20, 21], x[0, 0, 21, 21] = torch.nan, torch.inf, -torch.inf
    for tensor in (x, x.expand(1, 20, 40, 40).contiguous(memory_format=torch.channels_last)):
        for found, wanted in [
            (F.avg_pool2d(tensor, 3, 2, 1), torch.nn.functional.avg_pool2d(tensor, 3, 2, 1)),
            (F.adaptive_avg_pool2d(tensor, 7), torch.nn.functional.adaptive_avg_pool2d(tensor, 7)),
        ]:
            torch.testing.assert_close(found, wanted, equal_nan=True)


# ---------------------------------------------------------------------------------- gradients, dispatching


@sweep(_COMPACT, [torch.float64])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


def test_nothing_is_kept_for_backward(kernels: Backend) -> None:
    x = torch.randn(2, 3, 20, 20, device=kernels.device, requires_grad=True)
    assert checks.saved_for_backward(lambda: F.avg_pool2d(x, 2), x) == 0
    assert checks.saved_for_backward(lambda: F.adaptive_avg_pool2d(x, 3), x) == 0


@sweep(_COMPACT, [torch.float32], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(_COMPACT, [torch.float32], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


def test_compile_with_dynamic_shapes() -> None:
    for name, options in [("avg_pool2d", (3, 2, 1, True)), ("adaptive_avg_pool2d", ((None, 3),))]:
        torch.compiler.reset()
        function = getattr(F, name)
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in [(4, 7, 20, 31), (2, 9, 33, 18)]:
            x = torch.randn(shape)
            assert torch.equal(compiled(x, *options), function(x, *options))


@sweep(
    [case("avg_pool2d", "threads", (3, 5, 61, 67), quick=False, kernel_size=3, stride=2, padding=1),
     case("avg_pool2d", "threads_nhwc", (2, 33, 61, 31), quick=False, nhwc=True, kernel_size=3, padding=1),
     case("adaptive_avg_pool2d", "threads", (3, 50, 31, 27), quick=False, output_size=1),
     case("adaptive_avg_pool2d", "runs", (1, 2, 5, 7), output_size=2)],
    [torch.float32], WITH_KERNELS,
)  # fmt: skip
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@sweep(_COMPACT[::2], [torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, torch.bfloat16)


@pytest.mark.parametrize("name", ["avg_pool2d", "adaptive_avg_pool2d"])
def test_torchs_own_samples(backend: Backend, name: str) -> None:
    check_torchs_samples(name, getattr(F, name), backend, torch.float64, every=9)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("avg_pool2d", (0, 3, 4, 4), (2,)),
        ("adaptive_avg_pool2d", (0, 3, 4, 4), (2,)),
        ("adaptive_avg_pool2d", (2, 0, 4, 4), (2,)),
        ("adaptive_avg_pool2d", (2, 3, 4, 4), (0,)),
        ("adaptive_avg_pool2d", (2, 3, 4, 4), ((0, 2),)),
    ],
)
def test_empty_tensors(backend: Backend, name: str, shape: tuple[int, ...], options: tuple) -> None:
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    found, wanted = (getattr(m, name)(x, *options) for m in (F, torch.nn.functional))
    assert found.shape == wanted.shape
    if backend.name == "reference":  # torch refuses such gradients
        return
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


# -------------------------------------------------------------------------------------------------- errors

_IMAGE = torch.zeros(1, 2, 30, 31)


@pytest.mark.parametrize(
    ("name", "error", "message", "arguments"),
    [
        ("avg_pool2d", TypeError, "input must be a Tensor, got list", ([1.0], 2)),
        ("avg_pool2d", ValueError, "only the batch may be empty", (torch.zeros(9, 0, 30, 31), 2)),
        ("avg_pool2d", ValueError, "padding must be at most half", (_IMAGE, 2, 2, 2)),
        ("avg_pool2d", ValueError, "kernel_size .* must fit", (_IMAGE, 32)),
        ("avg_pool2d", ValueError, "divisor_override .* got 0", (_IMAGE, 2, 2, 0, False, True, 0)),
        ("adaptive_avg_pool2d", ValueError, "input must have shape", (torch.zeros(30, 40), 2)),
        ("adaptive_avg_pool2d", ValueError, "only the batch", (torch.zeros(9, 2, 0, 31), 2)),
        ("adaptive_avg_pool2d", ValueError, r"output_size must be in \[0,.*got \[-1, -1\]", (_IMAGE, -1)),
        ("adaptive_avg_pool2d", ValueError, "output_size must be one number or two", (_IMAGE, (1, 2, 3))),
        ("adaptive_avg_pool2d", TypeError, "output_size must be an integer or two", (_IMAGE, 2.0)),
    ],
)
def test_bad_argument_is_named(name: str, error: type[Exception], message: str, arguments: tuple) -> None:
    with pyops.use_backend("cpp"), pytest.raises(error, match=f"{name}: {message}"):
        getattr(F, name)(*arguments)


_ROWS = torch.zeros(2, 6, 7)
_OUT = torch.zeros(2, 3, 3)
_WINDOWS = ([2, 2], [2, 2], [0, 0], False, True, None, False)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("avg_pool2d_forward", (_ROWS.mT, *_WINDOWS)),
        ("avg_pool2d_forward", (_ROWS.long(), *_WINDOWS)),
        ("avg_pool2d_forward", (_ROWS, [2, 2, 2], *_WINDOWS[1:])),
        ("avg_pool2d_forward", (_ROWS, *_WINDOWS[:5], 0, False)),
        ("avg_pool2d_backward", (_OUT, [6, 8], *_WINDOWS)),
        ("avg_pool2d_backward", (_OUT.mT, [6, 7], *_WINDOWS)),
        ("avg_pool2d_backward", (_OUT, [6, -7], *_WINDOWS)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1], False)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1, -1], False)),
        ("adaptive_avg_pool2d_forward", (_ROWS, [1, 1], True)),
        ("adaptive_avg_pool2d_backward", (_OUT, [0, 7], False)),
        ("adaptive_avg_pool2d_backward", (_OUT.int(), [6, 7], False)),
        ("adaptive_avg_pool2d_backward", (_OUT, [6, 2**60], False)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    moved = [a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*moved)
