"""conv2d_max_pool2d: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import BACKENDS, CPP, Backend, has_kernel, raw
from tests.suite.layouts import channels_last
from tests.suite.ops.conv2d_max_pool2d import SMOKE, case, unfused
from tests.suite.pooling import EXTREMES

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "selu", "softplus", "gelu_tanh", "hardswish"])
def test_every_other_activation(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [t.requires_grad_() for t in SMOKE[1].make(generator).values()]
    found = F.conv2d_max_pool2d(*tensors, activation=activation, kernel_size=2)
    wanted = F.max_pool2d(F.conv2d(*tensors, activation=activation), 2)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    pairs = [torch.autograd.grad(y, tensors, upstream) for y in (found, wanted)]
    torch.testing.assert_close(*pairs)


# ------------------------------------------------------------------------------------------ as in torch


@pytest.mark.parametrize("shape", [(2, 3, 9, 23), (1, 18, 5, 6)])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("values", EXTREMES)
def test_ties_nan_and_infinities(
    backend: Backend, values: str, activation: str | None, shape: tuple[int, ...]
) -> None:
    """Through a convolution that changes nothing: output and gradient are exactly torch's."""
    channels = shape[1]
    w = torch.ones(channels, 1, 1, 1, device=backend.device)
    x = EXTREMES[values](shape).to(backend.device)
    for tensor in (x, channels_last(x)):
        leaf = tensor.detach().requires_grad_()
        for windows in [
            {"kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
            {"kernel_size": 2},
            {"kernel_size": (4, 3), "pool_stride": (1, 3), "pool_padding": (2, 1), "pool_dilation": (1, 2),
             "ceil_mode": True},
        ]:  # fmt: skip
            options = {"groups": channels, "activation": activation, **windows}
            found = F.conv2d_max_pool2d(leaf, w, **options)
            if activation is None:
                wanted = unfused(leaf, w, **options)
                torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
            pooled = F.max_pool2d(F.conv2d(leaf, w, groups=channels, activation=activation), **{
                k.removeprefix("pool_"): v for k, v in windows.items()
            })  # fmt: skip
            torch.testing.assert_close(found, pooled, rtol=0, atol=0, equal_nan=True)
            upstream = torch.randint(-4, 5, found.shape).to(found)
            pair = [torch.autograd.grad(y, leaf, upstream)[0] for y in (found, pooled)]
            # A slope multiplies each gradient here, and their sum there.
            exact = {} if activation == "leaky_relu" else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(*pair, **exact, equal_nan=True)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.name == "triton"], indirect=True, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("values", EXTREMES)
def test_ties_nan_and_infinities_in_a_products_tile(
    backend: Backend, values: str, activation: str | None
) -> None:
    """The same without groups, whose convolution is no matrix product there, and windows that do not meet."""
    x = EXTREMES[values]((2, 1, 9, 13)).to(backend.device).requires_grad_()
    w = torch.ones(2, 1, 1, 1, device=backend.device)
    for windows in ({"kernel_size": 2}, {"kernel_size": (2, 3), "pool_stride": 3, "pool_padding": 1}):
        options = {"activation": activation, **windows}
        found = F.conv2d_max_pool2d(x, w, **options)
        pool = {k.removeprefix("pool_"): v for k, v in windows.items()}
        wanted = F.max_pool2d(F.conv2d(x, w, activation=activation), **pool)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        upstream = torch.randint(-4, 5, found.shape).to(found)
        pair = [torch.autograd.grad(y, x, upstream)[0] for y in (found, wanted)]
        torch.testing.assert_close(*pair, equal_nan=True)


@pytest.mark.parametrize("formats", ["input", "weight", "both", "neither"])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 1, 6, 7), (2, 5, 2, 2), (1, 5, 6, 2)])
def test_output_has_the_convolutions_memory_format(formats: str, shape: tuple[int, ...]) -> None:
    last = {"memory_format": torch.channels_last}
    x, w = torch.randn(shape), torch.randn(4, shape[1], 3, 3)
    x = (x.to(**last) if formats in ("input", "both") else x).requires_grad_()
    w = (w.to(**last) if formats in ("weight", "both") else w).requires_grad_()
    with pyops.use_backend("cpp"):
        found = F.conv2d_max_pool2d(x, w, padding=1, kernel_size=2)
        wanted = unfused(x, w, padding=1, kernel_size=2)
    assert found.is_contiguous(**last) == wanted.is_contiguous(**last)
    upstream = torch.randn_like(wanted)
    pairs = [torch.autograd.grad(y, (x, w), upstream) for y in (found, wanted)]
    torch.testing.assert_close(*pairs)
    assert pairs[0][0].stride() == x.stride()


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": "valid", "stride": (2,)}])
def test_padding_by_name(backend: Backend, options: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 9, 10, device=backend.device, requires_grad=True)
    w = torch.randn(4, 3, 2, 4, device=backend.device)
    found, wanted = (f(x, w, kernel_size=2, **options) for f in (F.conv2d_max_pool2d, unfused))
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    pairs = [torch.autograd.grad(y, x, upstream) for y in (found, wanted)]
    torch.testing.assert_close(*pairs)


