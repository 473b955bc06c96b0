"""What every op of the Triton backend shares: checks, launching, tiles over rows, exact reductions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NONE, MEAN, SUM = 0, 1, 2

# ---------------------------------------------------------------------------------------------- checks
# After these, every pointer a kernel gets may be followed. Options are checked by pyops.ops.


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and losses of ``dtype`` tensors are computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_floating(tensor: torch.Tensor, op: str, name: str) -> None:
    if tensor.dtype not in FLOATING:
        raise RuntimeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_dense(
    tensor: torch.Tensor,
    op: str,
    name: str,
    *,
    like: torch.Tensor,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
) -> None:
    """Raise RuntimeError unless ``tensor`` is contiguous, on the device of ``like``, of dtype and shape."""
    if tensor.device != like.device:
        raise RuntimeError(f"{op}: {name} must be on {like.device}, got {tensor.device}")
    if tensor.dtype != dtype:
        raise RuntimeError(f"{op}: {name} must have dtype {dtype}, got {tensor.dtype}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_reduction(reduction: int, op: str) -> None:
    if reduction not in (NONE, MEAN, SUM):
        raise RuntimeError(f"{op}: reduction must be 0 (none), 1 (mean) or 2 (sum), got {reduction}")


# ------------------------------------------------------------------------------------------- launching


@dataclass(frozen=True)
class Launch:
    """One kernel launch as :func:`record_launches` saw it."""

    kernel: Any
    args: tuple[Any, ...]
    meta: dict[str, Any]


@dataclass
class _Recording:
    capability: tuple[int, int]
    launches: list[Launch]


_recording: _Recording | None = None


@contextmanager
def record_launches(capability: tuple[int, int]) -> Iterator[list[Launch]]:
    """Collect launches instead of running them, as if on a GPU of this compute capability.

    With tensors on the meta device this yields exactly what the launchers would have compiled, which
    is how kernels are compiled and inspected on machines without a GPU.
    """
    global _recording
    previous, _recording = _recording, _Recording(capability, [])
    try:
        yield _recording.launches
    finally:
        _recording = previous


def is_recording() -> bool:
    return _recording is not None


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **meta: Any) -> None:
    """Run ``programs`` instances of ``kernel`` on ``device``'s current stream.

    Keyword arguments are the kernel's compile-time constants and the compiler's options.
    """
    if _recording is not None:
        _recording.launches.append(Launch(kernel, args, meta))
    elif device.type == "cuda":
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **meta)
    else:
        # The interpreter boxes integers in arrays, which NumPy 2.4 no longer takes as loop bounds. It also
        # boxes what a kernel assigns: loop bounds have to be arguments, as they are.
        boxed = (tl.constexpr(arg) if isinstance(arg, int) else arg for arg in args)
        kernel[(programs,)](*boxed, **meta)


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability that tile sizes are chosen for."""
    if _recording is not None:
        return _recording.capability
    return _cuda_capability(device) if device.type == "cuda" else (8, 0)


@cache
def _cuda_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# -------------------------------------------------------------------------------------- tiles over rows
# A tensor [outer, classes, inner] holds outer * inner rows; element c of row (n, l) is at
# (n * classes + c) * inner + l. One program takes `block_rows` rows and walks over their classes in
# steps of `block_classes`. With inner == 1 the classes of a row are neighbours in memory, otherwise the
# rows are: the tile is wide in that direction, so that warps read whole cache lines either way.


@dataclass(frozen=True)
class RowTiles:
    """How a program's share of the rows of [outer, classes, inner] looks; the same for every batch size.

    ``classes`` and ``inner`` are what the kernel gets: the one that is contiguous in memory is divided
    by ``align``, a power of two, and multiplied again in the kernel. Triton by itself would notice
    only multiples of 16, and read the rows of a [N, 1000] tensor element by element.
    """

    row_major: bool
    block_rows: int
    block_classes: int
    class_blocks: int
    num_warps: int
    classes: int
    inner: int
    align: int

    def programs(self, outer: int) -> int:
        if self.row_major:
            return cdiv(outer, self.block_rows)
        return outer * cdiv(self.inner * self.align, self.block_rows)

    @property
    def meta(self) -> dict[str, Any]:
        """Constants of a kernel that works on these tiles."""
        return {
            "ROW_MAJOR": self.row_major,
            "ALIGN": self.align,
            "STAGES": 1 if self.class_blocks <= 1 else 2,
            "BLOCK_R": self.block_rows,
            "BLOCK_C": self.block_classes,
            "num_warps": self.num_warps,
        }


