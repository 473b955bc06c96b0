"""The CPU's algorithms for convolutions: each is right wherever it can be forced, and which one is chosen."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import pyops.functional
from pyops import _library
from pyops.ops.conv2d import Algorithms, algorithm_names, algorithms
from tests.suite import checks
from tests.suite.backends import CPP, Backend
from tests.suite.cases import Case, sweep
from tests.suite.ops.conv2d import case
from tests.suite.processes import run_python

pytestmark = [
    pytest.mark.usefixtures("nan_filled_memory"),
    pytest.mark.skipif("cpp" not in _library.loaded, reason="the C++ kernels for the CPU are not built"),
]

_NAMES = ["depthwise", "small_image", "amx", "image_lanes", "winograd_4x4", "bf16_dot", "winograd", "direct"]
# Of bfloat16 only, on CPUs that have it; tiles have a twin in software.
_FEATURES = {"amx": "amx_twin", "bf16_dot": "avx512_bf16"}
_FORCED = os.environ.get("PYOPS_CONV2D")
_DTYPES = [torch.float32, torch.bfloat16]


def _chosen(
    input: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype = torch.float32, **geometry: Any
) -> Algorithms:
    return algorithms(torch.empty(input, dtype=dtype), torch.empty(weight, dtype=dtype), **geometry)


# -------------------------------------------------------------------------------------------- forced by name

# Problems that every algorithm but depthwise can solve in all three directions, whether it suits them or not.
_CASES_OF_ALL = [
    case("all_wide", (1, 16, 9, 19), 48, 3, padding=1, activation="relu"),
    case("all_large_kernel", (2, 16, 13, 11), 32, (3, 5), padding=(0, 2), residual=True),
    case("all_grouped", (3, 32, 5, 6), 64, 3, padding=1, groups=2, activation="relu"),
    case("all_one_image_of_few_pixels", (1, 32, 2, 3), 16, 3, padding=1),
]
# Those of the direct algorithm and one or two others; depthwise is for its own problems only.
_CASES_OF_SOME = [
    case("some_in_lanes", (37, 3, 11, 7), 7, (5, 3), padding=(2, 3), activation="relu"),
    case("some_in_lanes_smaller_than_the_kernel", (17, 2, 3, 2), 3, 5, padding=4),
    case("some_in_lanes_dilated", (19, 2, 9, 13), 5, 3, dilation=(2, 3), padding=(5, 1), residual=True),
    case("some_strided_winograd", (2, 64, 19, 22), 80, 3, stride=2, padding=1, activation="relu"),
    case("some_strided_large", (1, 32, 13, 15), 48, (5, 7), stride=2, padding=(2, 1), groups=2),
    case("some_strided", (2, 34, 9, 15), 48, 3, stride=2, padding=1, activation="relu"),
    case("some_dilated", (1, 18, 13, 12), 32, 3, dilation=2, stride=(2, 1), padding=3),
    case("some_one_by_one", (2, 40, 7, 11), 48, 1, activation="relu"),
    case("some_one_by_one_strided", (2, 40, 9, 11), 48, 1, stride=(2, 3), activation="relu"),
    case("some_one_by_one_odd", (2, 351, 3, 5), 48, 1, residual=True),
    case("some_one_by_one_grouped", (2, 64, 5, 7), 64, 1, groups=2, activation="relu"),
    case("some_to_few", (3, 18, 7, 19), 3, 3, padding=1),
    case("some_depthwise", (2, 21, 9, 35), 21, 3, padding=1, groups=21, activation="relu"),
    case("some_depthwise_strided", (3, 37, 11, 8), 37, 3, stride=2, padding=1, groups=37),
    case("some_depthwise_large", (2, 17, 7, 9), 17, (5, 7), padding=(2, 3), groups=17, residual=True),
    case("some_depthwise_dilated", (1, 33, 9, 13), 33, 3, dilation=(1, 3), stride=(3, 1), groups=33),
    case("some_depthwise_rows", (2, 16, 67, 131), 16, 3, padding=1, groups=16, activation="relu"),
    case("some_depthwise_wide", (2, 150, 7, 7), 150, 3, padding=1, groups=150, activation="relu"),
    case("some_depthwise_plane", (3, 70, 14, 14), 70, 3, padding=1, groups=70, residual=True),
    case("some_depthwise_column", (5, 33, 19, 1), 33, 3, padding=1, groups=33),
    case("some_depthwise_square", (2, 20, 9, 14), 20, 5, padding=2, groups=20, activation="relu"),
    case("some_depthwise_point", (2, 19, 5, 6), 19, 1, stride=2, groups=19),
]


@sweep([*_CASES_OF_ALL, *_CASES_OF_SOME], _DTYPES, [CPP])
@pytest.mark.parametrize("layout", [None, "channels_last"])
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype, layout: str | None) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", _DTYPES)
def test_panels_of_one_tile_go_to_several_threads(dtype: torch.dtype, stride: int) -> None:
    """One image has few tiles: its output channels, five panels of them here, are shared out as well."""
    one = case("one_image", (1, 48, 7, 5), 144, 3, padding=1, stride=stride, activation="relu")
    checks.check_determinism(one, CPP, dtype, (1, 2, 3, 7))
    torch.set_num_threads(3)
    checks.check_accuracy(one, CPP, dtype)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("side", [18, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [None, "channels_last"])
def test_tiles_of_16_outputs_for_any_number_of_threads(
    dtype: torch.dtype, layout: str | None, side: int
) -> None:
    """Two blocks of channels; several tiles in an image that they hang over, or several images in a tile."""
    squares = case("squares", (17, 67, side, side + 1), 80, 3, padding=1, activation="relu")
    found = _chosen((17, 67, side, side + 1), (80, 67, 3, 3), dtype, padding=1)
    assert _FORCED is not None or found in {("winograd_4x4",) * 3, ("amx",) * 3}
    checks.check_determinism(squares, CPP, dtype, (1, 2, 3))
    checks.check_accuracy(squares, CPP, dtype, layout=layout)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", _DTYPES)
def test_depthwise_planes_for_any_number_of_threads(dtype: torch.dtype) -> None:
    """Fewer channels than a task has, so that a channel's images are in several chunks, and more."""
    for channels in (9, 43):
        planes = case("planes", (11, channels, 7, 5), channels, 3, padding=1, groups=channels)
        checks.check_determinism(planes, CPP, dtype, (1, 2, 3, 7))


