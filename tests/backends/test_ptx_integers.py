"""The PTX machine's integer and bit instructions, against models of the PTX manual in Python's integers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from tests.ptx_machine.selftest import Array, apply, compiler, library

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def integers(integer: type, n: int, seed: int) -> Array:
    """Random bits at random magnitudes, and the ends of the range."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(integer)
    wild = rng.integers(info.min, info.max, n, dtype=integer, endpoint=True)
    ends = np.array(
        [0, 1, 2, info.max, info.max - 1, info.min, info.min + 1, 0 if info.min == 0 else -1], integer
    )
    return np.concatenate([wild >> rng.integers(0, info.bits, n).astype(integer), rng.choice(ends, n)])


@pytest.mark.parametrize("integer", [np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64])
def test_integer_arithmetic(integer: type) -> None:
    info = np.iinfo(integer)
    a, b, c = (integers(integer, 400, seed) for seed in (1, 2, 3))
    amounts = np.random.default_rng(4).choice(
        np.array([0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 2**32 - 1], np.uint32), a.size
    )

    def wrap(x: int) -> int:
        return signed(x, info.bits) if info.min < 0 else x & int(info.max)

    def divide(x: int, y: int) -> int:
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) if y else -1

    models: dict[str, Callable[[int, int, int], int]] = {
        "mul_hi": lambda x, y, z: x * y >> info.bits,
        "div": lambda x, y, z: divide(x, y),
        "rem": lambda x, y, z: x - y * divide(x, y) if y else x,
        "mad_hi": lambda x, y, z: (x * y >> info.bits) + z,
        "sad": lambda x, y, z: z + abs(x - y),
    }
    for name, model in models.items():
        used = (a, b, c) if name in ("mad_hi", "sad") else (a, b)
        expected = [wrap(model(*v)) for v in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
        assert apply(name, integer, *used).tolist() == expected, name
    pairs = list(zip(a.tolist(), amounts.tolist(), strict=True))
    assert apply("shl", integer, a, amounts).tolist() == [wrap(x << min(n, 64)) for x, n in pairs]
    assert apply("shr", integer, a, amounts).tolist() == [x >> min(n, 64) for x, n in pairs]


def test_saturating_and_24_bit_arithmetic() -> None:
    a, b, c = (integers(np.int32, 400, seed) for seed in (5, 6, 7))
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))

    def bound(x: int) -> int:
        return min(max(x, -(2**31)), 2**31 - 1)

    assert apply("add_sat", np.int32, a, b).tolist() == [bound(x + y) for x, y, _ in triples]
    assert apply("sub_sat", np.int32, a, b).tolist() == [bound(x - y) for x, y, _ in triples]
    assert apply("mad_hi_sat", np.int32, a, b, c).tolist() == [
        bound((x * y >> 32) + z) for x, y, z in triples
    ]
    products = [signed(x, 24) * signed(y, 24) for x, y, _ in triples]
    assert apply("mul24_lo", np.int32, a, b).tolist() == [signed(p, 32) for p in products]
    assert apply("mul24_hi", np.int32, a, b).tolist() == [signed(p >> 16, 32) for p in products]
    products = [(x & 0xFFFFFF) * (y & 0xFFFFFF) for x, y, _ in triples]
    words = a.view(np.uint32), b.view(np.uint32)
    assert apply("mul24_lo", np.uint32, *words).tolist() == [p & 0xFFFFFFFF for p in products]
    assert apply("mul24_hi", np.uint32, *words).tolist() == [p >> 16 & 0xFFFFFFFF for p in products]


@pytest.mark.parametrize("integer", [np.uint32, np.int32, np.uint64, np.int64])
def test_bit_fields(integer: type) -> None:
    info = np.iinfo(integer)
    rng = np.random.default_rng(8)
    a = rng.integers(info.min, info.max, 3000, dtype=integer, endpoint=True)
    position, length = (
        rng.choice(np.array([*range(70), 255, 256, 259, 2**32 - 1], np.uint32), 3000) for _ in range(2)
    )
    mask = (1 << info.bits) - 1

    def extract(x: int, at: int, size: int) -> int:
        at, size, top = at & 255, size & 255, info.bits - 1
        sign = x >> min(at + size - 1, top) & 1 if info.min < 0 and size else 0
        bits = [x >> (at + i) & 1 if i < size and at + i <= top else sign for i in range(info.bits)]
        value = sum(bit << i for i, bit in enumerate(bits))
        return signed(value, info.bits) if info.min < 0 else value

    inputs = list(zip(a.tolist(), position.tolist(), length.tolist(), strict=True))
    assert apply("bfe", integer, a, position, length).tolist() == [extract(*v) for v in inputs]
    if info.min == 0:
        insert = library().selftest_bfi32 if info.bits == 32 else library().selftest_bfi64
        word = ctypes.c_uint32 if info.bits == 32 else ctypes.c_uint64
        other = np.roll(a, 1).tolist()
        for (x, at, size), y in zip(inputs, other, strict=True):
            expected = y
            for i in range(min(size & 255, max(0, info.bits - (at & 255)))):
                bit = 1 << ((at & 255) + i)
                expected = expected | bit if x >> i & 1 else expected & ~bit
            assert insert(word(x), word(y), at, size) == expected & mask, (x, y, at, size)


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts(bits: int) -> None:
    integer = np.uint32 if bits == 32 else np.uint64
    a = integers(integer, 500, 9)
    values = a.tolist()
    assert apply("popc", np.uint32, a).tolist() == [bin(x).count("1") for x in values]
    assert apply("clz", np.uint32, a).tolist() == [bits - x.bit_length() for x in values]
    assert apply("brev", integer, a).tolist() == [int(f"{x:0{bits}b}"[::-1], 2) for x in values]
    for view in (a, a.view(np.int32 if bits == 32 else np.int64)):
        lengths = [(~x if x < 0 else x).bit_length() for x in view.tolist()]
        assert apply("bfind", np.uint32, view).tolist() == [n - 1 & 0xFFFFFFFF for n in lengths]
        assert apply("bfind.shiftamt", np.uint32, view).tolist() == [
            bits - n if n else 0xFFFFFFFF for n in lengths
        ]