@cache
def row_tiles(classes: int, inner: int, max_classes: int, tile_size: int = 2048) -> RowTiles:
    """Choose tiles of some ``tile_size`` elements, more for long rows; at most ``max_classes`` classes."""
    row_major = inner == 1
    block_classes = min(next_power_of_2(classes), max_classes)
    if row_major:
        block_rows = max(1, min(tile_size // block_classes, 128))
    else:
        block_rows = min(next_power_of_2(inner), 64)
        if block_rows * block_classes > 2 * tile_size:
            block_classes = tile_size // block_rows
    contiguous = classes if row_major else inner
    align = min(contiguous & -contiguous, 16) or 1
    return RowTiles(
        row_major=row_major,
        block_rows=block_rows,
        block_classes=block_classes,
        class_blocks=cdiv(classes, block_classes),
        # 16 elements a thread: two 16-byte loads of a 16-bit type.
        num_warps=min(16, max(4, next_power_of_2(block_rows * block_classes // 512))),
        classes=classes // align if row_major else classes,
        inner=inner if row_major else inner // align,
        align=align,
    )


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@triton.jit
def locate_rows(tile, outer, classes, inner, ROW_MAJOR: tl.constexpr, BLOCK_R: tl.constexpr):
    """Index of each row of a tile, offset of its first element, and whether the row exists."""
    tile = tile.to(tl.int64)
    lane = tl.arange(0, BLOCK_R)
    if ROW_MAJOR:
        row = tile * BLOCK_R + lane
        start = row * classes
        exists = row < outer
    else:
        tiles_per_n = tl.cdiv(inner, BLOCK_R)
        n = tile // tiles_per_n
        column = (tile - n * tiles_per_n) * BLOCK_R + lane
        row = n * inner + column
        start = n * classes * inner + column
        exists = (column < inner) & (n < outer)
    return row, start, exists


@triton.jit
def locate_classes(first, classes, inner, ROW_MAJOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """Index of each class from ``first`` on, its offset within a row, and whether the class exists."""
    lane = tl.arange(0, BLOCK_C)
    c = first + lane
    offset = c if ROW_MAJOR else c.to(tl.int64) * inner
    return c, offset, c < classes


# -------------------------------------------------------------------------------- blocks of elements
# Elementwise kernels: one program takes ELEMENTS neighbouring elements. Its accesses are masked in the last
# program only, because Triton splits masked accesses unless it knows that 16 divides the number of elements.

ELEMENTS = 1024


def check_packed(tensor: torch.Tensor, op: str, name: str) -> None:
    """Raise RuntimeError unless the elements fill their memory, in whatever order of dimensions."""
    order = sorted(range(tensor.dim()), key=lambda i: (-tensor.stride(i), i))
    if not tensor.permute(order).is_contiguous():
        raise RuntimeError(
            f"{op}: {name} must be dense (contiguous after some permutation), got strides {tensor.stride()}"
        )


def check_same_order(tensor: torch.Tensor, op: str, name: str, like: torch.Tensor) -> None:
    """Raise RuntimeError unless ``tensor`` is like ``like`` in dtype, device, shape and relevant strides."""
    if tensor.device != like.device or tensor.dtype != like.dtype or tensor.shape != like.shape:
        raise RuntimeError(
            f"{op}: {name} must have shape {tuple(like.shape)} and dtype {like.dtype} on {like.device}, got "
            f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )
    relevant = [i for i in range(like.dim()) if like.shape[i] > 1] if like.numel() else []
    if any(tensor.stride(i) != like.stride(i) for i in relevant):
        raise RuntimeError(f"{op}: {name} must have strides {like.stride()}, got {tensor.stride()}")


def launch_elementwise(kernel: Any, tensors: Sequence[torch.Tensor], **meta: Any) -> None:
    """Run ``kernel(*pointers, n, **meta, BLOCK)`` over the elements of equally laid out ``tensors``."""
    n = tensors[0].numel()
    if n > 0:
        launch(kernel, cdiv(n, ELEMENTS), tensors[0].device, *tensors, n, BLOCK=ELEMENTS, num_warps=4, **meta)


@triton.jit
def block_of_elements(n, BLOCK: tl.constexpr):
    """Indices of this program's elements, and whether all of them exist."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    return first + tl.arange(0, BLOCK), first + BLOCK <= n


@triton.jit
def load_elements(pointer, i, n, full):
    """Elements ``i`` of ``pointer``, in the dtype they are computed in; 0 past the end."""
    acc: tl.constexpr = tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
    if full:  # noqa: SIM108 (a conditional expression would evaluate both)
        x = tl.load(pointer + i)
    else:
        x = tl.load(pointer + i, mask=i < n, other=0.0)
    return x.to(acc)


@triton.jit
def store_elements(pointer, i, n, full, x):
    y = x.to(pointer.dtype.element_ty)
    if full:
        tl.store(pointer + i, y)
    else:
        tl.store(pointer + i, y, mask=i < n)


# ------------------------------------------------------------------------------------------ arithmetic

INFINITY: tl.constexpr = tl.constexpr(float("inf"))
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950216293335)  # float32 nearest to log2(e) ...
_LOG2_E_REST: tl.constexpr = tl.constexpr(1.9259629911266175e-08)  # ... and what is missing
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x, storage: tl.constexpr):
    """exp(x), accurate enough for results stored as ``storage``.

    For 16-bit results and float64, ``tl.exp`` is. In float32 it is exp2(x * log2 e), whose rounded
    product costs up to |x| ulp; here the product's rounding error is carried along.
    """
    if storage == tl.float32:
        # Outside these bounds exp is 0 or infinity, and products with infinity would give NaN.
        x = tl.clamp(x, -104.0, 89.0, propagate_nan=tl.PropagateNan.ALL)
        product = x * _LOG2_E
        rest = tl.fma(x, _LOG2_E, -product) + x * _LOG2_E_REST
        return tl.exp2(product) * (1.0 + rest * _LN_2)
    else:
        return tl.exp(x)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded (Triton's float32 ``/`` is not)."""
    if y.dtype.scalar == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


# Same formulas as csrc/math/softmax.h.


@triton.jit
def shift_of(maximum):
    """What to subtract before exp: never -inf, because -inf - -inf is NaN."""
    return tl.where(maximum == -INFINITY, 0.0, maximum)


@triton.jit
def finish_log_sum(maximum, total):
    """log(total); NaN for a row of only -inf, which has no distribution."""
    return tl.where(maximum == -INFINITY, float("nan"), tl.log(total))


@triton.jit
def log_probability(x, maximum, log_sum):
    """Maximum and log-sum stay apart so that a large common offset of the logits rounds nothing away."""
    return (x - maximum) - log_sum


# ------------------------------------------------------------------------------------------ reductions
# Programs leave partial sums, which are added up in an order that only depends on their number.

_MERGE_BLOCK = 1024
_MERGE_IN_ONE_PROGRAM = 16 * _MERGE_BLOCK


def reduce_partials(
    partials: torch.Tensor,
    total: torch.Tensor | None,
    total_weight: torch.Tensor | None,
    *,
    mean: bool = False,
) -> None:
    """Sum the rows of ``partials`` [1 or 2, P] into the scalars ``total`` and ``total_weight``.

    ``mean`` divides ``total`` by the second sum. An output that is None is not written.
    """
    kinds, count = partials.shape
    while count > _MERGE_IN_ONE_PROGRAM:
        blocks = cdiv(count, _MERGE_BLOCK)
        merged = partials.new_empty((kinds, blocks))
        launch(
            _merge_kernel, kinds * blocks, partials.device, partials, merged, count, blocks,
            BLOCK=_MERGE_BLOCK, num_warps=4,
        )  # fmt: skip
        partials, count = merged, blocks
    launch(
        _finish_kernel, 1, partials.device, partials, total, total_weight, count,
        MEAN=mean, BLOCK=_MERGE_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit
def _merge_kernel(partials, merged, count: tl.int64, blocks: tl.int64, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    kind = pid // blocks
    i = (pid - kind * blocks) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(partials + kind * count + i, mask=i < count, other=0.0)
    tl.store(merged + pid, tl.sum(values, axis=0))


@triton.jit
def _finish_kernel(partials, total, total_weight, count: tl.int64, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    if total_weight is not None:
        weight_sum = _sum_all(partials + count, count, BLOCK)
        tl.store(total_weight, weight_sum)
    if total is not None:
        value = _sum_all(partials, count, BLOCK)
        if MEAN:
            value = divide(value, weight_sum)
        tl.store(total, value)


@triton.jit
def _sum_all(values, count, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=values.dtype.element_ty)
    for first in tl.range(0, count, BLOCK):
        i = first + lane
        total += tl.load(values + i, mask=i < count, other=0.0)
    return tl.sum(total, axis=0)
