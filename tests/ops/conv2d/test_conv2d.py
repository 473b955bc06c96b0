"""conv2d: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pyops.functional as F
import pyops.nn
from pyops.layouts import is_channels_last
from tests.suite import checks
from tests.suite.backends import CUDA_SOURCES, TRITON, Backend, has_kernel
from tests.suite.cases import Case, sweep
from tests.suite.ops.conv2d import SMOKE, TINY, case, torch_conv2d

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


@sweep([TINY[2], TINY[-1]], [torch.float32], [TRITON])
def test_triton_offsets_of_64_bits(
    backend: Backend, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyops.triton_kernels.conv2d import geometry

    monkeypatch.setattr(geometry, "NARROW_ELEMENTS", 1)
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("choice", [1, 2])
@sweep(TINY[:1], [torch.float32, torch.bfloat16], [TRITON])
def test_triton_accuracy_of_every_tile(
    backend: Backend, case: Case, dtype: torch.dtype, choice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyops.triton_kernels.conv2d import correlate, weight

    def take(key: Any, candidates: list[Any], run: Any, device: torch.device) -> None:
        run(candidates[min(choice, len(candidates) - 1)])

    monkeypatch.setattr(correlate, "run_fastest", take)
    monkeypatch.setattr(weight, "run_fastest", take)
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("backend", [TRITON], indirect=True, ids=str)
def test_triton_16_bit_images_in_nchw_order_are_transposed_once(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products then are those of channels_last images, and so are their bits."""
    from pyops.triton_kernels.conv2d import transpose

    transposed: list[torch.Tensor] = []
    launch = transpose.launch

    def note(kernel: Any, programs: int, device: torch.device, source: torch.Tensor, *rest: Any, **meta: Any):
        transposed.append(source)
        launch(kernel, programs, device, source, *rest, **meta)

    monkeypatch.setattr(transpose, "launch", note)
    x, w = torch.randn(2, 34, 5, 7).bfloat16(), torch.randn(38, 17, 3, 3).bfloat16()
    results = []
    for form, copies in ((torch.contiguous_format, 3), (torch.channels_last, 0)):  # input, gradient, input
        leaves = [t.to(backend.device).to(memory_format=form).requires_grad_() for t in (x, w)]
        y = F.conv2d(*leaves, padding=1, groups=2, activation="relu")
        upstream = torch.ones_like(y).to(memory_format=form)
        results.append((y, *torch.autograd.grad(y, leaves, upstream)))
        assert len([t for t in transposed if t.shape[0] == len(x)]) == copies
        transposed.clear()
    for nchw, last in zip(*results, strict=True):
        assert torch.equal(nchw, last)


@pytest.mark.parametrize("formats", ["input", "weight", "both", "neither"])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 1, 6, 7), (2, 5, 1, 1), (1, 5, 6, 1)])
def test_output_has_torchs_memory_format(formats: str, shape: tuple[int, ...]) -> None:
    last = {"memory_format": torch.channels_last}
    x, w = torch.randn(shape), torch.randn(4, shape[1], 3, 3)
    x = x.to(**last) if formats in ("input", "both") else x
    w = w.to(**last) if formats in ("weight", "both") else w
    x.requires_grad_(), w.requires_grad_()
    with pyops.use_backend("cpp"):
        found, wanted = F.conv2d(x, w, padding=1, activation="relu"), torch.conv2d(x, w, padding=1)
    assert found.stride() == wanted.stride()
    dx, dw = torch.autograd.grad(found, (x, w), torch.ones_like(found))
    assert (dx.stride(), is_channels_last(dw)) == (x.stride(), is_channels_last(w))