def test_depthwise_weight_gradients_of_infinite_inputs() -> None:
    """A plane's last vector reaches behind it: what its taps read there must not be multiplied by zero."""
    x, weight = torch.ones(1, 16, 5, 5), torch.ones(16, 1, 3, 3, requires_grad=True)
    x[:, :, 4, 4] = torch.inf
    y = pyops.functional.conv2d(x, weight, padding=1, groups=16)
    (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    inside = torch.tensor([4.0, 5.0, 4.0])  # rows or columns of outputs that read inside of the image
    expected = torch.outer(inside, inside)
    expected[1:, 1:] = torch.inf
    assert torch.equal(gradient, expected.expand(16, 1, 3, 3))


@pytest.mark.parametrize(("side", "padding"), [((9, 5), 1), ((7, 7), 0), ((1, 1), 1)])
def test_depthwise_planes_are_pooled_with_padding(side: tuple[int, int], padding: int) -> None:
    """Rows of pooled outputs were taken from the wrong channels: planes of sums had gaps between them."""
    x, weight = torch.randn(3, 20, *side, dtype=torch.float64), torch.randn(20, 1, 3, 3, dtype=torch.float64)
    sums = torch.nn.functional.conv2d(x, weight, padding=1, groups=20).relu()
    expected = torch.nn.functional.max_pool2d(sums, 3, 2, padding)
    found = pyops.functional.conv2d_max_pool2d(
        x.float(), weight.float(), padding=1, groups=20, activation="relu",
        kernel_size=3, pool_stride=2, pool_padding=padding,
    )  # fmt: skip
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("layout", [None, "channels_last"])
def test_images_in_lanes_for_any_number_of_threads(dtype: torch.dtype, layout: str | None) -> None:
    """Vectors of images go to threads, the last of them with a few images only."""
    many = case("many_images", (131, 2, 7, 5), 3, (5, 3), padding=(4, 1), activation="relu")
    checks.check_determinism(many, CPP, dtype, (1, 2, 3, 7))
    checks.check_accuracy(many, CPP, dtype, layout=layout)


@pytest.mark.skipif(_FORCED is None, reason="for runs with PYOPS_CONV2D")
@sweep(_CASES_OF_ALL, _DTYPES, [CPP])
def test_forced_algorithm_serves(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    geometry = {k: v for k, v in case.options.items() if k != "activation"}
    found = algorithms(tensors["input"], tensors["weight"], **geometry)
    feature = _FEATURES.get(str(_FORCED))
    lacks_feature = feature and not (dtype is torch.bfloat16 and feature in _library.cpu_features())
    if _FORCED == "winograd_4x4":
        fits = tensors["weight"].shape[2:] == (3, 3) and geometry.get("groups", 1) == 1
        serves = dtype is torch.bfloat16 and fits
        assert [name == _FORCED for name in found] == [serves] * 3
        return
    lacks_lanes = _FORCED == "image_lanes" and geometry.get("groups", 1) > 1
    if lacks_feature or lacks_lanes or _FORCED == "depthwise":
        assert _FORCED not in found
    else:
        assert set(found) == {_FORCED}


@pytest.mark.parametrize("name", _NAMES)
def test_forced_algorithm_is_accurate(name: str) -> None:
    """The tests of accuracy again, in a process of its own."""
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_accuracy or serves")
    environment = {"PYOPS_CONV2D": name}
    if name in _FEATURES:
        environment["PYOPS_CPU_FEATURES"] = _FEATURES[name]
    done = run_python(*arguments, environment=environment)
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


def test_unknown_algorithm_raises() -> None:
    program = "import torch, pyops; pyops.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1))"
    done = run_python("-c", program, environment={"PYOPS_CONV2D": "fft", "PYOPS_BACKEND": "cpp"}, check=False)
    assert done.returncode != 0
    assert f"PYOPS_CONV2D must name one of {', '.join(_NAMES)}, got fft" in done.stderr


# -------------------------------------------------------------------------------------------- chosen by shape


def test_names_in_order() -> None:
    assert algorithm_names() == dict.fromkeys(Algorithms._fields, _NAMES)


@pytest.mark.skipif(_FORCED is not None, reason="PYOPS_CONV2D is set")
@pytest.mark.parametrize(
    ("input", "weight", "geometry", "expected"),
    [
        ((2, 1, 16, 16), (4, 1, 3, 3), {}, "direct"),
        ((16, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}, "direct"),
        ((16, 3, 224, 224), (96, 3, 11, 11), {"stride": 4, "padding": 1}, "direct"),
        ((8, 64, 112, 112), (64, 64, 3, 3), {"padding": 1}, "winograd"),
        ((32, 96, 54, 54), (96, 96, 1, 1), {}, "direct"),
        ((32, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}, "winograd"),
        ((8, 96, 27, 27), (256, 96, 5, 5), {"padding": 2}, "winograd"),
        ((64, 512, 2, 2), (512, 512, 3, 3), {"padding": 1}, "small_image"),
        ((4, 512, 4, 4), (512, 512, 3, 3), {"padding": 1}, "small_image"),
        ((8, 256, 5, 5), (256, 256, 3, 3), {"padding": 1}, "small_image"),
        ((4, 512, 2, 2), (2048, 512, 1, 1), {}, "small_image"),
        ((4, 384, 3, 3), (384, 384, 1, 3), {"padding": (0, 1)}, "small_image"),
        ((4, 192, 5, 5), (192, 192, 7, 1), {"padding": (3, 0)}, "small_image"),
        ((4, 48, 8, 8), (64, 48, 5, 5), {"padding": 2}, "small_image"),
        ((32, 512, 8, 8), (512, 512, 3, 3), {"padding": 1}, "winograd"),
        ((4, 1024, 8, 8), (256, 1024, 1, 1), {}, "direct"),
        ((4, 32, 28, 28), (32, 1, 3, 3), {"padding": 1, "groups": 32}, "depthwise"),
        ((4, 32, 28, 28), (64, 1, 3, 3), {"padding": 1, "groups": 32}, "direct"),
        ((4, 3, 28, 28), (3, 1, 3, 3), {"padding": 1, "groups": 3}, "direct"),
    ],
)
def test_choice(input: Any, weight: Any, geometry: dict[str, Any], expected: str) -> None:
    assert _chosen(input, weight, **geometry) == (expected,) * 3


_CHOICES_OF_TILES = """
import torch
from pyops.ops.conv2d import algorithms
for input, weight, geometry in {cases}:
    print(*algorithms(torch.empty(input).bfloat16(), torch.empty(weight).bfloat16(), **geometry))
"""


def test_choice_of_tiles() -> None:
    """Tiles serve the shapes of networks, not those with which they would be mostly padding."""
    cases = {
        ((32, 128, 28, 28), (128, 128, 3, 3)): ({"padding": 1}, "amx amx amx"),
        ((16, 3, 224, 224), (64, 3, 7, 7)): ({"stride": 2, "padding": 3}, "amx amx amx"),
        ((256, 1, 28, 28), (6, 1, 5, 5)): ({"padding": 2}, "amx image_lanes amx"),
        ((4, 32, 28, 28), (32, 1, 3, 3)): ({"padding": 1, "groups": 32}, "depthwise depthwise depthwise"),
        ((64, 512, 2, 2), (512, 512, 3, 3)): ({"padding": 1}, "small_image small_image small_image"),
    }
    program = _CHOICES_OF_TILES.format(cases=[(*shapes, geometry) for shapes, (geometry, _) in cases.items()])
    done = run_python("-c", program, environment={"PYOPS_CPU_FEATURES": "amx_twin", "PYOPS_CONV2D": ""})
    assert done.stdout.splitlines() == [expected for _, expected in cases.values()]


@pytest.mark.skipif(_FORCED is not None, reason="PYOPS_CONV2D is set")
def test_choice_by_dtype() -> None:
    shapes = ((32, 128, 28, 28), (128, 128, 3, 3))
    by_pairs = "bf16_dot" if "avx512_bf16" in _library.cpu_features() else "winograd"
    assert _chosen(*shapes, torch.bfloat16, padding=1) == ("winograd_4x4",) * 3
    assert _chosen(*shapes, torch.float16, padding=1) == ("winograd_4x4",) * 3
    # The transformed weights, of which each tile needs all, would not stay in the cache.
    late = _chosen((32, 512, 7, 7), (512, 512, 3, 3), torch.bfloat16, padding=1)
    assert late == (by_pairs,) * 3
    assert _chosen(*shapes, torch.float64, padding=1) == ("direct",) * 3


@pytest.mark.skipif(_FORCED is not None, reason="PYOPS_CONV2D is set")
def test_directions_choose_for_themselves() -> None:
    """The outputs are images of few pixels, the input's gradient is one of more."""
    expected = ("winograd", "direct", "direct")
    assert _chosen((8, 64, 28, 28), (64, 64, 3, 3), stride=2, padding=1) == expected
    expected = ("direct", "direct", "small_image")
    assert _chosen((8, 64, 14, 14), (64, 64, 3, 3), stride=2, padding=1) == expected  # 7 x 7
    # Weights that nothing else has to be read for are read as they lie.
    assert _chosen((4, 512, 4, 4), (2048, 512, 1, 1)) == expected
    found = _chosen((16, 32, 5, 5), (64, 32, 3, 3))
    assert found == ("small_image", "winograd", "small_image")


@pytest.mark.skipif(_FORCED is not None, reason="PYOPS_CONV2D is set")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="depends on the vectors")
def test_choice_of_lanes() -> None:
    """Columns and channels that do not fill vectors, and taps that read around the image, ask for lanes."""
    assert _chosen((256, 1, 28, 28), (6, 1, 5, 5), padding=2) == ("image_lanes",) * 3
    assert _chosen((256, 6, 14, 14), (16, 6, 5, 5)) == ("direct", "image_lanes", "direct")
    assert _chosen((256, 16, 7, 7), (16, 16, 3, 3), padding=1) == ("winograd",) * 3
