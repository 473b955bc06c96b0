"""Products of float32 by tiles of bfloat16, in three parts: the errors are those of a float32 product.

The tiles are those of the twin in software, whose arithmetic is the instructions' (test_gemm_amx.py compares
the bits); ``python -m tests.ops.test_gemm_parts`` prints the errors of docs/inside/gemm.md.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

from pyops import _library
from tests.ops.test_gemm import operands
from tests.suite.backends import CPP, raw
from tests.suite.checks import _errors, assert_as_accurate
from tests.suite.processes import run_python

_FEATURES = "amx_float32,amx_twin"
_ASKED_FOR = "amx_float32" in _library.cpu_features()
in_parts = pytest.mark.skipif(not _ASKED_FOR, reason="runs in the process of test_in_parts")


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def matrices(kind: str, m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Operands that are hard in one way or another."""
    generator = torch.Generator().manual_seed(k)
    a, b = _normal(generator, m, k), _normal(generator, k, n)
    if kind == "positive":
        return a.abs(), b.abs()
    if kind == "cancelling":  # each product beside almost its negative
        half = k // 2
        almost = -b[:half] * (1 + 1e-6 * _normal(generator, half, n))
        return a[:, :half].repeat(1, 2), torch.cat([b[:half], almost])
    if kind == "wide range":  # 2^-42 to 2^29
        scales = [torch.exp2(torch.randint(-24, 25, x.shape, generator=generator)) for x in (a, b)]
        return a.clamp(-32, 32) * scales[0], b.clamp(-32, 32) * scales[1]
    if kind == "large mean":
        return a + 1000, b
    if kind == "large products":
        return a * 2.0**50, b * 2.0**50
    if kind == "small products":
        return torch.where(a.abs() < 2**-9, 0, a * 2.0**-30), torch.where(b.abs() < 2**-9, 0, b * 2.0**-40)
    return a, b


KINDS = ["normal", "positive", "cancelling", "wide range", "large mean", "large products", "small products"]


def product(a: Tensor, b: Tensor) -> Tensor:
    out = torch.full((a.size(0), b.size(1)), torch.nan)
    raw(CPP, "gemm_")(out, a, b, 0.0)
    return out


@in_parts
@pytest.mark.parametrize("k", [1, 64, 250, 1024, 8192])
@pytest.mark.parametrize("kind", KINDS)
def test_as_accurate_as_torch(kind: str, k: int) -> None:
    a, b = matrices(kind, 144, 160, max(k, 2) if kind == "cancelling" else k)
    assert_as_accurate("product", product(a, b), a @ b, a.double() @ b.double())


@in_parts
@pytest.mark.parametrize(("a_t", "b_t"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("size", [(129, 130, 33), (300, 257, 700), (129, 1100, 1100)], ids=str)
def test_layouts_edges_and_beta(size: tuple[int, int, int], a_t: bool, b_t: bool) -> None:
    m, n, k = size
    a, b = operands(m, n, k, torch.float32, a_t, b_t, "cpu")
    before = torch.randn(m, n)
    out = before.clone()
    raw(CPP, "gemm_")(out, a, b, -0.5)
    wanted = a.double() @ b.double() - 0.5 * before.double()
    assert_as_accurate("product", out, a @ b - 0.5 * before, wanted)


@in_parts
def test_same_bits_for_every_thread_count() -> None:
    a, b = operands(290, 300, 1100, torch.float32, False, True, "cpu")
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(product(a, b))
    assert all(torch.equal(results[0], other) for other in results[1:])


# Parts of these would be infinite, NaN or zero where the product is not.
SPECIAL = {
    "infinity": torch.inf,
    "minus infinity": -torch.inf,
    "nan": torch.nan,
    "largest": torch.finfo(torch.float32).max,
    "subnormal": 1e-40,
    "smallest": torch.finfo(torch.float32).tiny,
}


@in_parts
@pytest.mark.parametrize("name", SPECIAL)
def test_numbers_without_parts_are_multiplied_as_they_are(name: str) -> None:
    a, b = matrices("normal", 144, 160, 96)
    b *= 2.0**-8
    a[3, 5] = a[140, 95] = SPECIAL[name]
    if name != "largest":  # whose products are not finite
        b[17, 2] = SPECIAL[name]
    a[7] = 0
    assert_as_accurate("product", product(a, b), a @ b, a.double() @ b.double())
    if name in ("subnormal", "smallest"):  # alone in a row, where nothing larger hides it
        a[9] = 0
        a[9, 5] = SPECIAL[name]
        row = product(a * 1e6, b)[9].double()
        wanted = (a.double()[9] * 1e6) @ b.double()
        assert (row - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@in_parts
def test_a_convolutions_products() -> None:
    x, w = torch.randn(1, 128, 14, 14), torch.randn(128, 128, 3, 3) / 34
    columns = T.unfold(x, 3, padding=1)[0]
    found = product(w.view(128, -1), columns).view(1, 128, 14, 14)
    assert_as_accurate(
        "output", found, T.conv2d(x, w, padding=1), T.conv2d(x.double(), w.double(), padding=1)
    )


@in_parts
def test_the_parts_are_used() -> None:
    """Their sums have other last bits than those of float32 products."""
    a, b = matrices("normal", 144, 160, 512)
    script = "from tests.ops.test_gemm_parts import matrices, product; "
    script += "print(product(*matrices('normal', 144, 160, 512)).double().sum().item())"
    plain = run_python("-c", script, environment={"PYOPS_CPU_FEATURES": "amx_twin"})
    assert float(plain.stdout) != product(a, b).double().sum().item()


def test_in_parts() -> None:
    """This file, and what test_gemm.py has of float32, with the parts."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("tiles are in the AVX-512 variant")
    if _ASKED_FOR:
        pytest.skip("this is the process")
    files = (__file__, __file__.replace("test_gemm_parts", "test_gemm"))
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k")
    done = run_python(
        *arguments, "test_gemm_parts or (cpp and dtype0)", environment={"PYOPS_CPU_FEATURES": _FEATURES}
    )
    assert "passed" in done.stdout


def _three_products(a: Tensor, b: Tensor) -> Tensor:
    """The cheaper variant: two parts, and the three largest of their products."""
    out = torch.zeros(a.size(0), b.size(1))
    parts = [(x.bfloat16(), (x - x.bfloat16().float()).bfloat16()) for x in (a, b)]
    for i, j in ((1, 0), (0, 1), (0, 0)):
        raw(CPP, "gemm_")(out, parts[0][i], parts[1][j], 1.0)
    return out


def _print_errors() -> None:
    assert _ASKED_FOR, f"set PYOPS_CPU_FEATURES={_FEATURES}"
    print("| operands | K | torch | six products | ratio | three products | ratio |")
    for kind, k in itertools.product(KINDS, (64, 256, 1024, 4096, 8192)):
        a, b = matrices(kind, 144, 160, k)
        wanted = a.double() @ b.double()
        everything = torch.ones_like(wanted, dtype=torch.bool)
        largest = [_errors(x, wanted, everything)[0] for x in (a @ b, product(a, b), _three_products(a, b))]
        theirs, six, three = largest
        ratios = f"{six:.1e} | {six / theirs:.2f} | {three:.1e} | {three / theirs:.1f}"
        print(f"| {kind} | {k} | {theirs:.1e} | {ratios} |")


if __name__ == "__main__":
    sys.exit(_print_errors())
