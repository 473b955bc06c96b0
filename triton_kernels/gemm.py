"""out = activation(a @ b + beta * out + bias), tiled for tensor cores, accumulated in float32 (float64 for
float64)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import Activation
from pyops.precision import matmul_allows_tf32

from .tools.activation import NO_ACTIVATION, activate
from .tools.checks import acc_dtype, check_dense, check_floating
from .tools.launch import capability, cdiv, launch, vector_alignment
from .tools.product import Product, multiply_add
from .tools.tuning import run_first

# Neighbouring programs share this many rows of tiles, so that the operand tiles they read stay in L2.
_GROUP_M = 8


class _Config(NamedTuple):
    """A tile of ``block_m`` x ``block_n``, ``block_k`` terms at a time
    (with Triton's ``num_warps`` and ``num_stages``)."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def _configs(
    dtype: torch.dtype, precision: str, m: int, n: int, aligned: bool, has_beta: bool, cc: tuple[int, int]
) -> list[_Config]:
    """Tile sizes by a table, and smaller ones for GPUs with less shared memory.

    Nothing is timed, so the first call is as fast as any and repeatable.

    The limit is registers, of which nothing may spill. Operands that are not ``aligned`` for 16-byte
    loads go through registers on their way, and so does the ``out`` that beta scales.
    """
    few = cdiv(m, 128) * cdiv(n, 128) < 64
    if dtype == torch.float64:
        return [_Config(64, 64, 16, 4, 3)]
    if dtype == torch.float32 and precision == "ieee":
        # No tensor cores: the tile is bounded by registers.
        return [_Config(64, 64, 16, 4, 3) if few else _Config(128, 64, 16, 8, 3)]
    block_k = 32 if dtype == torch.float32 or not aligned else 64
    small, large = _Config(64, 64, block_k, 4, 4), _Config(128, 128, block_k, 8, 3)
    if few:
        return [small]
    # 144 KiB of shared memory, which data-centre GPUs have: not the consumer ones of 8.x and 12.x.
    if cc[0] in (9, 10) and dtype != torch.float32 and n >= 256 and aligned and not has_beta:
        return [_Config(128, 256, block_k, 8, 3), large, small]
    return [large, small]


def leading_stride(matrix: torch.Tensor, op: str, name: str) -> tuple[int, bool]:
    """Stride of the dimension that is not contiguous, and whether that is the second one."""
    if matrix.dim() != 2:
        raise RuntimeError(f"{op}: {name} must have 2 dimensions, got {matrix.dim()}")
    rows, columns = matrix.shape
    if matrix.stride(1) == 1:
        return matrix.stride(0), False
    # A transposed view stays one where one of its sides is 1: the same kernel serves every size.
    if matrix.stride(0) == 1:
        return matrix.stride(1), True
    if columns <= 1:
        return matrix.stride(0), False
    if rows <= 1 or matrix.numel() == 0:
        return matrix.stride(1), True
    raise RuntimeError(f"{op}: {name} must have a stride of 1, got strides {matrix.stride()}")


