"""The PTX machine's mma and ldmatrix, against the PTX manual's formulas for who holds which element."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.ptx_machine.selftest import Array, compiler, library

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


SHAPES = ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16")
TYPES = ("f16", "bf16", "tf32", "f32", "f64")
FORMS = [
    *(("m16n8k8", "f16", acc) for acc in ("f32", "f16")),
    *(("m16n8k16", "f16", acc) for acc in ("f32", "f16")),
    ("m16n8k8", "bf16", "f32"),
    ("m16n8k16", "bf16", "f32"),
    ("m16n8k4", "tf32", "f32"),
    ("m16n8k8", "tf32", "f32"),
    *((shape, "f64", "f64") for shape in SHAPES),
]
LANES = np.arange(32)
GROUP, IN_GROUP = LANES >> 2, LANES % 4


def extent(shape: str) -> tuple[int, int]:
    return int(shape[1 : shape.index("n")]), int(shape[shape.index("k") + 1 :])


def place_a(shape: str, kind: str, i: int) -> tuple[Array, Array]:
    """Row and column of element a_i in every lane, as the manual's formulas have it."""
    if kind in ("f16", "bf16"):
        if shape == "m16n8k8":
            return GROUP + (0 if i < 2 else 8), IN_GROUP * 2 + (i & 1)
        return GROUP + (0 if i < 2 or 4 <= i < 6 else 8), IN_GROUP * 2 + (i & 1) + (0 if i < 4 else 8)
    if shape == "m8n8k4":
        return GROUP, IN_GROUP
    if shape == "m16n8k16":
        return GROUP + (0 if i % 2 == 0 else 8), (i * 2 if i % 2 == 0 else i * 2 - 2) + IN_GROUP
    return GROUP + (0 if i in (0, 2) else 8), IN_GROUP + (0 if i < 2 else 4)


def place_b(kind: str, i: int) -> tuple[Array, Array]:
    if kind in ("f16", "bf16"):
        return IN_GROUP * 2 + (i & 1) + (0 if i < 2 else 8), GROUP
    return IN_GROUP + 4 * i, GROUP


def place_c(i: int) -> tuple[Array, Array]:
    return GROUP + (0 if i < 2 else 8), IN_GROUP * 2 + (i & 1)


def codes_of(values: Array, kind: str) -> Array:
    if kind in ("f16", "bf16"):
        dtype = torch.float16 if kind == "f16" else torch.bfloat16
        return torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    return values.view(np.uint64) if kind == "f64" else values.astype(np.float32).view(np.uint32)


def values_of(codes: Array, kind: str) -> Array:
    if kind in ("f16", "bf16"):
        dtype = torch.float16 if kind == "f16" else torch.bfloat16
        return torch.from_numpy(codes.view(np.int16)).view(dtype).double().numpy()
    return codes.view(np.float64) if kind == "f64" else codes.view(np.float32).astype(np.float64)


def fragment(matrix: Array, kind: str, place: Callable[[int], tuple[Array, Array]]) -> Array:
    """The registers [register, lane] that hold a matrix of codes."""
    count = matrix.size // 32
    elements = np.stack([matrix[place(i)] for i in range(count)])
    if kind not in ("f16", "bf16"):
        return np.ascontiguousarray(elements)
    low, high = elements[0::2].astype(np.uint32), elements[1::2].astype(np.uint32)
    return np.ascontiguousarray(low | high << 16)