def test_one_image_without_a_batch(backend: Backend) -> None:
    x, w = torch.randn(3, 9, 10, device=backend.device), torch.randn(4, 3, 3, 3, device=backend.device)
    found = F.conv2d_max_pool2d(x, w, activation="relu", kernel_size=3, pool_stride=2)
    torch.testing.assert_close(found, unfused(x, w, activation="relu", kernel_size=3, pool_stride=2))


def test_empty_batch(backend: Backend) -> None:
    x = torch.randn(0, 4, 5, 6, device=backend.device, requires_grad=True)
    w = torch.randn(6, 4, 3, 3, device=backend.device, requires_grad=True)
    b = torch.randn(6, device=backend.device, requires_grad=True)
    y = F.conv2d_max_pool2d(x, w, b, padding=1, activation="relu", kernel_size=2)
    assert y.shape == (0, 6, 2, 3)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), torch.ones_like(y))
    assert dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(db, torch.zeros_like(b))


@pytest.mark.parametrize("channels", [1, 20])
def test_windows_without_any_element(kernels: Backend, channels: int) -> None:
    """With dilation every tap can lie outside: -inf, and no gradient."""
    if not has_kernel(kernels, "conv2d_max_pool2d_forward"):
        pytest.skip("no kernel")
    x = torch.randn(1, channels, 9, 5, device=kernels.device).requires_grad_()
    w = torch.ones(channels, 1, 1, 1, device=kernels.device).requires_grad_()
    b = torch.zeros(channels, device=kernels.device).requires_grad_()
    windows = {"kernel_size": (2, 1), "pool_stride": 1, "pool_padding": (1, 0), "pool_dilation": (10, 1)}
    for image in (x, channels_last(x)):
        y = F.conv2d_max_pool2d(image, w, b, groups=channels, **windows)
        assert torch.equal(y, torch.full_like(y, -torch.inf))
        for gradient in torch.autograd.grad(y, (x, w, b), torch.ones_like(y)):
            assert not gradient.any()


# ------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    ("activation", "bytes_per_output"), [(None, 1), ("relu", 1), ("tanh", 5), ("silu", 5)]
)
def test_what_is_kept_for_backward(activation: str | None, bytes_per_output: int) -> None:
    if not has_kernel(CPP, "conv2d_max_pool2d_forward"):
        pytest.skip("no kernel")
    x, w = torch.randn(2, 3, 18, 19), torch.randn(4, 3, 3, 3)
    options = {"activation": activation, "kernel_size": 2}
    y = F.conv2d_max_pool2d(x, w, **options)
    assert y.grad_fn is None
    x.requires_grad_()
    kept = checks.saved_for_backward(lambda: F.conv2d_max_pool2d(x, w, **options), x, w)
    assert kept == y.numel() * bytes_per_output
    largest = checks.largest_allocation(lambda: F.conv2d_max_pool2d(x, w, **options))
    assert largest == y.numel()  # never the convolution's output


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_only_the_gradient_that_is_asked_for(wanted: str, activation: str | None) -> None:
    tensors = SMOKE[0].make(torch.Generator().manual_seed(0))
    tensors[wanted].requires_grad_()
    y = F.conv2d_max_pool2d(**tensors, activation=activation, kernel_size=2)
    expected = F.max_pool2d(F.conv2d(**tensors, activation=activation), 2)
    pairs = [torch.autograd.grad(t.sum(), tensors[wanted]) for t in (y, expected)]
    torch.testing.assert_close(*pairs)


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("channels", [2, 20])
def test_untrusted_positions_are_harmless(kernels: Backend, channels: int) -> None:
    if not has_kernel(kernels, "conv2d_max_pool2d_backward"):
        pytest.skip("no kernel")
    pool = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    for y in (torch.ones(1, channels, 5, 6), channels_last(torch.ones(1, channels, 5, 6))):
        for position in (4, 254, 255):
            argmax = torch.full_like(y, position, dtype=torch.uint8).to(kernels.device)
            grad_conv, grad_bias = raw(kernels, "conv2d_max_pool2d_backward")(
                y.to(kernels.device), argmax, None, [10, 12], *(0, 0.0, 0.0, True), *pool, True
            )
            assert not grad_conv.any()
            assert grad_bias.isfinite().all()


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.name == "triton"], ids=str, indirect=True)
def test_the_bias_gradient_in_triton_is_added_up_from_several_parts(
    backend: Backend, nhwc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five blocks of pixels two parts, one of three and one of two, as large batches have."""
    from pyops.triton_kernels.conv2d import parts, pool_gradient

    counts = []

    class Noting(parts.Sums):
        def __init__(self, total: torch.Tensor | None, parts: int) -> None:
            counts.append(parts)
            super().__init__(total, parts)

    monkeypatch.setattr(parts, "_STEPS_PER_PART", 2)
    monkeypatch.setattr(pool_gradient, "Sums", Noting)
    pixels = (32, 16)  # a block of them for each image, whatever the layout
    shape = (5, 2, *pixels)
    several = case("parts", shape, 3, 1, 2, bias=True, nhwc=nhwc, activation="silu")
    checks.check_accuracy(several, backend, torch.float32)
    assert counts == [2]
