"""The PTX machine's arithmetic of floats and halves, against rational numbers rounded as PTX says."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx_machine.selftest import (
    BF16,
    COUNTS,
    F16,
    FORMATS,
    MODES,
    PLAIN,
    Array,
    apply,
    check_codes,
    compiler,
    edges,
    exact,
    half_values,
    operands,
)

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


@functools.cache
def cases(name: str, dtype: type) -> tuple[list[Array], list[tuple[Fraction, bool, bool] | None], list[int]]:
    """Operands, exact results, and the codes of those results that no mode has a say in."""
    _, code = FORMATS[dtype]
    inputs = operands(dtype, COUNTS[name], 400, seed=len(name) + np.dtype(dtype).itemsize)
    with np.errstate(all="ignore"):
        # Only results of operands that are not finite are taken from here.
        plain = PLAIN[name](*(a.astype(np.float64) for a in inputs)).astype(dtype)
    results = [exact(name, values) for values in zip(*inputs, strict=True)]
    return inputs, results, plain.view(code).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(COUNTS))
def test_arithmetic_rounds_the_exact_result(name: str, dtype: type) -> None:
    form, code = FORMATS[dtype]
    inputs, results, plain = cases(name, dtype)
    expected = {
        mode: [
            form.encode(r[0], mode, (mode == "rm") if r[2] else r[1]) if r else p
            for r, p in zip(results, plain, strict=True)
        ]
        for mode in MODES
    }
    for mode in MODES:
        found = apply(f"{name}.{mode}", dtype, *inputs).view(code)
        check_codes(found, expected[mode], form, f"{name}.{mode}", *inputs)
        others = [expected[other] for other in MODES if other != mode]
        assert all(expected[mode] != other for other in others), "the data tell no modes apart"
        if dtype is np.float32:
            assert set(found[np.isnan(found.view(dtype))].tolist()) == {0x7FFFFFFF}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_square_roots_round_the_exact_result(dtype: type) -> None:
    form, code = FORMATS[dtype]
    (x,) = operands(dtype, 1, 500, seed=3)
    with np.errstate(invalid="ignore"):
        plain = np.sqrt(x).view(code).tolist()
    for mode in MODES:
        found = apply(f"sqrt.{mode}", dtype, x).view(code)
        for value, result, nearest in zip(x.tolist(), found.tolist(), plain, strict=True):
            if mode == "rn" or not (0 < value < math.inf):
                assert result == nearest or (form.is_nan(result) and form.is_nan(nearest)), (mode, value)
                continue
            root = Fraction(float(np.array(result, code).view(dtype)))
            following = Fraction(float(np.array(result + 1, code).view(dtype)))
            preceding = Fraction(float(np.array(result - 1, code).view(dtype)))
            square = Fraction(value)
            if mode == "rp":
                assert preceding**2 < square <= root**2, value
            else:
                assert root**2 <= square < following**2, (mode, value)


def test_fused_multiply_add_of_floats_keeps_what_lies_far_below() -> None:
    one, tiny = (
        np.array([1.0, 1.0, -1.0], np.float32),
        np.array([2.0**-149, -(2.0**-149), 2.0**-149], np.float32),
    )
    up, down = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1), np.float32(0))
    for mode, expected in {
        "rn": [1, 1, -1],
        "rz": [1, down, -down],
        "rm": [1, down, -1],
        "rp": [up, 1, -down],
    }.items():
        assert apply(f"fma.{mode}", np.float32, one, np.ones_like(one), tiny).tolist() == expected, mode
        assert apply(f"add.{mode}", np.float32, one, tiny).tolist() == expected, mode


def test_modifiers() -> None:
    x = np.array(
        [0.0, -0.0, 1e-40, -1e-40, 2.0**-126, -0.5, 0.5, 1.0, 1.5, np.inf, -np.inf, np.nan], np.float32
    )
    flushed = apply("ftz", np.float32, x)
    np.testing.assert_array_equal(flushed, np.where(abs(x) < 2.0**-126, 0, x))
    np.testing.assert_array_equal(np.signbit(flushed), np.signbit(x))
    expected = [0, 0, x[2], 0, 2.0**-126, 0, 0.5, 1, 1, 1, 0, 0]
    for dtype in (np.float32, np.float64):
        found = apply("sat", dtype, x.astype(dtype))
        assert found.tolist() == [float(v) for v in expected]
        assert not np.signbit(found).any()
    halves = x.astype(np.float16)
    found = apply("sat.f16", np.uint16, halves.view(np.uint16)).view(np.float16)
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1, 0, 0]
    assert not np.signbit(found).any()
    codes = np.array([0x0001, 0x8001, 0x83FF, 0x0400, 0x8400, 0x7C00, 0x7FFF, 0x3C00], np.uint16)
    assert apply("ftz.f16", np.uint16, codes).tolist() == [
        0,
        0x8000,
        0x8000,
        0x0400,
        0x8400,
        0x7C00,
        0x7FFF,
        0x3C00,
    ]
    codes = np.array([0x8000, 0xBC00, 0x3C00, 0xFC00, 0x7FFF], np.uint16)
    assert apply("relu.f16", np.uint16, codes).tolist() == [0, 0, 0x3C00, 0, 0x7FFF]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minimum_and_maximum(dtype: type) -> None:
    _, code = FORMATS[dtype]
    a, b = operands(dtype, 2, 500, seed=13)
    key_a, key_b = ([(x, math.copysign(1, x)) for x in v.tolist()] for v in (a, b))
    for name, choose in (("min", min), ("max", max)):
        for keep in (False, True):
            found = apply(f"{name}.nan" if keep else name, dtype, a, b)
            for x, y, result, bits in zip(
                key_a, key_b, found.tolist(), found.view(code).tolist(), strict=True
            ):
                nans = math.isnan(x[0]) + math.isnan(y[0])
                if nans == 2 or (keep and nans):
                    assert bits == (1 << (8 * found.itemsize - 1)) - 1
                else:
                    expected = choose(x, y) if not nans else (y if math.isnan(x[0]) else x)
                    assert (result, math.copysign(1, result)) == expected


def test_signs() -> None:
    a, b = operands(np.float32, 2, 50, seed=6)
    assert apply("abs", np.float32, a).view(np.uint32).tolist() == (a.view(np.uint32) & 0x7FFFFFFF).tolist()
    assert apply("neg", np.float32, a).view(np.uint32).tolist() == (a.view(np.uint32) ^ 0x80000000).tolist()
    expected = (
        a.view(np.uint32) & 0x80000000 | b.view(np.uint32) & 0x7FFFFFFF
    )  # the sign of the first operand
    assert apply("copysign", np.float32, a, b).view(np.uint32).tolist() == expected.tolist()


def test_comparisons() -> None:
    a, b = (v.ravel() for v in np.meshgrid(edges(np.float32), edges(np.float32)))
    nan = np.isnan(a) | np.isnan(b)
    base = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    with np.errstate(over="ignore"):
        half_a, half_b = a.astype(np.float16), b.astype(np.float16)
    half = {"eq": half_a == half_b, "ne": half_a != half_b, "lt": half_a < half_b}
    half |= {"le": half_a <= half_b, "gt": half_a > half_b, "ge": half_a >= half_b}
    for table, prefix, x, y in (
        (base, "setp.", a, b),
        (half, "setp.f16.", half_a.view(np.uint16), half_b.view(np.uint16)),
    ):
        for name, ordered in table.items():
            assert apply(prefix + name, np.uint8, x, y).tolist() == (ordered & ~nan).tolist(), name
            assert apply(prefix + name + "u", np.uint8, x, y).tolist() == (ordered | nan).tolist(), name
        assert apply(prefix + "num", np.uint8, x, y).tolist() == (~nan).tolist()
        assert apply(prefix + "nan", np.uint8, x, y).tolist() == nan.tolist()


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_arithmetic_of_halves(kind: str, name: str) -> None:
    form = F16 if kind == "f16" else BF16
    rng = np.random.default_rng(31)
    n = 1500
    words = [rng.integers(0, 1 << 32, n, dtype=np.uint32) for _ in range(COUNTS[name])]
    near_one = [(w & 0x83FF83FF if kind == "f16" else w & 0x81FF81FF) | 0x3C003C00 for w in words]
    small = [w & 0x87FF87FF for w in words]  # sums and products among subnormals
    inputs = [np.concatenate(parts) for parts in zip(words, near_one, small, strict=True)]
    found = apply(f"{name}.{kind}", np.uint32, *inputs).view(np.uint16)
    values = [half_values(kind, a.view(np.uint16)) for a in inputs]
    expected = []
    for operand in zip(*values, strict=True):
        result = exact(name, operand)
        if result:
            expected.append(form.encode(result[0], "rn", result[1] and not result[2]))
        else:
            with np.errstate(invalid="ignore"):
                special = float(PLAIN[name](*map(np.float64, operand)))
            sign = form.sign if special < 0 else 0
            expected.append(form.infinity | sign if math.isinf(special) else 0x7FFF)
    check_codes(found, expected, form, f"{name}.{kind}")
    assert {x for x in found.tolist() if form.is_nan(x)} == {0x7FFF}


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_minimum_and_maximum_of_halves(kind: str) -> None:
    rng = np.random.default_rng(32)
    a, b = (rng.integers(0, 1 << 32, 4000, dtype=np.uint32) for _ in range(2))
    a[:4], b[:4] = (
        [0x80000000, 0x00008000, 0x7FFF7FFF, 0x3C00FFFF],
        [0x00008000, 0x80000000, 0x3C00FFFF, 0x7FFF3C00],
    )
    values = [half_values(kind, v.view(np.uint16)) for v in (a, b)]
    for name, choose in (("min", min), ("max", max)):
        for keep in (False, True):
            found = apply(f"{name}.nan.{kind}" if keep else f"{name}.{kind}", np.uint32, a, b).view(np.uint16)
            for x, y, result, code in zip(*values, half_values(kind, found), found.tolist(), strict=True):
                nans = math.isnan(x) + math.isnan(y)
                if nans == 2 or (keep and nans):
                    assert code == 0x7FFF
                else:
                    keys = [(v, math.copysign(1, v)) for v in (x, y) if not math.isnan(v)]
                    assert (result, math.copysign(1, result)) == choose(keys)