def run_mma(form: tuple[str, str, str], a: Array, b: Array, c: Array, in_place: bool = False) -> Array:
    """D's codes as a matrix, of matrices of codes."""
    shape, kind, accumulator = form
    parts = [
        fragment(a, kind, lambda i: place_a(shape, kind, i)),
        fragment(b, kind, lambda i: place_b(kind, i)),
        fragment(c, accumulator, place_c),
    ]
    counts = (ctypes.c_int * 3)()
    ids = (ctypes.c_int * 3)(SHAPES.index(shape), TYPES.index(kind), TYPES.index(accumulator))
    library().selftest_mma_registers(ids, counts)
    assert list(counts) == [len(p) for p in parts]
    d = parts[2] if in_place else np.zeros_like(parts[2])
    function = library().selftest_mma_f64 if kind == "f64" else library().selftest_mma
    function(ids, *(ctypes.c_void_p(p.ctypes.data) for p in [*parts, d]))
    result = np.zeros_like(c)
    for i in range(result.size // 32):
        words = d[i // 2] >> 16 * (i & 1) if accumulator == "f16" else d[i]
        result[place_c(i)] = words.astype(result.dtype)
    return result


def matrices(form: tuple[str, str, str], make: Callable[[tuple[int, int]], Array]) -> list[Array]:
    rows, terms = extent(form[0])
    return [
        codes_of(make(s), k)
        for s, k in (((rows, terms), form[1]), ((terms, 8), form[1]), ((rows, 8), form[2]))
    ]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_mma_follows_the_fragment_layouts(form: tuple[str, str, str]) -> None:
    """Whole numbers: every sum is exact, so that one element astray shows."""
    rng = np.random.default_rng(17)
    a, b, c = matrices(form, lambda shape: rng.integers(-8, 9, shape).astype(np.float64))
    expected = values_of(a, form[1]) @ values_of(b, form[1]) + values_of(c, form[2])
    np.testing.assert_array_equal(values_of(run_mma(form, a, b, c), form[2]), expected)
    np.testing.assert_array_equal(values_of(run_mma(form, a, b, c, in_place=True), form[2]), expected)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_mma_rounds_once(form: tuple[str, str, str]) -> None:
    rng = np.random.default_rng(18)
    a, b, c = matrices(form, lambda shape: rng.standard_normal(shape))
    if form[1] == "tf32":
        a |= 0x1FFF  # bits that the tensor cores do not read
        b |= 0x1FFF
    x, y, z = values_of(a, form[1]), values_of(b, form[1]), values_of(c, form[2])
    found = values_of(run_mma(form, a, b, c), form[2])
    if form[1] == "tf32":
        x, y = (values_of(v & np.uint32(0xFFFFE000), "tf32") for v in (a, b))
    expected = x @ y + z
    if form[2] == "f64":
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    else:
        rounded = values_of(codes_of(expected, form[2]), form[2])
        assert (found != rounded).mean() < 0.02  # numpy's sum of doubles may lie at the other side of a tie
        np.testing.assert_allclose(found, rounded, rtol=2.0**-10 if form[2] == "f16" else 2.0**-23)


def test_mma_of_doubles_is_a_chain_of_fused_multiply_adds() -> None:
    for shape in SHAPES:
        form = (shape, "f64", "f64")
        a, b, c = matrices(form, np.zeros)
        a[:, -1] = codes_of(np.full(len(a), 1 + 2.0**-30), "f64")
        b[-1, :] = codes_of(np.full(8, 1 - 2.0**-30), "f64")
        c[:] = codes_of(np.full(c.shape, -1.0), "f64")
        assert (values_of(run_mma(form, a, b, c), "f64") == -(2.0**-60)).all()


def test_mma_takes_infinities_and_nan() -> None:
    form = ("m16n8k16", "f16", "f32")
    a, b, c = matrices(form, np.ones)
    a[0, 0], a[1, 1], b[2, 3] = 0x7C00, 0x7E00, 0xFC00
    expected = np.full((16, 8), 17.0)
    expected[0], expected[:, 3] = np.inf, -np.inf
    expected[0, 3], expected[1] = np.nan, np.nan
    found = run_mma(form, a, b, c)
    np.testing.assert_array_equal(values_of(found, "f32"), expected)
    assert (found[1] == 0x7FFFFFFF).all()


def test_mma_of_halves_overflows_to_infinity() -> None:
    form = ("m16n8k16", "f16", "f16")
    a, b, c = matrices(form, lambda shape: np.full(shape, 64.0))
    assert (values_of(run_mma(form, a, b, c), "f16") == np.inf).all()  # 65536 + 64


@pytest.mark.parametrize(
    "form", [("m8n8k4", "f16", "f32"), ("m16n8k16", "tf32", "f32"), ("m16n8k8", "bf16", "f16")]
)
def test_mma_knows_which_forms_it_lacks(form: tuple[str, str, str]) -> None:
    counts = (ctypes.c_int * 3)(7, 7, 7)
    ids = (ctypes.c_int * 3)(SHAPES.index(form[0]), TYPES.index(form[1]), TYPES.index(form[2]))
    library().selftest_mma_registers(ids, counts)
    assert list(counts) == [0, 0, 0]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_mma_spreads_what_was_never_written(form: tuple[str, str, str]) -> None:
    shape, kind, accumulator = form
    rows, terms = extent(shape)
    rng = np.random.default_rng(19)
    ids = (ctypes.c_int * 3)(SHAPES.index(shape), TYPES.index(kind), TYPES.index(accumulator))
    per_register = {"a": 2 if kind in ("f16", "bf16") else 1, "b": 2 if kind in ("f16", "bf16") else 1}
    per_register["c"] = 2 if accumulator == "f16" else 1
    sizes = {"a": rows * terms, "b": terms * 8, "c": rows * 8}
    for trial in range(60):
        masks = {k: np.full(n // 32 // per_register[k], 0xFFFFFFFF, np.uint32) for k, n in sizes.items()}
        bad = np.zeros((rows, 8), bool)
        for _ in range(trial % 4):  # none at first: everything is written
            which, lane = str(rng.choice(["a", "b", "c"])), int(rng.integers(32))
            register = int(rng.integers(len(masks[which])))
            masks[which][register] &= np.uint32(~(1 << lane) & 0xFFFFFFFF)
            for i in range(register * per_register[which], (register + 1) * per_register[which]):
                if which == "a":
                    bad[place_a(shape, kind, i)[0][lane]] = True
                elif which == "b":
                    bad[:, place_b(kind, i)[1][lane]] = True
                else:
                    row, column = place_c(i)
                    bad[row[lane], column[lane]] = True
        d = np.zeros_like(masks["c"])
        arrays = [masks["a"], masks["b"], masks["c"], d]
        library().selftest_mma_poison(ids, *(ctypes.c_void_p(m.ctypes.data) for m in arrays))
        expected = []
        for register in range(len(d)):
            elements = range(register * per_register["c"], (register + 1) * per_register["c"])
            lanes = np.any([bad[place_c(i)] for i in elements], axis=0)
            expected.append(sum(1 << lane for lane in range(32) if not lanes[lane]))
        assert d.tolist() == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_hands_out_rows(transposed: bool) -> None:
    matrices = np.arange(4 * 64).reshape(4, 8, 8)
    source = (ctypes.c_int * 4)()
    for register in range(4):
        matrix = matrices[register].T if transposed else matrices[register]
        for lane in range(32):
            library().selftest_ldmatrix(register, lane, int(transposed), source)
            for half in range(2):
                row_lane, offset = source[2 * half], source[2 * half + 1]
                # Lane 8 i + j gives the address of row j of matrix i, whose elements have two bytes.
                found = matrices[row_lane // 8, row_lane % 8, offset // 2]
                assert offset % 2 == 0
                assert found == matrix[lane // 4, lane % 4 * 2 + half]
