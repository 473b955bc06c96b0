"""conv2d_max_pool2d on every backend, against a float64 formula and torch's convolution and pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import BACKENDS, CPP, Backend, has_kernel, raw
from tests.suite.cases import DTYPES, Case, name_of, pairwise, sweep
from tests.suite.layouts import LAYOUTS, channels_last
from tests.suite.ops.conv2d_max_pool2d import SMOKE, case, unfused
from tests.suite.pooling import EXTREMES

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_FULL = [b for b in BACKENDS if b.thorough or b.name == "emulated"]
_OTHERS = [b for b in BACKENDS if b not in _FULL]


# ------------------------------------------------------------------------------------------------ accuracy

_OPTIONS = pairwise(
    kernel=[(3, 3), (1, 1), (5, 2)],
    stride=[(1, 1), (2, 1), (1, 4)],
    padding=[(0, 0), (1, 2)],
    dilation=[(1, 1), (2, 2)],
    groups=[1, 2, 6],
    channels=[(6, 6), (18, 54), (54, 12)],
    bias=[True, False],
    activation=[None, "relu", "elu", "silu"],
    nhwc=[False, True],
    pool=[(2, 2), (3, 3), (1, 4)],
    pool_stride=[None, (2, 2), (1, 3), (4, 1)],
    pool_padding=[(0, 0), (0, 1)],
    pool_dilation=[(1, 1), (2, 1), (1, 3)],
    ceil_mode=[False, True],
)


def _from_options(options: dict[str, Any]) -> Case:
    options = dict(options)
    name = "options_" + name_of(options)
    channels, kernel, pool = options.pop("channels"), options.pop("kernel"), options.pop("pool")
    options["pool_padding"] = tuple(
        min(p, k // 2) for p, k in zip(options["pool_padding"], pool, strict=True)
    )
    return case(name, (2, channels[0], 13, 41), channels[1], kernel, pool, quick=False, **options)


# Sizes around those of vectors and tiles; one window, windows that are all padding but for a pixel.
_SIZES = [
    *(case(f"out_{k}", (2, 5, 7, 17), k, 3, 2, padding=1, quick=False) for k in (1, 7, 13, 16, 33, 67)),
    *(case(f"width_{w}", (2, 3, 5, w), 11, 3, 2, padding=1, quick=False) for w in (2, 13, 15, 29, 67)),
    case("one_window", (3, 5, 6, 6), 4, 3, 4),
    case("one_pixel", (3, 5, 3, 3), 4, 3, 2, pool_padding=1, quick=False),
    case("wide_row", (1, 3, 3, 2053), 5, (2, 3), (1, 3), pool_stride=2, quick=False),
    case("high", (1, 3, 1031, 3), 5, 3, (5, 1), padding=1, pool_stride=(3, 1), quick=False),
    case("large_window", (1, 2, 31, 29), 17, 3, (15, 17), pool_stride=7, pool_padding=7, quick=False),
    case("too_large_a_window", (1, 2, 31, 29), 3, 3, (16, 16), pool_stride=5, quick=False),
    case("lenet", (3, 1, 28, 28), 6, 5, 2, padding=2, activation="sigmoid", quick=False),
    case("alexnet_stem", (1, 3, 63, 63), 96, 11, 3, stride=4, padding=1, pool_stride=2, activation="relu",
         quick=False),
    case("vgg", (1, 64, 20, 36), 64, 3, 2, padding=1, activation="relu", quick=False),
]  # fmt: skip


@sweep([*map(_from_options, _OPTIONS), *_SIZES], [torch.float32, torch.bfloat16], [CPP])
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(SMOKE, DTYPES, [CPP])
def test_accuracy_in_every_dtype(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep([s for s in SMOKE if s.quick], [torch.float32], _OTHERS)
def test_accuracy_on_slow_backends(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


# Not "expanded", whose equal pixels are ties before rounding and none behind it.
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@sweep([SMOKE[0], SMOKE[4]], [torch.float32], _FULL)
def test_strided_tensors(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep(SMOKE[:4], [torch.float32], _FULL)
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


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


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [
    case("compact", (2, 4, 5, 6), 6, 3, 2, padding=1, stride=(1, 2), groups=2, activation="relu"),
    case("compact_saved", (1, 3, 4, 5), 5, 2, 2, pool_stride=1, activation="gelu"),
    case("compact_nhwc", (2, 3, 4, 5), 2, (1, 3), (2, 1), nhwc=True, dilation=(1, 2), activation="tanh"),
]


@sweep(
    [case(f"gradcheck_{a}", (1, 2, 5, 6), 3, (2, 3), 2, pool_stride=1, padding=1, activation=a)
     for a in (None, "silu", "sigmoid")],
    [torch.float64],
    _FULL,
)  # fmt: skip
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], [CPP])
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep(_COMPACT, [torch.float32], _FULL)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


@sweep(_COMPACT[:1], [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(
    [case("threads_many", (5, 40, 19, 31), 45, 3, 3, padding=1, pool_stride=2, activation="relu"),
     case("threads_few", (9, 3, 40, 41), 5, 3, 2, padding=1, activation="silu"),
     case("threads_nhwc", (4, 24, 20, 21), 24, 3, 2, nhwc=True, padding=1, activation="relu")],
    [torch.float32, torch.bfloat16],
    [CPP],
)  # fmt: skip
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype, (1, 2, 3))


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(_COMPACT[:2], [torch.float32, torch.bfloat16], _FULL)
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


# -------------------------------------------------------------------------------------------------- errors

_X, _W = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "input must be a floating.*torch.int64", {"input": _X.long()}),
        (ValueError, r"input must have shape \(N, C, H, W\).*got \(2, 4\)", {"input": _X[:, :, 0, 0]}),
        (ValueError, "groups must be at least 1, got 0", {"groups": 0}),
        (ValueError, r"bias must have shape \(6,\)", {"bias": torch.zeros(4)}),
        (ValueError, "activation must be None or one of", {"activation": "swish2"}),
        (TypeError, "kernel_size must be an integer or two, got None", {"kernel_size": None}),
        (ValueError, r"pool_stride must be in \[1, .*, got 0", {"pool_stride": 0}),
        (ValueError, r"pool_padding must be at most half of kernel_size \(2, 2\)", {"pool_padding": 2}),
        (ValueError, r"pool_dilation must be in \[1, .*, got 0", {"pool_dilation": 0}),
        (ValueError, r"kernel_size \(4, 4\) .* fit into the convolution's output .*\(3, 4\)",
         {"kernel_size": 4}),
    ],
)  # fmt: skip
def test_bad_argument_is_named(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    arguments = {"input": _X, "weight": _W, "kernel_size": 2, **options}
    with pytest.raises(error, match=f"conv2d_max_pool2d: .*{message}"):
        F.conv2d_max_pool2d(**arguments)


def test_meta_tensors_give_shapes() -> None:
    y = F.conv2d_max_pool2d(_X.to("meta"), _W.to("meta"), padding=1, kernel_size=2, ceil_mode=True)
    assert y.shape == (2, 6, 3, 3)


_CONV = ([1, 1], [0, 0], [1, 1], 1)
_POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
_IDENTITY, _TANH = (0, 0.0, 0.0), (4, 0.0, 0.0)
_PLAIN = (*_CONV, *_IDENTITY, *_POOL, True, False)
_Y, _ARGMAX = torch.zeros(2, 6, 1, 2), torch.zeros(2, 6, 1, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("forward", (_X[0], _W, None, *_PLAIN)),
        ("forward", (_X, _W.double(), None, *_PLAIN)),
        ("forward", (_X[..., ::2], _W, None, *_PLAIN)),
        ("forward", (_X, _W, torch.zeros(5), *_PLAIN)),
        ("forward", (_X, _W, None, *_CONV, 99, 0.0, 0.0, *_POOL, True, False)),
        ("forward", (_X, _W, None, *_CONV, *_IDENTITY, [2], *_POOL[1:], True, False)),
        ("forward", (_X, _W, None, *_CONV, *_IDENTITY, [4, 2], *_POOL[1:], True, False)),
        ("forward", (_X, _W, None, *_CONV, *_IDENTITY, [2, 2], [0, 1], *_POOL[2:], True, False)),
        ("forward", (_X, _W, None, *_CONV, *_IDENTITY, [2, 2], [2, 2], [2, 0], [1, 1], False, True, False)),
        ("backward", (_Y, _ARGMAX[:1], None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX.int(), None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y.long(), _ARGMAX, None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [3, 9], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [3], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [3, 2**62], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [3, 4], *_TANH, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, _Y[..., :1], [3, 4], *_TANH, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, _Y.double(), [3, 4], *_TANH, True, *_POOL, True)),
        ("backward", (channels_last(_Y), _ARGMAX, None, [3, 4], *_IDENTITY, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [3, 4], 99, 0.0, 0.0, True, *_POOL, True)),
        ("backward", (_Y, _ARGMAX, None, [300, 400], *_IDENTITY, True, [300, 200], *_POOL[1:], True)),
    ],
)  # fmt: skip
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    op = f"conv2d_max_pool2d_{op}"
    if not has_kernel(kernels, op):
        pytest.skip("no kernel")
    moved = [a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*moved)


@pytest.mark.parametrize("channels", [2, 20])
def test_untrusted_positions_are_harmless(kernels: Backend, channels: int) -> None:
    if not has_kernel(kernels, "conv2d_max_pool2d_backward"):
        pytest.skip("no kernel")
    for y in (torch.ones(1, channels, 5, 6), channels_last(torch.ones(1, channels, 5, 6))):
        for position in (4, 254, 255):
            argmax = torch.full_like(y, position, dtype=torch.uint8).to(kernels.device)
            grad_conv, grad_bias = raw(kernels, "conv2d_max_pool2d_backward")(
                y.to(kernels.device), argmax, None, [10, 12], *_IDENTITY, True, *_POOL, True
            )
            assert not grad_conv.any()
            assert grad_bias.isfinite().all()
