"""Launching kernels, and recording launches instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton.language as tl

from pyops._library import triton_is_interpreted


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vector_alignment(size: int, itemsize: int) -> int:
    """The largest power of two that divides ``size``, at most the elements of a 16-byte load.

    A kernel that gets ``size`` divided by it, and it as a constant, tells the compiler what divides ``size``;
    by itself Triton would ask only for 16.
    """
    return min(size & -size, 16 // itemsize) or 1


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
        kernel[(programs,)](*(map(_constant, args) if triton_is_interpreted() else args), **meta)


def _constant(arg: Any) -> Any:
    """``arg``, or the arguments of a named tuple, as the interpreter has to get them.

    It boxes integers in arrays, which NumPy 2.4 no longer takes as loop bounds. It also boxes what a kernel
    assigns: loop bounds have to be arguments, as they are.
    """
    if isinstance(arg, int):
        return tl.constexpr(arg)
    return type(arg)(*map(_constant, arg)) if isinstance(arg, tuple) else arg


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability that tile sizes are chosen for."""
    if _recording is not None:
        return _recording.capability
    return _cuda_capability(device) if device.type == "cuda" else (8, 0)


@cache
def _cuda_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
