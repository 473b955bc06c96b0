"""avg_pool2d and adaptive_avg_pool2d: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import WITH_KERNELS, Backend
from tests.suite.cases import Case, sweep
from tests.suite.ops.avg_pool2d import case
from tests.suite.pooling import POOL_LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_LARGE = [
    case("adaptive_avg_pool2d", f"large_{name}", shape, quick=False, output_size=1)
    for name, shape in [("square", (2, 3, 129, 131)), ("tall", (1, 2, 4001, 3)), ("wide", (1, 2, 3, 4001))]
]


@sweep(_LARGE, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_long_sums(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)
    checks.check_accuracy(case, backend, dtype, layout="channels_last")


# Planes by the vector and what is left; of less than a vector, of whole ones, and of a few more elements.
_PLANES = [
    case("adaptive_avg_pool2d", f"planes_{n}_{h}_{w}", (1, n, h, w), quick=False, output_size=1)
    for n, h, w in [(37, 7, 7), (3, 1, 1), (16, 4, 4), (33, 5, 13), (19, 3, 5)]
]


@sweep(_PLANES, [torch.float32, torch.float64, torch.bfloat16, torch.float16], WITH_KERNELS)
def test_many_planes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


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


def test_nothing_is_kept_for_backward(kernels: Backend) -> None:
    x = torch.randn(2, 3, 20, 20, device=kernels.device, requires_grad=True)
    assert checks.saved_for_backward(lambda: F.avg_pool2d(x, 2), x) == 0
    assert checks.saved_for_backward(lambda: F.adaptive_avg_pool2d(x, 3), x) == 0


def test_compile_with_dynamic_shapes() -> None:
    for name, options in [("avg_pool2d", (3, 2, 1, True)), ("adaptive_avg_pool2d", ((None, 3),))]:
        torch.compiler.reset()
        function = getattr(F, name)
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in [(4, 7, 20, 31), (2, 9, 33, 18)]:
            x = torch.randn(shape)
            assert torch.equal(compiled(x, *options), function(x, *options))


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
    if found.numel() == 0 and shape[0] and shape[1]:  # as torch
        with pytest.raises(RuntimeError, match="Expected grad_output to have non-zero size"):
            torch.autograd.grad(found.sum(), x)
    elif backend.name != "reference":  # whose gradients torch refuses as well
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert torch.equal(gradient, torch.zeros_like(x))
