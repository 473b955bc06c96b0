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
# Tiles that keep a large GPU busy, one for each multiprocessor of an H100; a number of the problem's, so that
# all GPUs of a generation add up in the same order.
_ENOUGH_TILES = 132
# Where fewer tiles have at least so many steps of block_k terms, the terms are shared out, at least so many
# steps to each program. By estimate, no GPU has timed it: a step takes a quarter of a microsecond, and adding
# up the parts, a launch of its own, two or three. Half the steps are saved at least: 4 microseconds.
_STEPS_TO_SPLIT = 32
_LEAST_STEPS = 8
_FINISH_BLOCK = 1024
_NO_EPILOGUE = {"HAS_BETA": False, "ACTIVATION": NO_ACTIVATION}


class _Config(NamedTuple):
    """A tile of ``block_m`` x ``block_n``, ``block_k`` terms at a time
    (with Triton's ``num_warps`` and ``num_stages``)."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def _configs(
    dtype: torch.dtype,
    precision: str,
    m: int,
    n: int,
    k: int,
    aligned: bool,
    has_beta: bool,
    cc: tuple[int, int],
) -> list[_Config]:
    """Tile sizes by a table, and smaller ones for GPUs with less shared memory.

    Nothing is timed, so the first call is as fast as any and repeatable. The widest tile is for
    products of as many as there are multiprocessors: the 32 of 1024 x 1024 would leave 100 idle. Tiles of
    128 x 128 read half of what those of 64 x 64 do, and are taken where they, or parts of their terms, occupy
    half the GPU.

    The limit is registers, of which nothing may spill. Operands that are not ``aligned`` for 16-byte
    loads go through registers on their way, and so does the ``out`` that beta scales.
    """

    def tiles(block_m: int, block_n: int) -> int:
        return cdiv(m, block_m) * cdiv(n, block_n)

    if dtype == torch.float64:
        return [_Config(64, 64, 16, 4, 3)]
    if dtype == torch.float32 and precision == "ieee":
        # No tensor cores: the tile is bounded by registers.
        return [_Config(64, 64, 16, 4, 3) if tiles(128, 128) < 64 else _Config(128, 64, 16, 8, 3)]
    block_k = 32 if dtype == torch.float32 or not aligned else 64
    few = min(m, n) <= 64 or tiles(128, 128) * _split(tiles(128, 128), cdiv(k, block_k)) < 64
    small, large = _Config(64, 64, block_k, 4, 4), _Config(128, 128, block_k, 8, 3)
    if few:
        return [small]
    # 144 KiB of shared memory, which data-centre GPUs have: not the consumer ones of 8.x and 12.x.
    wide = tiles(128, 256) >= _ENOUGH_TILES and aligned and not has_beta
    if cc[0] in (9, 10) and dtype != torch.float32 and wide:
        return [_Config(128, 256, block_k, 8, 3), large, small]
    return [large, small]


def _split(tiles: int, steps: int) -> int:
    """Parts that the ``steps`` of each tile are shared out to, so that there are enough programs."""
    if steps < _STEPS_TO_SPLIT:
        return 1
    parts = max(1, min(_ENOUGH_TILES // tiles, steps // _LEAST_STEPS))
    return cdiv(steps, cdiv(steps, parts))  # the last part is not empty


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
        "A_TRANSPOSED": a_transposed, "B_TRANSPOSED": b_transposed,
        "ALIGN_M": align_m, "ALIGN_N": align_n, "ALIGN_K": align_k, "ALIGN_A": align_a, "ALIGN_B": align_b,
        "PRODUCT": product,
    }  # fmt: skip
    epilogue = {"HAS_BETA": beta != 0, "ACTIVATION": activation}
    sizes = (m // align_m, n // align_n, k // align_k, stride_a // align_a, stride_b // align_b)

    def run(config: _Config) -> None:
        tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
        steps = cdiv(k, config.block_k)
        parts = _split(tiles, steps)
        whole = parts == 1
        target = out if whole else out.new_empty((parts, m, n), dtype=acc_dtype(a.dtype))
        launch(
            _gemm_kernel, tiles * parts, a.device,
            target, a, b, beta if whole else 0.0, bias if whole else None, *sizes, cdiv(steps, parts),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=_GROUP_M,
            num_warps=config.num_warps, num_stages=config.num_stages, SPLIT=not whole,
            **constants, **(epilogue if whole else _NO_EPILOGUE),
        )  # fmt: skip
        if not whole:
            launch(
                _finish_kernel, cdiv(m * n, _FINISH_BLOCK), a.device, target, out, beta, bias,
                m * n // align_n, n // align_n, parts,
                ALIGN=align_n, BLOCK=_FINISH_BLOCK, num_warps=4, **epilogue,
            )  # fmt: skip

    configs = _configs(a.dtype, product.precision, m, n, k, aligned, beta != 0, capability(a.device))
    key = ("gemm", a.dtype, out.dtype, aligned, *constants.values(), *epilogue.values())
    run_first(key, configs, run, a.device)


@triton.jit(do_not_specialize=["aligned_m", "aligned_n", "aligned_k", "aligned_a", "aligned_b", "steps"])
def _gemm_kernel(
    out, a, b, beta: tl.float64, bias,
    aligned_m: tl.int64, aligned_n: tl.int64, aligned_k: tl.int64, aligned_a: tl.int64, aligned_b: tl.int64,
    steps,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, HAS_BETA: tl.constexpr,
    ALIGN_M: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_K: tl.constexpr,
    ALIGN_A: tl.constexpr, ALIGN_B: tl.constexpr,
    ACTIVATION: tl.constexpr, PRODUCT: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile of activation(``a`` @ ``b`` + ``beta`` * ``out`` + ``bias``), m x n, of depth k.

    ``aligned_m``, ``aligned_n`` and ``aligned_k``: the sizes divided by ``ALIGN_M``, ``ALIGN_N`` and
    ``ALIGN_K``, powers of two, so that the compiler knows that they are their multiples.
    ``aligned_a`` and ``aligned_b``: likewise the strides of the dimension that is not contiguous, the first
    one unless ``A_TRANSPOSED`` or ``B_TRANSPOSED``. ``GROUP_M``: neighbouring programs share so many rows of
    tiles. ``SPLIT``: a program adds up ``BLOCK_K`` terms ``steps`` times, others the next ones, and ``out``
    is as many matrices, one after the other.
    """
    acc: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    m, n, k = aligned_m * ALIGN_M, aligned_n * ALIGN_N, aligned_k * ALIGN_K
    stride_a, stride_b = aligned_a * ALIGN_A, aligned_b * ALIGN_B
    tiles_m = tl.full([], tl.cdiv(m, BLOCK_M), tl.int32)
    tiles_n = tl.full([], tl.cdiv(n, BLOCK_N), tl.int32)
    pid = tl.program_id(0)
    if SPLIT:
        part = pid // (tiles_m * tiles_n)
        pid -= part * (tiles_m * tiles_n)
    per_group = GROUP_M * tiles_n
    first_m = pid // per_group * GROUP_M
    in_group = pid % per_group
    group_size = tl.minimum(tiles_m - first_m, GROUP_M)
    rows = (first_m + in_group % group_size).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (in_group // group_size).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_exists = (rows < m)[:, None]
    column_exists = (columns < n)[None, :]

    depth = tl.arange(0, BLOCK_K)
    first, end = 0, k
    if SPLIT:
        first = part.to(tl.int64) * steps * BLOCK_K
        end = tl.minimum(first + tl.full([], steps, tl.int64) * BLOCK_K, k)
        a += first * stride_a if A_TRANSPOSED else first
        b += first if B_TRANSPOSED else first * stride_b
        out += part.to(tl.int64) * m * n
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
    for done in tl.range(first, end, BLOCK_K):
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


@triton.jit(do_not_specialize=["aligned_count", "aligned_columns", "parts"])
def _finish_kernel(
    partial_ptr, out, beta: tl.float64, bias, aligned_count, aligned_columns, parts,
    HAS_BETA: tl.constexpr, ACTIVATION: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """activation(the sum of the ``parts`` of a product + ``beta`` * ``out`` + ``bias``), in the parts' order.

    ``aligned_count`` and ``aligned_columns``: elements of a part and of a row, divided by ``ALIGN``.
    """
    count = tl.full([], aligned_count, tl.int32) * ALIGN
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = i < count
    total = tl.load(partial_ptr + i, mask=exists, other=0.0)
    for part in tl.range(1, parts):
        total += tl.load(partial_ptr + tl.full([], part, tl.int32) * count + i, mask=exists, other=0.0)
    if HAS_BETA:
        old = tl.load(out + i, mask=exists, other=0.0).to(total.dtype)
        total += old * tl.full([], beta, total.dtype)
    if bias is not None:
        column = i % (aligned_columns * ALIGN)
        total += tl.load(bias + column, mask=exists, other=0.0).to(total.dtype)
    total = activate(total, ACTIVATION, out.dtype.element_ty)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=exists)
