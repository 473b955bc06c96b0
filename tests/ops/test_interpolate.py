"""interpolate (nearest): what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import random

import pytest
import torch

import pyops
from pyops.functional import interpolate
from tests.suite import checks
from tests.suite.backends import Backend, raw
from tests.suite.layouts import LAYOUTS, channels_last
from tests.suite.ops.interpolate import MODES, source_indices
from tests.suite.torch_samples import check_torchs_samples, op_infos

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


def _drawn_resizes(seed: int, count: int) -> list[tuple[int, dict]]:
    """Sizes, and factors for which float32 and float64 give different indices in places."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(count):
        size, ratio = rng.randint(1, 120), rng.choice([1 / 3, 1.5, 0.1, rng.uniform(0.05, 4.0)])
        factor = max(ratio, 1.0001 / size)
        if rng.random() < 0.5:
            drawn.append((size, {"size": rng.randint(1, 300)}))
        elif int(size * factor) not in (size, 2 * size):  # there torch counts the factor as 1 or 2
            drawn.append((size, {"scale_factor": factor}))
    return drawn


@pytest.mark.parametrize("mode", MODES)
def test_indices_are_torchs(backend: Backend, mode: str) -> None:
    for size, resize in _drawn_resizes(0, 300 if backend.thorough else 15):
        x = torch.arange(1, size + 1, dtype=torch.float32).view(1, 1, size)
        found = interpolate(x.to(backend.device), mode=mode, **resize).cpu()
        assert torch.equal(found, torch.nn.functional.interpolate(x, mode=mode, **resize)), (size, resize)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_adjoint_for_every_size(kernels: Backend, mode: str) -> None:
    """Each output goes to the element it was copied from, also where rounding decides which that is."""
    for size, resize in _drawn_resizes(1, 300 if kernels.thorough else 15):
        x = torch.zeros(1, 1, size, device=kernels.device, requires_grad=True)
        y = interpolate(x, mode=mode, **resize)
        upstream = torch.arange(1.0, y.numel() + 1, device=kernels.device).view_as(y)
        (found,) = torch.autograd.grad(y, x, upstream)
        factor = resize.get("scale_factor")
        source = source_indices(size, y.size(2), factor, mode == "nearest-exact")
        wanted = torch.zeros(size).index_add(0, source, upstream.cpu().view(-1))
        assert torch.equal(found.cpu().view(-1), wanted), (size, resize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_small_gradients_are_not_lost_in_16_bits(kernels: Backend, dtype: torch.dtype) -> None:
    for shape, last in [((1, 2, 1, 1), False), ((1, 2, 1, 2), True)]:
        x = torch.zeros(shape, dtype=dtype, device=kernels.device)
        x = (channels_last(x) if last else x).requires_grad_()
        upstream = torch.full((1, 2, 25, 12 * shape[3]), 3.0, dtype=dtype, device=kernels.device)
        interpolate(x, size=upstream.shape[2:]).backward(upstream)
        assert torch.equal(x.grad.cpu(), torch.full(shape, 900.0, dtype=dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_that_are_doubled(kernels: Backend, dtype: torch.dtype, mode: str) -> None:
    """Whole packs of a row twice as wide, with other factors in the other dimensions, and ragged rows."""
    if kernels.thinned:
        pytest.skip("too slow: every combination is compiled")
    for sizes, scaled in [((5, 8), (10, 16)), ((3, 16), (7, 32)), ((4, 12), (2, 24)), ((3, 5), (6, 10))]:
        for depth in ((), (2,)):
            x = torch.randn(2, 3, *depth, *sizes).to(dtype)
            leaf = x.to(kernels.device).requires_grad_()
            found = interpolate(leaf, size=(*(3 for _ in depth), *scaled), mode=mode)
            wanted = torch.nn.functional.interpolate(x, size=found.shape[2:], mode=mode)
            assert torch.equal(found.detach().cpu(), wanted)
            upstream = torch.randint(-8, 8, found.shape).to(dtype)  # whose sums are exact
            (gradient,) = torch.autograd.grad(found, leaf, upstream.to(kernels.device))
            exact = x.double().requires_grad_()
            copied = torch.nn.functional.interpolate(exact, size=found.shape[2:], mode=mode)
            (expected,) = torch.autograd.grad(copied, exact, upstream.double())
            assert torch.equal(gradient.double().cpu(), expected)


def test_values_are_copied_bit_by_bit(kernels: Backend) -> None:
    x = torch.tensor([-0.0, torch.inf, -torch.inf, 1e-45], device=kernels.device).view(1, 1, 4)
    found = interpolate(x, scale_factor=2.0)
    assert torch.equal(found.view(torch.int32), x.view(torch.int32).repeat_interleave(2, dim=2))


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", [*LAYOUTS, "contiguous"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 3, 4, 5, 3), (2, 1, 3, 4), (2, 4, 1, 1), (2, 5, 3)])
def test_memory_format_is_torchs(backend: Backend, layout: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    x = x if layout == "contiguous" else LAYOUTS[layout](x)
    wanted = torch.nn.functional.interpolate(x, scale_factor=3.0)
    x = checks.on_device({"x": x}, backend.device)["x"].requires_grad_()
    y = interpolate(x, scale_factor=3.0)
    assert y.stride() == wanted.stride()
    if layout == "contiguous" or (
        layout == "channels_last" and len(shape) > 3 and backend.name != "reference"
    ):
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert gradient.stride() == x.stride()


def test_result_may_be_changed_in_place(backend: Backend) -> None:
    for x in (torch.randn(2, 3, 4, 5), channels_last(torch.randn(2, 3, 4, 5))):
        x = x.to(backend.device).requires_grad_()
        interpolate(x, scale_factor=2.0).relu_().sum().backward()
        torch.testing.assert_close(x.grad, (x > 0) * 4.0)


# ---------------------------------------------------------------------------------- gradients, dispatching


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    images = [torch.randn(2, 3, height, 30, requires_grad=True) for height in (20, 31, 43)]
    checks.check_compiles_once(interpolate, [(x,) for x in images], scale_factor=2.0)


def test_backward_keeps_nothing(kernels: Backend) -> None:
    x = torch.randn(2, 3, 16, 50, device=kernels.device, requires_grad=True)
    assert checks.saved_for_backward(lambda: interpolate(x, scale_factor=2.0)) == 0


def test_tiny_tensors_are_torchs_own() -> None:
    for channels, left_to_torch in [(32, True), (33, False)]:  # 2048 inputs and 2112
        x = torch.randn(1, channels, 8, 8, requires_grad=True)
        assert ("Interpolate" not in interpolate(x, scale_factor=2.0).grad_fn.name()) == left_to_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    variants = ("nearest", "nearest-exact", "bilinear", "area")
    infos = [info for info in op_infos("interpolate") if info.variant_test_name in variants]
    assert len(infos) == len(variants)
    check_torchs_samples("interpolate", interpolate, backend, dtype, infos=infos)


@pytest.mark.parametrize("mode", MODES)
def test_uint8_is_torchs(backend: Backend, mode: str) -> None:
    x = torch.randint(256, (2, 3, 9, 11), dtype=torch.uint8, device=backend.device)
    found = interpolate(x, scale_factor=2.0, mode=mode)
    assert torch.equal(found, torch.nn.functional.interpolate(x, scale_factor=2.0, mode=mode))


def test_other_modes_are_torchs(backend: Backend) -> None:
    x = torch.randn(2, 3, 9, 11, device=backend.device)
    for options in (
        {"mode": "bilinear", "align_corners": True},
        {"mode": "bicubic", "antialias": True},
        {"mode": "area"},
    ):
        found = interpolate(x, size=(7, 5), **options)
        assert torch.equal(found, torch.nn.functional.interpolate(x, size=(7, 5), **options))


def test_modules_are_torchs(backend: Backend) -> None:
    x = torch.randn(2, 3, 9, 11)
    for ours, theirs in [
        (pyops.nn.Upsample(scale_factor=2), torch.nn.Upsample(scale_factor=2)),
        (pyops.nn.Upsample((7, 5), mode="nearest-exact"), torch.nn.Upsample((7, 5), mode="nearest-exact")),
        (
            pyops.nn.Upsample(scale_factor=1.5, mode="bilinear"),
            torch.nn.Upsample(scale_factor=1.5, mode="bilinear"),
        ),
        (pyops.nn.UpsamplingNearest2d(scale_factor=3), torch.nn.UpsamplingNearest2d(scale_factor=3)),
        (pyops.nn.UpsamplingNearest2d(20), torch.nn.UpsamplingNearest2d(20)),
    ]:
        torch.testing.assert_close(ours(x.to(backend.device)).cpu(), theirs(x))
        assert repr(ours) == repr(theirs)


# -------------------------------------------------------------------------------------------------- errors

_X = torch.zeros(2, 3, 40, 50)


def test_unknown_modes_and_shapes_raise_as_torchs() -> None:
    with pytest.raises(NotImplementedError):
        interpolate(_X, scale_factor=2.0, mode="nearest-ish")
    with pytest.raises(NotImplementedError):
        interpolate(_X[0, 0], size=())


_FORWARD, _BACKWARD = "interpolate_nearest_forward", "interpolate_nearest_backward"


@pytest.mark.parametrize("op", [_FORWARD, _BACKWARD])
@pytest.mark.parametrize("factor", [1e-300, 1e-38, 1e300, float("inf")])
def test_raw_op_survives_any_scale_factor(kernels: Backend, op: str, factor: float) -> None:
    x = torch.ones(2, 3, 4, 5, device=kernels.device)
    for exact in (False, True):
        found = raw(kernels, op)(x, [7, 9], [factor, factor], exact, False)
        assert found.shape == (2, 3, 7, 9)
        if op == _FORWARD:
            assert (found == 1).all()
        else:
            assert found.sum() == x.numel()
