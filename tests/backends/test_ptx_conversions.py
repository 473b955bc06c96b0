"""The PTX machine's conversions between types, against rational numbers rounded as PTX says."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.ptx_machine.selftest import (
    BF16,
    F16,
    F32,
    F64,
    FORMATS,
    MODES,
    TF32,
    Array,
    Format,
    apply,
    compiler,
    operands,
)

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


def to_format(values: Array, form: Format, mode: str) -> list[int]:
    codes = []
    for x in values.tolist():
        sign = form.sign if math.copysign(1, x) < 0 else 0
        if math.isnan(x):
            codes.append(form.infinity + (1 << form.mantissa) - 1)
        elif math.isinf(x):
            codes.append(form.infinity | sign)
        else:
            codes.append(form.encode(Fraction(x), mode, bool(sign)))
    return codes


def near_halves(form: Format, n: int) -> Array:
    """Floats at, and a bit beside, the midpoints between neighbours of a smaller format."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, form.infinity, n)
    if form is F16:
        lower, upper = ((codes + i).astype(np.uint16).view(np.float16).astype(np.float64) for i in (0, 1))
    else:
        shift = 16 if form is BF16 else 13
        lower, upper = (
            ((codes + i) << shift).astype(np.uint32).view(np.float32).astype(np.float64) for i in (0, 1)
        )
    middle = ((lower + np.where(np.isinf(upper), lower, upper)) / 2).astype(np.float32)
    beside = [np.nextafter(middle, np.float32(side)) for side in (0, np.inf)]
    all_of_them = np.concatenate([middle, *beside])
    return np.concatenate([all_of_them, -all_of_them])


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_floats_shorten(kind: str) -> None:
    form = {"f16": F16, "bf16": BF16, "tf32": TF32}[kind]
    (x,) = operands(np.float32, 1, 1500, seed=11)
    x = np.concatenate([x, near_halves(form, 400)])
    modes = ("rn", "rz", "rna") if kind == "tf32" else MODES
    expected = {mode: to_format(x, form, mode) for mode in modes}
    for mode in modes:
        assert all(expected[mode] != expected[other] for other in modes if other != mode)
        found = apply(f"cvt.{kind}.{mode}", np.uint32 if kind == "tf32" else np.uint16, x)
        if kind == "tf32":
            assert not (found & 0x1FFF).any()
            found = found >> 13
        assert found.tolist() == expected[mode], mode  # NaN included: it is the canonical one


def test_floats_shorten_to_nearest_as_torch() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    for kind, form, dtype in (("f16", F16, torch.float16), ("bf16", BF16, torch.bfloat16)):
        x = np.concatenate([x, near_halves(form, 1 << 16)])
        expected = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16)
        found = apply(f"cvt.{kind}.rn", np.uint16, x)
        number = ~np.isnan(x)
        np.testing.assert_array_equal(found[number], expected[number])
        assert set(found[~number].tolist()) == {0x7FFF}


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_half_widens_as_torch(kind: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    expected = torch.from_numpy(codes.view(np.int16)).view(dtype).float().numpy()
    found = apply(f"cvt.{kind}", np.float32, codes)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[found == 0]))
    assert set(found[np.isnan(found)].view(np.uint32).tolist()) == {0x7FFFFFFF}


def test_packed_conversion_puts_the_first_operand_above() -> None:
    a, b = (np.array([x], np.float32) for x in (1.0, 2.0))
    assert apply("cvt.rn.f16x2", np.uint32, a, b)[0] == 0x3C004000
    assert apply("cvt.rn.bf16x2", np.uint32, a, b)[0] == 0x3F804000
    a, b = (np.array([x], np.float32) for x in (1.9999999, -1e30))
    assert apply("cvt.rn.f16x2", np.uint32, a, b)[0] == 0x4000FC00
    assert apply("cvt.rz.f16x2", np.uint32, a, b)[0] == 0x3FFFFBFF


