"""max_pool2d on every backend, against a float64 formula and torch.nn.functional."""

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
from tests.suite.ops.max_pool2d import SMOKE, case
from tests.suite.pooling import EXTREMES, POOL_LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_OPTIONS: list[tuple[Any, ...]] = [  # kernel, stride, padding, dilation, ceil_mode
    (3, 2, 1, 1, False), (2, None, 0, 1, True), (3, 1, 1, 1, False), ((5, 2), (3, 2), (2, 1), 1, True),
    (3, (2, 3), 1, (2, 3), False), (2, 3, 1, 4, True), (1, 2, 0, 1, False), ((1, 7), 1, (0, 3), 1, False),
]  # fmt: skip
_NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_SWEEP = [
    case(
        f"{'x'.join(map(str, shape))}_{'_'.join(map(str, values))}".replace(" ", ""), shape,
        quick=i % 4 == 0 and len(shape) == 4, **dict(zip(_NAMES, values, strict=True)),
    )
    for i, values in enumerate(_OPTIONS)
    for shape in [(2, 3, 9, 12), (3, 11, 37)]
]  # fmt: skip
_COMPACT = [
    case("compact", (1, 2, 5, 7), kernel_size=3, stride=2, padding=1),
    case("compact_nhwc", (1, 3, 4, 5), nhwc=True, kernel_size=2, stride=1),
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


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep([case("layout", (2, 5, 6, 7), kernel_size=3, stride=2, padding=1)], [torch.float32])
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(_COMPACT, [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@pytest.mark.parametrize("shape", POOL_LAYOUTS)
def test_output_and_gradient_keep_torchs_memory_format(kernels: Backend, shape: str) -> None:
    x = POOL_LAYOUTS[shape](torch.randn(2, 8, 6, 7)).to(kernels.device).requires_grad_()
    found = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    wanted = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert [t.stride() for t in found] == [t.stride() for t in wanted]
    upstream = torch.randn_like(wanted[0])
    gradients = [torch.autograd.grad(y[0], x, upstream)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


# ------------------------------------------------------------------------------------- values and indices


@pytest.mark.parametrize("shape", [(2, 3, 9, 23), (1, 18, 5, 6), (3, 7, 8)])
@pytest.mark.parametrize("values", EXTREMES)
def test_pitfall_27_ties_nan_and_infinities(backend: Backend, values: str, shape: tuple[int, ...]) -> None:
    x = EXTREMES[values](shape).to(backend.device)
    layouts = [x] if x.dim() == 3 else [x, x.contiguous(memory_format=torch.channels_last)]
    for tensor in layouts:
        for options in [(3, 2, 1), (2, 2), ((4, 3), (1, 3), (2, 1), (1, 2), True)]:
            found = F.max_pool2d(tensor, *options, return_indices=True)
            wanted = torch.nn.functional.max_pool2d(tensor, *options, return_indices=True)
            torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_goes_to_the_indices(backend: Backend, dtype: torch.dtype) -> None:
    x = torch.randint(-3, 3, (1, 2, 7, 9)).to(backend.device, dtype).requires_grad_()
    y, indices = F.max_pool2d(x, 3, 1, 1, return_indices=True)
    assert not indices.requires_grad
    upstream = torch.randint(-4, 5, y.shape).to(y)
    (found,) = torch.autograd.grad(y, x, upstream)
    wanted = torch.zeros(1, 2, 63, dtype=dtype, device=x.device)
    wanted.scatter_add_(2, indices.flatten(2), upstream.flatten(2))
    assert torch.equal(found.flatten(2), wanted)


def test_windows_without_any_element(kernels: Backend) -> None:
    """With dilation every tap can lie outside; torch's index is then outside too, and it writes there."""
    x = torch.randn(1, 1, 9, 40, device=kernels.device, dtype=torch.float64).requires_grad_()
    options = ((2, 1), 1, (1, 0), (10, 1))
    y, indices = F.max_pool2d(x, *options, return_indices=True)
    assert torch.equal(y, torch.full_like(y, -torch.inf))
    assert torch.equal(indices, torch.nn.functional.max_pool2d(x, *options, return_indices=True)[1])
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert not gradient.any()
    upstream = torch.ones_like(y).requires_grad_()
    (gradient,) = torch.autograd.grad(F.max_pool2d(x, *options), x, upstream, create_graph=True)
    assert not torch.autograd.grad(gradient.sum(), upstream)[0].any()


@pytest.mark.parametrize("positions", [torch.uint8, torch.int32])
def test_pitfall_27_untrusted_positions_are_harmless(kernels: Backend, positions: torch.dtype) -> None:
    kernel = [3, 3] if positions is torch.uint8 else [16, 16]
    windows = (kernel, [2, 2], [1, 1], [1, 1], False)
    x = torch.randn(1, 2, 33, 34, device=kernels.device)
    y, argmax = raw(kernels, "max_pool2d_forward")(x, *windows, False)
    limits = torch.iinfo(positions)
    for value in (limits.min, limits.max):
        bad = torch.full_like(argmax, value)
        gradient = raw(kernels, "max_pool2d_backward")(y, bad, [33, 34], *windows, False)
        raw(kernels, "max_pool2d_indices")(bad, [33, 34], *windows, False)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("kernel", "size"), [((3, 3), 1), ((15, 17), 1), ((16, 16), 4)])
def test_one_byte_per_output_is_kept(kernels: Backend, kernel: tuple[int, int], size: int) -> None:
    x = torch.randn(1, 2, 24, 25, device=kernels.device, requires_grad=True)
    outputs = F.max_pool2d(x.detach(), kernel, 3).numel()
    assert checks.saved_for_backward(lambda: F.max_pool2d(x, kernel, 3), x) == outputs * size


# ---------------------------------------------------------------------------------- gradients, dispatching


@sweep(_COMPACT, [torch.float64])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


def test_higher_derivatives_of_a_dilated_window(kernels: Backend) -> None:
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, device=kernels.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def cubed(t: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(t**3, 2, 2, 1, 2)

    assert torch.autograd.gradgradcheck(cubed, x, fast_mode=True)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(_COMPACT, [torch.float32], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


def test_compile_with_dynamic_shapes_and_indices() -> None:
    torch.compiler.reset()
    compiled = torch.compile(F.max_pool2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, 7, 20, 31), (2, 9, 33, 18)]:
        x = torch.randn(shape)
        found, wanted = (f(x, 3, 2, 1, 1, True, True) for f in (compiled, F.max_pool2d))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@sweep(
    [case("threads", (3, 5, 61, 67), quick=False, kernel_size=3, stride=2, padding=1),
     case("threads_nhwc", (2, 33, 61, 31), quick=False, nhwc=True, kernel_size=3, padding=1),
     case("runs", (1, 2, 5, 7), kernel_size=2)],
    [torch.float32], WITH_KERNELS,
)  # fmt: skip
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@sweep(_COMPACT[:1], [torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, torch.bfloat16)


def test_torchs_own_samples(backend: Backend) -> None:
    check_torchs_samples("max_pool2d", F.max_pool2d, backend, torch.float64, every=9)


def test_integers_and_empty_batches(backend: Backend) -> None:
    x = torch.arange(2 * 40 * 40, device=backend.device).view(2, 40, 40)
    if backend.device == "cpu":
        assert torch.equal(F.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
    empty = torch.empty(0, 3, 4, 4, device=backend.device, requires_grad=True)
    y = F.max_pool2d(empty, 2)
    assert y.shape == (0, 3, 2, 2)
    assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape


# -------------------------------------------------------------------------------------------------- errors

_IMAGE = torch.zeros(1, 2, 30, 31)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "input must be a Tensor, got list", ([1.0], 2)),
        (ValueError, r"input must have shape .*got \(900, 2\)", (torch.zeros(900, 2), 2)),
        (ValueError, "only the batch may be empty", (torch.zeros(9, 0, 30, 31), 2)),
        (TypeError, "kernel_size must be an integer or two, got 2.0", (_IMAGE, 2.0)),
        (TypeError, "kernel_size must be an integer or two", (_IMAGE, (2, 2, 2))),
        (ValueError, r"kernel_size must be in \[1, 2147483647\], got 0", (_IMAGE, 0)),
        (ValueError, r"stride must be in \[1,", (_IMAGE, 2, 0)),
        (ValueError, r"padding must be in \[0,", (_IMAGE, 2, 2, -1)),
        (ValueError, r"padding must be at most half of kernel_size \(3, 2\)", (_IMAGE, (3, 2), 2, 2)),
        (ValueError, r"dilation must be in \[1,", (_IMAGE, 2, 2, 0, 2**62)),
        (ValueError, r"kernel_size \(3, 3\) with dilation .* must fit", (_IMAGE, 3, 1, 1, 2**30)),
        (ValueError, r"kernel_size \(33, 33\) .* must fit into the input .*\(30, 31\)", (_IMAGE, 33)),
    ],
)
def test_bad_argument_is_named(error: type[Exception], message: str, arguments: tuple) -> None:
    with pyops.use_backend("cpp"), pytest.raises(error, match=f"max_pool2d: {message}"):
        F.max_pool2d(*arguments)


_ROWS = torch.zeros(2, 6, 7)
_WINDOWS = ([2, 2], [2, 2], [0, 0], [1, 1], False, False)
_ARGMAX = torch.zeros(2, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("max_pool2d_forward", (_ROWS.mT, *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS.long(), *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS[0], *_WINDOWS)),
        ("max_pool2d_forward", (_ROWS, *_WINDOWS[:5], True)),
        ("max_pool2d_forward", (_ROWS, [2], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 0], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 2**62], *_WINDOWS[1:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [0, 1], *_WINDOWS[2:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [2, 2], [2, 0], *_WINDOWS[3:])),
        ("max_pool2d_forward", (_ROWS, [2, 2], [2, 2], [0, 0], [1, 2**31 - 1], False, False)),
        ("max_pool2d_backward", (_ROWS, _ARGMAX, [6, 7], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX, [6, 9], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX.int(), [6, 7], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float(), _ARGMAX, [6, 2**62], *_WINDOWS)),
        ("max_pool2d_backward", (_ARGMAX.float().mT, _ARGMAX, [6, 7], *_WINDOWS)),
        ("max_pool2d_indices", (_ARGMAX, [5, 7], *_WINDOWS)),
        ("max_pool2d_indices", (_ARGMAX.long(), [6, 7], *_WINDOWS)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    moved = [a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*moved)
