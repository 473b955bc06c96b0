"""The PTX machine's approximate instructions: rounded exactly, with the special cases of the PTX manual."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.ptx_machine.selftest import PLAIN, Array, apply, compiler, half_values, operands

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


APPROXIMATIONS: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", list(APPROXIMATIONS))
def test_approximations_are_exactly_rounded(name: str) -> None:
    wild, mild = operands(np.float32, 1, 4000, seed=41)[0], np.linspace(-150, 150, 30011).astype(np.float32)
    x = np.concatenate([wild, mild, mild / 100])
    with np.errstate(all="ignore"):
        expected = APPROXIMATIONS[name](x.astype(np.float64)).astype(np.float32)
    found = apply(name, np.float32, x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    number = ~np.isnan(expected)
    # Two host functions of double may round a few of these numbers apart, by one place.
    steps = abs(found[number].view(np.int32).astype(np.int64) - expected[number].view(np.int32))
    assert steps.max() <= 1
    assert (steps != 0).mean() < 1e-4


INF, NAN = math.inf, math.nan
SPECIAL_CASES: dict[str, list[tuple[float, float]]] = {
    "ex2": [
        (-INF, 0.0),
        (-0.0, 1.0),
        (0.0, 1.0),
        (INF, INF),
        (-126, 2.0**-126),
        (-149, 2.0**-149),
        (128, INF),
    ],
    "lg2": [(-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, -INF), (INF, INF), (2.0**-149, -149.0)],
    "rcp": [(-INF, -0.0), (-0.0, -INF), (0.0, INF), (INF, 0.0)],
    "sqrt": [(-INF, NAN), (-1.0, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, INF)],
    "rsqrt": [(-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, INF), (INF, 0.0)],
    "sin": [(-INF, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, NAN)],
    "cos": [(-INF, NAN), (-0.0, 1.0), (0.0, 1.0), (INF, NAN)],
    "tanh": [(-INF, -1.0), (-0.0, -0.0), (0.0, 0.0), (INF, 1.0), (2.0**-149, 2.0**-149)],
}


@pytest.mark.parametrize("name", list(SPECIAL_CASES))
def test_special_cases_of_approximations(name: str) -> None:
    x, expected = (np.array(v, np.float32) for v in zip(*SPECIAL_CASES[name], (NAN, NAN), strict=True))
    found = apply(name, np.float32, x)
    np.testing.assert_array_equal(found, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(expected[number]))
    if name == "rsqrt":
        np.testing.assert_array_equal(apply(name, np.float64, x.astype(np.float64)), expected)


def test_approximate_division() -> None:
    big, least = 2.0**127, 2.0**-149
    cases = [
        (6.0, 3.0, 2.0), (1.0, 2.0**126, 2.0**-126), (big, big, 0.0), (-1.0, big, -0.0), (1.0, -big, -0.0),
        (np.inf, big, np.nan), (1.0, np.inf, 0.0), (1.0, 0.0, np.inf), (0.0, 0.0, np.nan), (INF, 2.0, INF),
        (least, least, np.inf), (0.0, least, np.nan), (np.nan, big, np.nan), (1.0, 2.0**-127, 2.0**127),
    ]  # fmt: skip
    a, b, expected = (np.array(v, np.float32) for v in zip(*cases, strict=True))
    found = apply("div.approx", np.float32, a, b)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found)[expected == 0], np.signbit(expected)[expected == 0])
    a, b = operands(np.float32, 2, 2000, seed=43)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(apply("div.full", np.float32, a, b), a / b)


@pytest.mark.parametrize(
    ("name", "function"), [("rcp.ftz", PLAIN["rcp"]), ("rsqrt.ftz", APPROXIMATIONS["rsqrt"])]
)
def test_approximations_of_a_double_s_upper_word(name: str, function: Callable[[Array], Array]) -> None:
    rng = np.random.default_rng(44)
    x = np.concatenate(
        [rng.standard_normal(2000) * 10.0 ** rng.integers(-300, 300, 2000), [1.0, 3.0, 2.0**1022]]
    )
    word = (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    found = apply(name, np.float64, x)
    assert not (found.view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
    with np.errstate(invalid="ignore"):
        expected = function(word)
    number = ~np.isnan(expected)
    assert (abs(found[number] / expected[number] - 1) <= 2.0**-21).all()
    low_bits = (x.view(np.uint64) | np.uint64(0xFFFFFFFF)).view(np.float64)
    np.testing.assert_array_equal(apply(name, np.float64, low_bits), found)
    special = np.array([-np.inf, -1e-310, -0.0, 0.0, 1e-310, np.inf], np.float64)
    of_infinity = [-0.0, 0.0] if name == "rcp.ftz" else [np.nan, 0.0]
    expected = np.array([of_infinity[0], -np.inf, -np.inf, np.inf, np.inf, of_infinity[1]])
    found = apply(name, np.float64, special)
    np.testing.assert_array_equal(found, expected)
    assert np.signbit(found[0]) == (name == "rcp.ftz")
    assert apply(name, np.float64, np.array([np.nan])).view(np.uint64)[0] == 0x7FFFFFFF00000000
    if name == "rcp.ftz":  # the reciprocal would be subnormal
        assert apply(name, np.float64, np.array([2.0**1023]))[0] == 0


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_approximations_of_every_half(kind: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    values = np.array(half_values(kind, codes))
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    for name, function in (("tanh", np.tanh), ("ex2", np.exp2)):
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(function(values)).float().to(dtype).double().numpy()
        found = np.array(half_values(kind, apply(f"{name}.{kind}", np.uint16, codes)))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        differs = (found != expected) & ~np.isnan(found)
        assert differs.mean() < 1e-4  # torch rounds twice
