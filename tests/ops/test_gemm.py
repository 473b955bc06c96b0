"""The raw op gemm_ (out = a @ b + beta * out) on every backend, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyops.ops.gemm import library_gemm_
from tests.suite import checks
from tests.suite.backends import CPP, CUDA_SOURCES, TRITON, Backend, raw
from tests.suite.cases import DTYPES
from tests.suite.layouts import offset

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

# 1: matrix-vector products; 7, 13: less than a micro-tile; 65, 129: one more than a tile of 64 or 128; 67 x
# 300 x 131: more than one block of k, ends everywhere.
SIZES = [(1, 1, 1), (1, 13, 7), (7, 1, 13), (13, 7, 1), (16, 16, 16), (65, 129, 33), (67, 131, 300)]


def operands(m: int, n: int, k: int, dtype: torch.dtype, a_t: bool, b_t: bool, device: str):
    a = torch.randn((k, m) if a_t else (m, k), dtype=torch.float64).to(dtype).to(device)
    b = torch.randn((n, k) if b_t else (k, n), dtype=torch.float64).to(dtype).to(device)
    return (a.t() if a_t else a), (b.t() if b_t else b)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def assert_product(kernels: Backend, out: Tensor, wanted: Tensor, a: Tensor, k: int) -> None:
    """Within the rounding of the result and of a float32 (float64) sum of k terms."""
    accumulated = torch.finfo(accumulation_dtype(a.dtype)).eps * max(k, 4) ** 0.5 * 4
    rounding = torch.finfo(out.dtype).eps / 2
    if out.dtype is torch.bfloat16 and (kernels.name, kernels.device) == ("triton", "cpu"):
        rounding *= 2  # Triton's interpreter truncates where GPUs round to nearest
    bound = rounding + accumulated
    error = (out.double().cpu() - wanted).abs().max() / (wanted.abs().max() if wanted.any() else 1.0)
    assert error <= bound, f"relative error {error:.3g}, bound {bound:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_layout_and_output_dtype(
    kernels: Backend, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    m, n, k = size
    wide = accumulation_dtype(dtype)
    layouts = list(itertools.product((False, True), repeat=2))
    for (a_t, b_t), out_dtype in itertools.product(layouts, {dtype, wide}):
        a, b = operands(m, n, k, dtype, a_t, b_t, kernels.device)
        before = torch.randn(m, n, dtype=torch.float64).to(out_dtype).to(kernels.device)
        product = a.double().cpu() @ b.double().cpu()
        for beta in (0.0, 1.0, -0.5):
            out = before.clone()
            raw(kernels, "gemm_")(out, a, b, beta)
            assert_product(kernels, out, product + beta * before.double().cpu(), a, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_beta_zero_does_not_read_out(kernels: Backend, dtype: torch.dtype) -> None:
    a, b = operands(5, 7, 9, dtype, False, True, kernels.device)
    out = torch.full((5, 7), torch.nan, dtype=dtype, device=kernels.device)
    raw(kernels, "gemm_")(out, a, b, 0.0)
    assert_product(kernels, out, a.double().cpu() @ b.double().cpu(), a, 9)


@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 4), (0, 0, 0)], ids=str)
def test_empty_output(kernels: Backend, size: tuple[int, int, int]) -> None:
    m, n, k = size
    out = torch.empty(m, n, device=kernels.device)
    raw(kernels, "gemm_")(out, *operands(m, n, k, torch.float32, False, False, kernels.device), 0.0)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_sum_of_no_terms_is_zero(kernels: Backend, beta: float) -> None:
    out = torch.full((3, 4), torch.nan if beta == 0 else 1.5, device=kernels.device)
    raw(kernels, "gemm_")(out, *operands(3, 4, 0, torch.float32, False, False, kernels.device), beta)
    assert torch.equal(out.cpu(), torch.full((3, 4), 1.5 * beta))


def test_rows_of_wider_matrices(kernels: Backend) -> None:
    """A chunk of rows or columns of a larger matrix: leading dimensions larger than the width."""
    a = torch.randn(20, 30, device=kernels.device)[3:10, 5:17]
    b = torch.randn(40, 12, device=kernels.device)[2:13].t()
    out = torch.empty(7, 11, device=kernels.device)
    raw(kernels, "gemm_")(out, a, b, 0.0)
    assert_product(kernels, out, a.double().cpu() @ b.double().cpu(), a, 12)


def test_unaligned_operands(kernels: Backend) -> None:
    a, b = operands(17, 19, 23, torch.bfloat16, False, False, "cpu")
    moved = checks.on_device({"a": offset(a), "b": offset(b)}, kernels.device)
    out = offset(torch.empty(17, 19)).to(kernels.device)
    raw(kernels, "gemm_")(out, moved["a"], moved["b"], 0.0)
    assert_product(kernels, out, a.double() @ b.double(), a, 23)


def test_inf_and_nan_stay_in_their_row_and_column(kernels: Backend) -> None:
    """Padding of a partial tile must not multiply them by 0."""
    a, b = operands(7, 9, 11, torch.float32, False, False, kernels.device)
    a[3, 10] = torch.inf
    b[2, 8] = torch.nan
    out = torch.empty(7, 9, device=kernels.device)
    raw(kernels, "gemm_")(out, a, b, 0.0)
    special = ~out.isfinite().cpu()
    wanted = torch.zeros(7, 9, dtype=torch.bool)
    wanted[3] = True
    wanted[:, 8] = True
    assert torch.equal(special, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count(dtype: torch.dtype) -> None:
    a, b = operands(301, 257, 513, dtype, False, True, "cpu")
    results = []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        out = torch.empty(301, 257)
        raw(CPP, "gemm_")(out, a, b, 0.0)
        results.append(out)
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_bf16_sums_accumulate_in_float32(kernels: Backend) -> None:
    """4096 ones: a bfloat16 sum would stop at 256."""
    a = torch.ones(2, 4096, dtype=torch.bfloat16, device=kernels.device)
    out = torch.empty(2, 2, dtype=torch.bfloat16, device=kernels.device)
    raw(kernels, "gemm_")(out, a, a.t(), 0.0)
    assert out.unique().tolist() == [4096.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(kernels: Backend, dtype: torch.dtype) -> None:
    a, b = operands(5, 7, 9, dtype, False, True, kernels.device)
    out = torch.zeros(5, 7, dtype=dtype, device=kernels.device)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(raw(kernels, "gemm_"), (out, a, b, 1.0), test_utils=utilities)


_OUT, _A, _B = torch.zeros(3, 5), torch.zeros(3, 4), torch.zeros(4, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        (_OUT, torch.zeros(4), _B),
        (_OUT, _A, torch.zeros(1, 4, 5)),
        (_OUT, _A, torch.zeros(3, 5)),
        (torch.zeros(5, 3), _A, _B),
        (torch.zeros(5, 3).t(), _A, _B),
        (_OUT, _A, _B.double()),
        (_OUT.double(), _A, _B),
        (_OUT.half(), _A.bfloat16(), _B.bfloat16()),
        (_OUT.long(), _A.long(), _B.long()),
        (_OUT, torch.zeros(6, 8)[::2, ::2], _B),
    ],
    ids=[
        "a_of_1_dimension", "b_of_3_dimensions", "other_k", "out_shape", "strided_out", "b_dtype",
        "out_dtype", "other_16_bit_out", "integers", "a_without_a_unit_stride",
    ],
)  # fmt: skip
def test_raw_op_refuses(kernels: Backend, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
    if kernels in CUDA_SOURCES:
        pytest.skip("torch's own GEMM, with torch's checks and more strides")
    moved = checks.on_device(dict(zip("oab", arguments, strict=True)), kernels.device)
    with pytest.raises(RuntimeError, match="gemm_"):
        raw(kernels, "gemm_")(*moved.values(), 0.0)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_torchs_own_gemm_had_no_words_for_a_missing_tensor(missing: int) -> None:
    arguments = [None if i == missing else t for i, t in enumerate((_OUT, _A, _B))]
    with pytest.raises(RuntimeError, match="gemm_: out, a and b must be tensors"):
        library_gemm_(*arguments, 0.0)


def test_out_that_overlaps_an_operand_is_refused() -> None:
    square = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match="out must not share memory with"):
        raw(CPP, "gemm_")(square, square, torch.zeros(4, 4), 0.0)


# -------------------------------------------------------------------------------------------------- Triton


@pytest.mark.parametrize("backend", [TRITON], indirect=True, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_adds_up_the_parts_of_long_products(
    backend: Backend, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of integers, so that every order of the sums has one result."""
    from pyops.triton_kernels import gemm

    from pyops.kinds import RELU, Activation

    programs = []
    run = gemm.launch
    monkeypatch.setattr(
        gemm, "launch", lambda kernel, n, *a, **k: (programs.append(n), run(kernel, n, *a, **k))
    )
    k = 2190 if dtype.itemsize == 2 else 1100  # neither is a multiple of the steps, nor these of the parts
    for a_t, b_t in ((True, False), (False, True)):
        a, b = (t.sign() * (t.abs() > 1) for t in operands(5, 20, k, dtype, a_t, b_t, backend.device))
        bias, before = (torch.randint(-9, 9, shape).to(b) for shape in ((20,), (5, 20)))
        product = a.double() @ b.double()
        out = before.clone()
        gemm.matmul(out, a, b, 2.0, bias=bias, activation=Activation(RELU))
        assert torch.equal(out.double(), (product + 2 * before + bias).relu())
        gemm.matmul(out, a, b)
        assert torch.equal(out.double(), product)
    assert programs == [8, 1] * 4


@pytest.mark.parametrize("backend", [TRITON], indirect=True, ids=str)
@pytest.mark.parametrize(
    "size", [(1024, 1024, 1024), (512, 512, 16384), (128, 28, 16384), (1024, 1024, 8192), (256, 784, 8192)]
)
def test_triton_occupies_half_a_gpu_with_small_products(
    backend: Backend, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyops.triton_kernels import gemm
    from pyops.triton_kernels.tools.launch import record_launches

    programs = []
    monkeypatch.setattr(gemm, "launch", lambda kernel, n, *_args, **_meta: programs.append(n))
    m, n, k = size
    for dtype in (torch.bfloat16, torch.float32):
        a, b, out = (torch.empty(s, dtype=dtype, device="meta") for s in ((m, k), (k, n), (m, n)))
        programs.clear()
        with record_launches((9, 0)):
            gemm.matmul(out, a, b)
        assert 64 <= programs[0] <= 264
