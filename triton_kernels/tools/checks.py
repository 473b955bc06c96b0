"""What a launcher checks of its arguments, so that kernels stay inside of the memory they get.

Options are checked by pyops.ops.
"""

from collections.abc import Sequence

import torch

from pyops.kinds import MEAN, NONE, SUM
from pyops.layouts import dense_order

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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


def check_packed(tensor: torch.Tensor, op: str, name: str) -> None:
    """Raise RuntimeError unless the elements fill their memory, in whatever order of dimensions."""
    if dense_order(tensor) is None:
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