def _check_no_overlap(out: torch.Tensor, operand: torch.Tensor, op: str, name: str) -> None:
    def extent(t: torch.Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        begin = t.data_ptr()
        return begin, begin if t.numel() == 0 else begin + (last + 1) * t.element_size()

    (out_begin, out_end), (begin, end) = extent(out), extent(operand)
    if out_begin < end and begin < out_end and out.device.type != "meta":
        raise RuntimeError(f"{op}: out must not share memory with {name}")


@implement("pyops_triton", "gemm_")
def gemm_(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float) -> None:
    """Overwrite ``out`` [M, N] with ``a`` [M, K] @ ``b`` [K, N] + ``beta`` * ``out``.

    ``a`` and ``b`` may be transposed views. ``out`` has their dtype, or is float32. float32 operands
    follow ``torch.backends.cuda.matmul.fp32_precision`` (``allow_tf32``).
    """
    op = "gemm_"
    check_floating(a, op, "a")
    leading_stride(a, op, "a")
    leading_stride(b, op, "b")
    m, k = a.shape
    n = b.shape[1]
    if b.shape[0] != k or b.dtype != a.dtype or b.device != a.device:
        raise RuntimeError(
            f"{op}: b must be {k} x N, {a.dtype}, on {a.device}, "
            f"got {tuple(b.shape)}, {b.dtype}, on {b.device}"
        )
    out_dtype = acc_dtype(a.dtype) if out.dtype != a.dtype else a.dtype
    check_dense(out, op, "out", like=a, dtype=out_dtype, shape=(m, n))
    _check_no_overlap(out, a, op, "a")
    _check_no_overlap(out, b, op, "b")
    matmul(out, a, b, beta)


def matmul(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    beta: float = 0.0,
    *,
    bias: torch.Tensor | None = None,
    activation: Activation = NO_ACTIVATION,
    tf32: bool | None = None,
) -> None:
    """Overwrite ``out`` [M, N] with activation(``a`` @ ``b`` + ``beta`` * ``out`` + ``bias``).

    Shapes, dtypes and strides are those of :func:`gemm_`; ``bias`` [N] has the dtype of ``out``. ``tf32``:
    whether float32 may be rounded; None means as torch's switch for products has it.
    An activation of many steps, such as gelu, would spill the accumulator's registers (by 1000 to 3000 bytes
    on sm_80 to sm_100).
    """
    if out.numel() == 0:
        return
    m, k = a.shape
    n = b.shape[1]
    stride_a, a_transposed = leading_stride(a, "matmul", "a")
    stride_b, b_transposed = leading_stride(b, "matmul", "b")
    product = Product.of(a.dtype, tf32=matmul_allows_tf32() if tf32 is None else tf32)
    itemsize = a.element_size()
    # Sizes along which operands are contiguous: the compiler has to know what divides them, but not what
    # divides others, which may be a batch's.
    align_m = vector_alignment(m, itemsize) if a_transposed else 1
    align_n = vector_alignment(n, itemsize)
    align_k = vector_alignment(k, itemsize) if not a_transposed or b_transposed else 1
    align_a, align_b = vector_alignment(stride_a, itemsize), vector_alignment(stride_b, itemsize)
    runs = (align_a, align_b, align_m if a_transposed else align_k, align_k if b_transposed else align_n)
    aligned = min(runs) * itemsize == 16 and all(t.data_ptr() % 16 == 0 for t in (a, b))
    constants = {
        "A_TRANSPOSED": a_transposed, "B_TRANSPOSED": b_transposed, "HAS_BETA": beta != 0,
        "ALIGN_M": align_m, "ALIGN_N": align_n, "ALIGN_K": align_k, "ALIGN_A": align_a, "ALIGN_B": align_b,
        "ACTIVATION": activation, "PRODUCT": product,
    }  # fmt: skip
    sizes = (m // align_m, n // align_n, k // align_k, stride_a // align_a, stride_b // align_b)

    def run(config: _Config) -> None:
        launch(
            _gemm_kernel, cdiv(m, config.block_m) * cdiv(n, config.block_n), a.device,
            out, a, b, beta, bias, *sizes,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=_GROUP_M,
            num_warps=config.num_warps, num_stages=config.num_stages, **constants,
        )  # fmt: skip

    configs = _configs(a.dtype, product.precision, m, n, aligned, beta != 0, capability(a.device))
    run_first(("gemm", a.dtype, out.dtype, aligned, *constants.values()), configs, run, a.device)


@triton.jit(do_not_specialize=["aligned_m", "aligned_n", "aligned_k", "aligned_a", "aligned_b"])
def _gemm_kernel(
    out, a, b, beta: tl.float64, bias,
    aligned_m: tl.int64, aligned_n: tl.int64, aligned_k: tl.int64, aligned_a: tl.int64, aligned_b: tl.int64,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, HAS_BETA: tl.constexpr,
    ALIGN_M: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_K: tl.constexpr,
    ALIGN_A: tl.constexpr, ALIGN_B: tl.constexpr,
    ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile of activation(``a`` @ ``b`` + ``beta`` * ``out`` + ``bias``), m x n, of depth k.

    ``aligned_m``, ``aligned_n`` and ``aligned_k``: the sizes divided by ``ALIGN_M``, ``ALIGN_N`` and
    ``ALIGN_K``, powers of two, so that the compiler knows that they are their multiples.
    ``aligned_a`` and ``aligned_b``: likewise the strides of the dimension that is not contiguous, the first
    one unless ``A_TRANSPOSED`` or ``B_TRANSPOSED``. ``GROUP_M``: neighbouring programs share so many rows of
    tiles.
    """
    acc: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    m, n, k = aligned_m * ALIGN_M, aligned_n * ALIGN_N, aligned_k * ALIGN_K
    stride_a, stride_b = aligned_a * ALIGN_A, aligned_b * ALIGN_B
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    pid = tl.program_id(0).to(tl.int64)
    per_group = GROUP_M * tiles_n
    first_m = pid // per_group * GROUP_M
    in_group = pid % per_group
    group_size = tl.minimum(tiles_m - first_m, GROUP_M)
    rows = (first_m + in_group % group_size) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = in_group // group_size * BLOCK_N + tl.arange(0, BLOCK_N)
    row_exists = (rows < m)[:, None]
    column_exists = (columns < n)[None, :]

    depth = tl.arange(0, BLOCK_K)
    if A_TRANSPOSED:
        a_tile = a + rows[:, None] + depth[None, :] * stride_a
        a_step = BLOCK_K * stride_a
    else:
        a_tile = a + rows[:, None] * stride_a + depth[None, :]
        a_step = BLOCK_K
    if B_TRANSPOSED:
        b_tile = b + depth[:, None] + columns[None, :] * stride_b
        b_step = BLOCK_K
    else:
        b_tile = b + depth[:, None] * stride_b + columns[None, :]
        b_step = BLOCK_K * stride_b

    out_tile = out + rows[:, None] * n + columns[None, :]
    mask = row_exists & column_exists
    if HAS_BETA:
        # Before the loop, where it costs no registers besides the accumulator's.
        total = tl.load(out_tile, mask=mask, other=0.0).to(acc) * tl.full([], beta, acc)
    else:
        total = tl.zeros([BLOCK_M, BLOCK_N], acc)
    for done in tl.range(0, k, BLOCK_K):
        left = k - done
        x = tl.load(a_tile, mask=row_exists & (depth[None, :] < left), other=0.0)
        y = tl.load(b_tile, mask=column_exists & (depth[:, None] < left), other=0.0)
        total = multiply_add(x, y, total, PRODUCT)
        a_tile += a_step
        b_tile += b_step
    if bias is not None:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(acc)[None, :]
    total = activate(total, ACTIVATION, out.dtype.element_ty)
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=mask)
