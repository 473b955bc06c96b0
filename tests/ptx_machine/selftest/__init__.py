"""The PTX machine's arithmetic as functions of arrays, and exact models of number formats to check it by."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.ptx_machine import machine
from tests.suite import native
from tests.suite.processes import one_at_a_time

compiler = native.compiler
MODES = ("rn", "rz", "rm", "rp")
Array = np.ndarray[Any, Any]


@functools.cache
def library() -> ctypes.CDLL:
    """The functions under test, built with the machine's flags."""
    folder = machine.MACHINE_DIR / "numbers"
    with one_at_a_time(machine.CACHE_DIR / "lock"):
        built = native.compile_library(
            machine.CACHE_DIR,
            "numbers_selftest",
            [Path(__file__).with_name("numbers.cpp"), *sorted(folder.glob("*.cpp"))],
            headers=[*folder.glob("*.h")],
            flags=machine.flags(),
        )
    loaded = ctypes.CDLL(str(built))
    loaded.selftest_bfi32.restype = loaded.selftest_lop3.restype = ctypes.c_uint32
    loaded.selftest_bfi64.restype = ctypes.c_uint64
    return loaded


NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
    **{np.dtype(f"{k}{n}"): f"{p}{8 * n}" for k, p in (("u", "u"), ("i", "s")) for n in (1, 2, 4, 8)},
}


def apply(name: str, result: type, *operands: Array) -> Array:
    """Call an entry of numbers.cpp, whose name ends in the types of the result and of the first operand."""
    arrays = [np.ascontiguousarray(a) for a in operands]
    out = np.empty(arrays[0].shape, result)
    assert all(a.shape == out.shape for a in arrays)
    full = f"{name}.{NAMES[out.dtype]}.{NAMES[arrays[0].dtype]}"
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    missing = library().selftest_apply(
        full.encode(), pointers, ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size)
    )
    assert missing == 0, full
    return out


class Format:
    """A binary floating-point format, and how a rational number is rounded to one of its codes."""

    def __init__(self, mantissa: int, exponent: int) -> None:
        self.mantissa, self.exponent = mantissa, exponent
        self.least_exponent = 2 - (1 << (exponent - 1))
        self.infinity = ((1 << exponent) - 1) << mantissa
        self.sign = 1 << (mantissa + exponent)

    def encode(self, x: Fraction, mode: str, negative_zero: bool = False) -> int:
        """The code of x; an x of zero gets the sign that the caller names."""
        negative = x < 0 or (x == 0 and negative_zero)
        size = abs(x)
        sign = self.sign if negative else 0
        if size == 0:
            return sign
        power = size.numerator.bit_length() - size.denominator.bit_length()
        power -= size < Fraction(2) ** power
        power = max(power, self.least_exponent)
        scaled = size / Fraction(2) ** (power - self.mantissa)
        whole = math.floor(scaled)
        rest = scaled - whole
        away = mode == ("rm" if negative else "rp")
        if mode == "rn":
            whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
        elif mode == "rna":
            whole += rest >= Fraction(1, 2)
        else:
            whole += away and rest > 0
        code = whole + ((power - self.least_exponent) << self.mantissa)
        if code >= self.infinity:
            code = self.infinity if away or mode in ("rn", "rna") else self.infinity - 1
        return code | sign

    def is_nan(self, code: int) -> bool:
        return code & (self.sign - 1) > self.infinity


F16, BF16, TF32, F32, F64 = Format(10, 5), Format(7, 8), Format(10, 8), Format(23, 8), Format(52, 11)
FORMATS: dict[Any, tuple[Format, type]] = {np.float32: (F32, np.uint32), np.float64: (F64, np.uint64)}


def edges(dtype: type) -> Array:
    """Zeros, subnormals, powers of two and their neighbours, the ends of the range, infinities, NaN."""
    info = np.finfo(dtype)
    sizes = [
        0.0,
        info.smallest_subnormal,
        info.smallest_subnormal * 3,
        info.tiny,
        info.tiny / 2,
        1.0,
        1.5,
        2.0,
        3.0,
    ]
    sizes += [
        info.max,
        info.max / 2,
        float(info.eps),
        1 / 3,
        0.5,
        2.5,
        255.5,
        32767.5,
        65519.0,
        65520.0,
        2.0**31,
        2.0**63,
    ]
    base = np.array(sizes, dtype)
    near = np.concatenate([base, np.nextafter(base, dtype(0)), np.nextafter(base[1:], dtype(1e30))])
    finite = np.unique(np.concatenate([near, np.array([np.inf], dtype)]))
    return np.concatenate([finite, -finite, np.array([np.nan, -0.0], dtype)])


def operands(dtype: type, count: int, n: int, seed: int) -> list[Array]:
    """`count` arrays: all bits random, exponents near one another, and edges against edges."""
    rng = np.random.default_rng(seed)
    bits = np.dtype(dtype).itemsize * 8
    wild = [rng.integers(0, 1 << bits, n, dtype=FORMATS[dtype][1]).view(dtype) for _ in range(count)]
    mild = [(rng.standard_normal(n) * 2.0 ** rng.integers(-12, 13, n)).astype(dtype) for _ in range(count)]
    pick = edges(dtype)
    if count == 1:
        special = [pick]
    elif count == 2:
        chosen = rng.choice(len(pick) ** 2, 2500, replace=False)
        special = [a.ravel()[chosen] for a in np.meshgrid(pick, pick)]
    else:
        special = [rng.choice(pick, 2500) for _ in range(count)]
    return [np.concatenate(parts) for parts in zip(wild, mild, special, strict=True)]


def check_codes(found: Array, expected: list[int], form: Format, context: str, *inputs: Array) -> None:
    wrong = [
        i
        for i, (x, y) in enumerate(zip(found.tolist(), expected, strict=True))
        if x != y and not (form.is_nan(x) and form.is_nan(y))
    ]
    shown = [(*(a[i] for a in inputs), hex(int(found[i])), hex(expected[i])) for i in wrong[:4]]
    assert not wrong, f"{context}: {len(wrong)} wrong, as {shown}"


def exact(name: str, values: tuple[Any, ...]) -> tuple[Fraction, bool, bool] | None:
    """The rational result, whether a zero of it is negative, and whether its sign hangs on the mode.

    None where an operand or the result is not finite.
    """
    if not all(math.isfinite(v) for v in values):
        return None
    q = [Fraction(float(v)) for v in values]
    negative = [math.copysign(1, v) < 0 for v in values]
    if name == "sub":
        q[1], negative[1] = -q[1], not negative[1]
    if name in ("add", "sub", "fma"):
        product, sign = (q[0] * q[1], negative[0] != negative[1]) if name == "fma" else (q[0], negative[0])
        total = product + q[-1]
        return total, sign and negative[-1], sign != negative[-1]
    if name == "mul":
        return q[0] * q[1], negative[0] != negative[1], False
    over, under = (Fraction(1), q[0]) if name == "rcp" else (q[0], q[1])
    if under == 0:
        return None
    return over / under, sum(negative) % 2 == 1, False


PLAIN: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
    "fma": lambda a, b, c: np.where(np.isfinite(a) & np.isfinite(b), np.sign(a) * np.sign(b), a * b) + c,
}
COUNTS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "rcp": 1, "fma": 3}


def half_values(kind: str, codes: Array) -> list[float]:
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    values: list[float] = torch.from_numpy(codes.view(np.int16)).view(dtype).double().tolist()
    return values
