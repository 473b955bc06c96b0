"""conv2d in bfloat16 by pairs (VDPBF16PS), by tiles (AMX, in software) and, on CPUs with neither, as ever."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
import pyops.functional as F
from pyops import _library
from tests.suite import checks
from tests.suite.backends import CPP, Backend
from tests.suite.cases import Case, sweep
from tests.suite.ops.conv2d import SMOKE, case
from tests.suite.processes import run_python

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Odd numbers of channels and of columns, whose last pair is a single; images of one pixel, where neighbouring
# channels are neighbours in memory whatever the format; several blocks of pairs; images that share a tile;
# pixels whose pairs of channels are read where they lie; phases; groups of an even number of channels and of
# an odd one.
_CASES = [
    *(
        case(f"pairs_{c}_to_{k}_{h}x{w}", (2, c, h, w), k, 3, padding=1, activation="relu")
        for c, k, h, w in ((1, 33, 5, 7), (2, 16, 4, 33), (3, 32, 9, 1), (33, 17, 1, 1), (37, 48, 6, 13))
    ),
    case("pairs_in_blocks", (1, 301, 5, 6), 35, 3, padding=2, residual=True, activation="silu"),
    case("pairs_beside_the_image", (1, 17, 1, 1), 18, 5, padding=4, activation="relu"),
    case("pairs_to_few", (3, 41, 5, 19), 3, (2, 3), activation="relu"),
    case("pairs_one_by_one", (5, 67, 3, 5), 40, 1, activation="relu"),
    case("pairs_padded_one_by_one", (2, 35, 5, 7), 33, 1, stride=(1, 2), padding=1, activation="relu"),
    case("pairs_in_phases", (2, 35, 9, 15), 33, 3, stride=2, padding=1, activation="relu"),
    case("pairs_in_groups", (2, 36, 7, 9), 34, 3, padding=1, groups=2, activation="relu"),
    # Runs of 16 pixels that cross the ends of rows or keep within them, loads from the tensor itself, few
    # channels whose taps share tiles, and images of which several share a tile.
    case("runs_of_rows", (1, 32, 3, 48), 32, 3, padding=1, activation="relu"),
    case("runs_in_place", (2, 64, 5, 7), 33, 1, activation="relu"),
    case("few_channels_in_phases", (2, 3, 19, 23), 20, 7, stride=2, padding=3, activation="relu"),
    case("few_channels_dilated", (1, 5, 12, 11), 17, (2, 3), dilation=(3, 2), stride=(1, 3)),
    case("images_share_tiles", (9, 64, 4, 4), 48, 3, padding=1, activation="relu"),
    # So many tiles of pixels that sums of the weight gradient are added to, of whole tiles and of others.
    case("tiles_in_chunks", (34, 49, 20, 20), 16, 3, padding=1),
    case("pairs_in_odd_groups", (2, 34, 7, 9), 34, 3, padding=1, groups=2, activation="relu"),
]


@pytest.mark.parametrize("layout", _FORMATS)
@sweep(_CASES, [torch.bfloat16], [CPP])
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=None if layout == "contiguous" else layout)


@pytest.mark.parametrize("layout", _FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 2), (17, 33), (34, 32)])
def test_nan_and_infinity_stay_where_torch_has_them(
    layout: str, value: float, in_channels: int, out_channels: int
) -> None:
    """In the last channel of the input, and in a column of the gradient that has no partner."""
    x = torch.randn(2, in_channels, 6, 9)
    w = torch.randn(out_channels, in_channels, 3, 3)
    x[0, -1, 2, 8] = value
    x, w = (t.to(torch.bfloat16, memory_format=_FORMATS[layout]).requires_grad_() for t in (x, w))
    with pyops.use_backend("cpp"):
        y = F.conv2d(x, w, padding=1, activation="relu")
    upstream = torch.randn_like(y)
    upstream[1, 0, 3, 8] = value
    found = torch.autograd.grad(y, (x, w), upstream)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = torch.conv2d(*wide, padding=1).relu()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    for ours, theirs in zip(found, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("layout", _FORMATS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_pass_where_the_output_is_nan(layout: str, sign: float) -> None:
    """As torch's do, whatever the sign of the NaN."""
    x, w = torch.randn(2, 16, 5, 6), torch.randn(32, 16, 1, 1)
    upstream, saved = torch.randn(2, 32, 5, 6), torch.zeros(2, 32, 5, 6)
    saved[0, 3, 2, 4] = math.copysign(math.nan, sign)
    tensors = [t.to(torch.bfloat16, memory_format=_FORMATS[layout]) for t in (upstream, x, w, saved)]
    geometry = ([1, 1], [0, 0], [1, 1], 1, 1, 0.0, 0.0)
    grads = torch.ops.pyops.conv2d_backward(*tensors, *geometry, True, True, True, True, False)
    expected = torch.zeros(32, dtype=torch.bfloat16)
    expected[3] = tensors[0][0, 3, 2, 4]
    assert torch.equal(grads[2], expected)
    assert [t.count_nonzero().item() for t in grads[:2]] == [16, 16]


@sweep([SMOKE[0], SMOKE[2], SMOKE[8]], [torch.bfloat16], [CPP])
@pytest.mark.parametrize("layout", _FORMATS)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count(
    backend: Backend, case: Case, dtype: torch.dtype, layout: str
) -> None:
    def bits(threads: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(threads)
        form = _FORMATS[layout]
        tensors = {k: t.to(memory_format=form) if t.dim() == 4 else t for k, t in case.tensors(dtype).items()}
        return checks.run(F.conv2d, case, tensors)

    with pyops.use_backend("cpp"):
        one, more = bits(1), bits(3)
    assert all(torch.equal(one[name], more[name]) for name in one)


# The instruction takes subnormal numbers for zeros, and nothing else here does.
_SEES_SUBNORMALS = """
import torch, pyops
x = torch.full((2, 32, 20, 20), 1e-39).bfloat16()
w = torch.full((32, 32, 1, 1), 1e4).bfloat16()
with pyops.use_backend("cpp"):
    print(bool(pyops.functional.conv2d(x, w).any()))
"""


def test_the_instruction_can_be_left_out() -> None:
    if "avx512_bf16" not in _library.cpu_features():
        pytest.skip("this CPU has no VDPBF16PS")
    for features, sees in (("avx512_bf16", "False"), ("none", "True")):
        done = run_python("-c", _SEES_SUBNORMALS, environment={"PYOPS_CPU_FEATURES": features})
        assert done.stdout.strip() == sees


@pytest.mark.parametrize("features", ["none", "amx_twin"])
def test_accuracy_on_other_cpus(features: str) -> None:
    """The quickest part of this file again, on the ways that other CPUs go."""
    chosen = "test_accuracy[ or nan_and" + (" or same_bits" if features == "amx_twin" else "")
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen)
    environment = {"PYOPS_CPU_FEATURES": features}
    if features == "amx_twin":
        environment["PYOPS_CONV2D"] = "amx"
    done = run_python(*arguments, environment=environment)
    assert "passed" in done.stdout
    assert "failed" not in done.stdout