@pytest.mark.parametrize("groups", [1, 2])
def test_empty_batch(backend: Backend, groups: int) -> None:
    x = torch.randn(0, 4, 5, 6, device=backend.device, requires_grad=True)
    w = torch.randn(6, 4 // groups, 3, 3, device=backend.device, requires_grad=True)
    b = torch.randn(6, device=backend.device, requires_grad=True)
    y = F.conv2d(x, w, b, padding=1, groups=groups, activation="relu")
    assert y.shape == (0, 6, 5, 6)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), torch.ones_like(y))
    assert dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(db, torch.zeros_like(b))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride"), [(3, 2, 1), (3, 33, 1), (17, 32, 1), (64, 64, 2)]
)
def test_nan_and_infinity_stay_in_their_window(
    value: float, in_channels: int, out_channels: int, stride: int
) -> None:
    x = torch.randn(1, in_channels, 20, 40)
    x[0, 1, 10, 17] = value
    w = torch.randn(out_channels, in_channels, 3, 3)
    y = F.conv2d(x, w, stride=stride, padding=1, activation="relu")
    expected = torch.relu(torch.conv2d(x.double(), w.double(), stride=stride, padding=1))
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_in_gradients_stay_where_torch_has_them(value: float, dtype: torch.dtype) -> None:
    """Winograd's transforms would spread them over whole squares, and over all taps of a weight."""
    x = torch.randn(2, 33, 20, 40, dtype=dtype, requires_grad=True)
    w = torch.randn(32, 33, 3, 3, dtype=dtype, requires_grad=True)
    grad = torch.randn(2, 32, 20, 40, dtype=dtype)
    grad[0, 3, 0, 0] = value
    found = torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), grad)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = torch.autograd.grad(torch.conv2d(*wide, padding=1), wide, grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_large_common_offset_costs_no_accuracy(dtype: torch.dtype, stride: int) -> None:
    """Winograd's transforms take differences of neighbours; what they cancel must not matter."""
    x, w = (torch.randn(2, 64, 26, 26) + 1e3).to(dtype), torch.randn(64, 64, 3, 3)
    if dtype is torch.float16:
        w -= w.mean((1, 2, 3), keepdim=True)  # the sums would be infinite
    w = w.to(dtype)
    expected = torch.conv2d(x.double(), w.double(), stride=stride)
    error = (F.conv2d(x, w, stride=stride) - expected).norm()
    assert error <= 2 * (torch.conv2d(x, w, stride=stride) - expected).norm()


# -------------------------------------------------------------------------------------- options as in torch


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": (2, 1)},
        {"padding": "valid", "stride": 2},
        {"stride": (2,), "padding": (1,)},
    ],
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_padding_by_name_and_short_tuples(
    backend: Backend, options: dict[str, Any], kernel: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, 9, 10, device=backend.device, requires_grad=True)
    w = torch.randn(4, 3, *kernel, device=backend.device)
    found, wanted = F.conv2d(x, w, **options), torch.conv2d(x, w, **options)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, upstream), torch.autograd.grad(wanted, x, upstream)
    )


def test_one_image_without_a_batch(backend: Backend) -> None:
    x, w = torch.randn(3, 9, 10, device=backend.device), torch.randn(4, 3, 3, 3, device=backend.device)
    residual = torch.randn(4, 7, 8, device=backend.device)
    found = F.conv2d(x, w, activation="relu", residual=residual)
    torch.testing.assert_close(found, torch.relu(torch.conv2d(x, w) + residual))


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_only_the_gradient_that_is_asked_for(wanted: str, activation: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = SMOKE[4].make(generator)
    tensors[wanted].requires_grad_()
    with pyops.use_backend("cpp"):
        y = F.conv2d(**tensors, activation=activation)
    (found,) = torch.autograd.grad(y.sum(), tensors[wanted])
    y = F.conv2d(**tensors)
    expected = y if activation is None else getattr(torch.nn.functional, activation)(y)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), tensors[wanted])[0])


def test_without_a_gradient_nothing_is_kept() -> None:
    x, w = torch.randn(2, 3, 8, 9), torch.randn(4, 3, 3, 3)
    assert F.conv2d(x, w, activation="silu").grad_fn is None
    x.requires_grad_()
    # The output, which ReLU's gradient is formed from, and nothing else.
    kept = checks.saved_for_backward(lambda: F.conv2d(x, w, activation="relu"), x, w)
    assert kept == 2 * 4 * 6 * 7 * 4


# ---------------------------------------------------------------------------------- gradients, dispatching