def test_bit_masks_and_funnel_shifts() -> None:
    rng = np.random.default_rng(10)
    a, b = (rng.integers(0, 1 << 32, 2000, dtype=np.uint32) for _ in range(2))
    n, m = (rng.choice(np.array([*range(40), 64, 95, 2**32 - 1], np.uint32), 2000) for _ in range(2))
    for wrap in (False, True):
        limit = [
            (x & 31 if wrap else min(x, 32), y & 31 if wrap else min(y, 32))
            for x, y in zip(n.tolist(), m.tolist(), strict=True)
        ]
        mode = "wrap" if wrap else "clamp"
        ones = [((1 << size) - 1) << at & 0xFFFFFFFF for at, size in limit]
        assert apply(f"bmsk.{mode}", np.uint32, n, m).tolist() == ones
        pairs = [y << 32 | x for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        left = [pair << k >> 32 & 0xFFFFFFFF for pair, (k, _) in zip(pairs, limit, strict=True)]
        right = [pair >> k & 0xFFFFFFFF for pair, (k, _) in zip(pairs, limit, strict=True)]
        assert apply(f"shf.l.{mode}", np.uint32, a, b, n).tolist() == left
        assert apply(f"shf.r.{mode}", np.uint32, a, b, n).tolist() == right


# The manual's table: source bytes of d.b3, d.b2, d.b1 and d.b0 for each value of the control's low two bits.
PERMUTATIONS = {
    "f4e": ((3, 2, 1, 0), (4, 3, 2, 1), (5, 4, 3, 2), (6, 5, 4, 3)),
    "b4e": ((5, 6, 7, 0), (6, 7, 0, 1), (7, 0, 1, 2), (0, 1, 2, 3)),
    "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    "ecl": ((3, 2, 1, 0), (3, 2, 1, 1), (3, 2, 2, 2), (3, 3, 3, 3)),
    "ecr": ((0, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 0)),
    "rc16": ((1, 0, 1, 0), (3, 2, 3, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
}


def test_permutations_of_bytes() -> None:
    rng = np.random.default_rng(12)
    a, b, c = (rng.integers(0, 1 << 32, 1000, dtype=np.uint32) for _ in range(3))
    sources = [
        x.to_bytes(4, "little") + y.to_bytes(4, "little") for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    expected = []
    for source, control in zip(sources, c.tolist(), strict=True):
        nibbles = [control >> 4 * i & 15 for i in range(4)]
        taken = [(255 if source[k & 7] & 128 else 0) if k & 8 else source[k] for k in nibbles]
        expected.append(int.from_bytes(bytes(taken), "little"))
    assert apply("prmt", np.uint32, a, b, c).tolist() == expected
    for mode, table in PERMUTATIONS.items():
        picked = [
            bytes(s[k] for k in table[control & 3]) for s, control in zip(sources, c.tolist(), strict=True)
        ]
        assert apply(f"prmt.{mode}", np.uint32, a, b, c).tolist() == [
            int.from_bytes(p, "big") for p in picked
        ], mode


def test_logic_of_three_operands() -> None:
    a, b, c = 0xF0F0CC12, 0xCCAA3C5A, 0xAA0FF099
    for table in range(256):
        expected = sum(
            (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32)
        )
        assert library().selftest_lop3(a, b, c, table) == expected
    assert library().selftest_lop3(a, b, c, 0x1A) == ((a & b | c) ^ a)  # the manual's example of a table


@pytest.mark.parametrize("kinds", ["uu", "su", "ss"])
def test_dot_product_of_bytes(kinds: str) -> None:
    a, b, c = (integers(np.uint32, 300, seed) for seed in (14, 15, 16))
    x, y = (
        v.view(np.int8 if kind == "s" else np.uint8).reshape(-1, 4).astype(np.int64)
        for v, kind in zip((a, b), kinds, strict=True)
    )
    expected = (c.astype(np.int64) + (x * y).sum(1)) & 0xFFFFFFFF
    assert apply(f"dp4a.{kinds}", np.uint32, a, b, c).tolist() == expected.tolist()
