"""max_pool2d: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import TRITON, Backend, raw
from tests.suite.cases import DTYPES
from tests.suite.pooling import EXTREMES, POOL_LAYOUTS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@pytest.mark.parametrize("shape", POOL_LAYOUTS)
def test_output_and_gradient_keep_torchs_memory_format(kernels: Backend, shape: str) -> None:
    x = POOL_LAYOUTS[shape](torch.randn(2, 8, 6, 7)).to(kernels.device).requires_grad_()
    found = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    wanted = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert [t.stride() for t in found] == [t.stride() for t in wanted]
    upstream = torch.randn_like(wanted[0])
    gradients = [torch.autograd.grad(y[0], x, upstream)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", [TRITON], indirect=True, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_triton_offsets_of_64_bits(backend: Backend, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyops.triton_kernels.pooling import windows

    x = torch.randn(2, 3, 7, 9).to(backend.device)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    results = []
    for narrow in (windows.NARROW_ELEMENTS, 1):
        monkeypatch.setattr(windows, "NARROW_ELEMENTS", narrow)
        leaf = x.clone().requires_grad_()
        y, indices = F.max_pool2d(leaf, 3, 2, 1, return_indices=True)
        outputs = (y, F.avg_pool2d(leaf, 3, 2, 1), F.adaptive_avg_pool2d(leaf, (3, 4)))
        gradients = [torch.autograd.grad(out, leaf, torch.ones_like(out))[0] for out in outputs]
        results.append((indices, *outputs, *gradients))
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide)


# ------------------------------------------------------------------------------------- values and indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [2, 3])
def test_rows_of_any_width(kernels: Backend, kernel: int, dtype: torch.dtype) -> None:
    """Gradients are made in runs of 16 bytes of a row, the last of which may be cut short."""
    if kernels.thinned:
        pytest.skip("too slow: every combination is compiled")
    for width in (3, 15, 16):
        for stride, padding in ((2, 0), (2, 1), (1, 1), (3, 0)):
            x = torch.randint(-4, 5, (2, 2, 5, width)).to(dtype)  # with ties
            leaf, plain = x.to(kernels.device).requires_grad_(), x.clone().requires_grad_()
            found = F.max_pool2d(leaf, kernel, stride, padding, return_indices=True)
            wanted = torch.nn.functional.max_pool2d(plain, kernel, stride, padding, return_indices=True)
            assert torch.equal(found[0].detach().cpu(), wanted[0].detach())
            assert torch.equal(found[1].cpu(), wanted[1])
            upstream = torch.randint(-8, 8, found[0].shape).to(dtype)
            (gradient,) = torch.autograd.grad(found[0], leaf, upstream.to(kernels.device))
            (expected,) = torch.autograd.grad(wanted[0], plain, upstream)
            assert torch.equal(gradient.cpu(), expected)


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


def test_higher_derivatives_of_a_dilated_window(kernels: Backend) -> None:
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, device=kernels.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def cubed(t: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(t**3, 2, 2, 1, 2)

    assert torch.autograd.gradgradcheck(cubed, x, fast_mode=True)


def test_compile_with_dynamic_shapes_and_indices() -> None:
    torch.compiler.reset()
    compiled = torch.compile(F.max_pool2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, 7, 20, 31), (2, 9, 33, 18)]:
        x = torch.randn(shape)
        found, wanted = (f(x, 3, 2, 1, 1, True, True) for f in (compiled, F.max_pool2d))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


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
