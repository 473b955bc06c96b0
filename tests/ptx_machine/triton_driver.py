"""A Triton driver that runs what Triton compiled for a GPU on CPU tensors, in the PTX machine.

Triton compiles for an A100 (sm_80) as ever, up to PTX; the assembler is left out. A launch hands the kernel's
PTX to the machine. Triton must not be interpreted: ``TRITON_INTERPRET`` has to be unset when it is imported.
It works with Triton 3.6 and 3.7, whose launchers differ, but not in what they are given.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget

from . import machine

CACHE_DIR = Path(__file__).resolve().parents[2] / "build" / "ptx_machine" / "triton"

CAPABILITY = 80
_WARP = 32
_STATIC_SHARED = 48 << 10  # of a launch that does not ask for more
_PROPERTIES = {
    "max_shared_mem": 163 << 10,
    "max_num_regs": 65536,
    "multiprocessor_count": 108,
    "warpSize": _WARP,
    "arch": CAPABILITY,
}


# ------------------------------------------------------------------------------------- arguments


def _integer(size: int, signed: bool) -> Callable[[Any], bytes]:
    """Refuses what does not fit, which the launchers for GPUs cut off."""
    return lambda value: int(value).to_bytes(size, "little", signed=signed)


def _pointer(value: Any) -> bytes:
    address = 0 if value is None else value if isinstance(value, int) else value.data_ptr()
    return struct.pack("<Q", address)


def _fp32(value: float) -> bytes:
    return bytes(ctypes.c_float(value))  # infinity where it is too large


#: How a kernel's scalars are passed, by their type in Triton's signature.
_ENCODE: dict[str, Callable[[Any], bytes]] = {
    "u1": _integer(1, signed=False),
    **{f"i{bits}": _integer(bits // 8, signed=True) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": _integer(bits // 8, signed=False) for bits in (8, 16, 32, 64)},
    "fp16": functools.partial(struct.pack, "<e"),
    "bf16": lambda value: _fp32(value)[2:],
    "fp32": _fp32,
    "fp64": functools.partial(struct.pack, "<d"),
}


def _encode(kind: str, value: Any) -> bytes:
    if kind.startswith("*"):
        return _pointer(value)
    if kind not in _ENCODE:
        raise TypeError(f"the PTX machine passes no argument of type {kind}")
    return _ENCODE[kind](value)


def _flat(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Types and values of the arguments that reach the kernel: tuples taken apart, constants left out."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


# -------------------------------------------------------------------------------------- launching


class _Memory:
    """Context in which kernels may touch the storages of ``tensors``, and nothing else of torch's."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        storages = (tensor.untyped_storage() for tensor in tensors)
        self._blocks = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}

    def __enter__(self) -> None:
        for address, size in self._blocks.items():
            machine.allocated(address, size)

    def __exit__(self, *_: object) -> None:
        for address in self._blocks:
            machine.freed(address)


class Launcher:
    """What ``CompiledKernel.run`` calls: ``launcher_cls`` of the driver."""

    def __init__(self, src: Any, metadata: Any) -> None:
        if metadata.num_ctas != 1:
            raise ValueError(f"the PTX machine has no clusters: num_ctas is {metadata.num_ctas}")
        self._kinds = list(src.signature.values())
        self._metadata = metadata

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: machine.Module,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Callable[[Any], None] | None,
        exit_hook: Callable[[Any], None] | None,
        *values: Any,
    ) -> None:
        if enter_hook is not None:
            enter_hook(launch_metadata)
        programs = grid_x * grid_y * grid_z
        if programs > 0:
            self._run((grid_x, grid_y, grid_z), function, list(_flat(self._kinds, values)))
        if exit_hook is not None:
            exit_hook(launch_metadata)

    def _run(
        self, grid: tuple[int, int, int], module: machine.Module, arguments: list[tuple[str, Any]]
    ) -> None:
        meta = self._metadata
        programs = grid[0] * grid[1] * grid[2]
        scratch = [
            torch.empty(programs * size, dtype=torch.uint8) if size else None
            for size in (meta.global_scratch_size, meta.profile_scratch_size)
        ]
        arguments = [*arguments, *(("*u8", each) for each in scratch)]
        with _Memory([value for _, value in arguments if isinstance(value, torch.Tensor)]):
            module.run(
                meta.name,
                grid,
                (meta.num_warps * _WARP, 1, 1),
                [_encode(kind, value) for kind, value in arguments],
                shared=meta.shared,
                max_shared=max(meta.shared, _STATIC_SHARED),
                cooperative=meta.launch_cooperative_grid,
            )


def _load_binary(name: str, ptx: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
    """Module, function, registers, spilled bytes and most threads; the assembler would know the middle."""
    module = machine.Module(ptx.decode(), name)
    return module, module, 0, 0, 1024


class Driver:
    """The driver: one device, an A100 as far as the compiler is told, whose memory is the CPU's.

    Of the methods of Triton's ``DriverBase`` it has those that compiling and launching ask for.
    """

    def __init__(self) -> None:
        self.launcher_cls = Launcher
        self.utils = SimpleNamespace(
            load_binary=_load_binary, get_device_properties=lambda device: dict(_PROPERTIES)
        )

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        if device != 0:
            raise ValueError(f"the PTX machine is device 0, there is no device {device}")

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, _WARP)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


# ----------------------------------------------------------------------------------- the compiler


def _stop_at_ptx() -> None:
    """Replace Triton's compiler for NVIDIA's GPUs by one that leaves the assembler out."""
    nvidia = backends["nvidia"]

    class Compiler(nvidia.compiler):  # type: ignore[name-defined, misc]
        def __init__(self, target: Any) -> None:
            super().__init__(target)
            self.binary_ext = "ptx"

        def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
            super().add_stages(stages, options, language)
            del stages["cubin"]

        def hash(self) -> str:  # names the cached files: those of the whole compiler are others
            return f"{super().hash()}-ptx"

    backends["nvidia"] = Backend(Compiler, nvidia.driver)


@functools.cache
def activate() -> None:
    """Compile Triton kernels for the machine from now on, and run them in it.

    Raises:
        RuntimeError: Triton is interpreted, or has been imported with its interpreter on.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("Triton is interpreted: unset TRITON_INTERPRET before Triton is imported")
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE_DIR))
    _stop_at_ptx()
    triton.runtime.driver.set_active(Driver())