@pytest.fixture
def tf32() -> Iterator[None]:
    """torch's default on a GPU: convolutions of float32 may round their factors to TF32."""
    # Not by the older name, allow_tf32: torch's test samples, once imported, forbid to set that.
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32"
    yield
    convolutions.fp32_precision = before


@sweep(
    [  # without an activation, whose derivative a rounded sign would change
        case("tf32_packs", (2, 16, 17, 13), 72, (2, 3), padding=1),
        case("tf32_strided", (2, 3, 23, 29), 17, (5, 4), stride=(3, 2), padding=2),
        case("tf32_odd", (1, 37, 9, 8), 11, 2),
    ],
    [torch.float32],
    CUDA_SOURCES,
)
def test_tf32_rounds_the_factors_and_nothing_else(
    backend: Backend, case: Case, dtype: torch.dtype, tf32: None
) -> None:
    """Within a few times TF32's 2^-11 of the largest value, and not what float32 would give."""
    tensors = checks.on_device(case.tensors(dtype), backend.device)
    wanted = checks.run(torch_conv2d, case, {k: t.double() for k, t in case.tensors(dtype).items()})
    for name, value in checks.run(F.conv2d, case, tensors).items():
        error = (value.double().cpu() - wanted[name]).abs().max() / wanted[name].abs().max()
        assert error < 2**-9, name
        if name in ("output 0", "gradient of input", "gradient of weight"):
            assert error > 2**-17, f"{name} is float32's"


@pytest.mark.usefixtures("tf32")
def test_tf32_follows_torchs_setting_as_it_changes() -> None:
    assert torch.ops.pyops.conv2d_allows_tf32()
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert not torch.ops.pyops.conv2d_allows_tf32()


@pytest.mark.large
def test_offsets_beyond_2_to_the_31() -> None:
    x = torch.zeros(2, 2**10, 1024, 1025, dtype=torch.bfloat16)
    x[1, -1, -1, -1] = 3.0
    w = torch.zeros(1, 2**10, 1, 1, dtype=torch.bfloat16)
    w[0, -1] = 2.0
    y = F.conv2d(x, w)
    assert y[1, 0, -1, -1].item() == 6.0
    assert y.sum().item() == 6.0


def test_a_backend_without_a_kernel_uses_the_reference(backend: Backend) -> None:
    x = torch.randn(1, 2, 4, 4, device=backend.device)
    ops = pyops.backends.resolve(x, "conv2d_forward")
    assert (ops is not None) == (backend.name != "reference" and has_kernel(backend, "conv2d_forward"))


# -------------------------------------------------------------------------------------------------- module


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_module_is_torchs(backend: Backend, mode: str) -> None:
    ours = pyops.nn.Conv2d(4, 6, 3, padding=(1, 2), groups=2, padding_mode=mode, activation="relu")
    theirs = torch.nn.Conv2d(4, 6, 3, padding=(1, 2), groups=2, padding_mode=mode)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)[:-1] + ", activation='relu')"
    ours, theirs = ours.to(backend.device), theirs.to(backend.device)
    x = torch.randn(2, 4, 9, 11, device=backend.device)
    residual = torch.randn_like(theirs(x))
    torch.testing.assert_close(ours(x), torch.relu(theirs(x)))
    torch.testing.assert_close(ours(x, residual=residual), torch.relu(theirs(x) + residual))


def test_module_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="Conv2d: activation must be None or one of 'relu'"):
        pyops.nn.Conv2d(1, 2, 3, activation="rellu")


# -------------------------------------------------------------------------------------------------- errors


def test_weight_gradient_does_not_see_what_buffers_held_before():
    """A NaN behind the last channels, left by another convolution, made Winograd's sums look infinite."""
    x, weight = torch.randn(4, 40, 19, 31), torch.randn(45, 40, 3, 3)

    def gradient(scale: float) -> torch.Tensor:
        w = weight.clone().requires_grad_()
        return torch.autograd.grad(F.conv2d(x * scale, w, padding=1).sum(), w)[0]

    before = gradient(1.0)
    gradient(math.nan)
    assert torch.equal(gradient(1.0), before)