@pytest.mark.parametrize("mode", MODES)
def test_doubles_shorten_in_one_rounding(mode: str) -> None:
    (wild,) = operands(np.float64, 1, 300, seed=8)
    (floats,) = operands(np.float32, 1, 300, seed=9)
    halves = np.concatenate([near_halves(F16, 60), near_halves(BF16, 60)])
    with np.errstate(all="ignore"):
        near = np.concatenate([floats, halves]).astype(np.float64)
        middle = near + near * 2.0**-25  # between two floats, or a hair beside a midpoint of halves
        x = np.concatenate([wild, near, middle, near * (1 + 2.0**-40), np.nextafter(near, np.inf)])
    found = apply(f"cvt.{mode}", np.float32, x).view(np.uint32)
    assert found.tolist() == to_format(x, F32, mode)
    assert apply(f"cvt.f16.{mode}", np.uint16, x).tolist() == to_format(x, F16, mode)
    assert apply(f"cvt.bf16.{mode}", np.uint16, x).tolist() == to_format(x, BF16, mode)


ROUND: dict[str, Callable[[Fraction], int]] = {
    "rn": round,
    "rz": math.trunc,
    "rm": math.floor,
    "rp": math.ceil,
}
INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64)


def whole_numbers_near(dtype: type) -> Array:
    """Halves, and the ends of every integer type with their neighbours."""
    ends = np.array([s * 2.0**k for k in (0, 7, 8, 15, 16, 31, 32, 63, 64) for s in (1, -1)], dtype)
    near = [
        ends,
        np.nextafter(ends, dtype(0)),
        np.nextafter(ends, dtype(np.inf) * ends),
        ends - dtype(0.5),
        ends - dtype(1),
    ]
    small = np.arange(-9, 9, 0.25, dtype)
    (wild,) = operands(dtype, 1, 200, seed=21)
    return np.concatenate([*near, small, wild])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_become_integers(dtype: type, mode: str) -> None:
    x = whole_numbers_near(dtype)
    for integer in INTEGERS if dtype is np.float32 else INTEGERS[-4:]:
        info = np.iinfo(integer)
        of_nan = 1 << (info.bits - 1) if dtype is np.float64 or info.bits == 64 else 0
        expected = []
        for value in x.tolist():
            if math.isnan(value):
                expected.append(of_nan if info.min == 0 or of_nan == 0 else info.min)
            elif math.isinf(value):
                expected.append(info.max if value > 0 else info.min)
            else:
                expected.append(min(max(ROUND[mode](Fraction(value)), info.min), info.max))
        assert apply(f"cvt.{mode}i", integer, x).tolist() == expected, integer
    found = apply(f"cvt.{mode}i", dtype, x)
    finite = np.isfinite(x)
    assert found[finite].tolist() == [float(ROUND[mode](Fraction(v))) for v in x[finite].tolist()]
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(x[finite]))


@pytest.mark.parametrize("mode", MODES)
def test_integers_become_floats(mode: str) -> None:
    rng = np.random.default_rng(4)
    for integer in (np.uint32, np.int32, np.uint64, np.int64):
        info = np.iinfo(integer)
        shifts = rng.integers(0, info.bits, 400).astype(integer)
        x = rng.integers(info.min, info.max, 400, dtype=integer, endpoint=True) >> shifts
        ends = [info.min, info.max, 0, 1, *(2**k + d for k in (11, 16, 24, 25, 30) for d in (-1, 0, 1))]
        ends += [2**54 + 1, 2**54 + 3, 2**62 + 2**38, 2**62 + 2**38 + 1, 2**62 - 1] if info.bits == 64 else []
        x = np.concatenate([x, np.array(ends, integer)])
        for result, form in ((np.float32, F32), (np.float64, F64)):
            found = apply(f"cvt.{mode}", result, x).view(FORMATS[result][1])
            assert found.tolist() == [form.encode(Fraction(v), mode) for v in x.tolist()], integer
        found = apply(f"cvt.f16.{mode}", np.uint16, x)
        assert found.tolist() == [F16.encode(Fraction(v), mode) for v in x.tolist()], integer
