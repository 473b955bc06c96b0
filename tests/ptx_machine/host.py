"""What stands between torch and the PTX machine: which memory kernels may touch, and how launches get there.

The C++ part is in ``host/``: an allocator of torch's, and the launcher of the emulated library.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.suite import native

from . import machine

FOLDER = Path(__file__).resolve().parent
CACHE_DIR = machine.CACHE_DIR

#: One call at a time: what kernels may touch is known to the machine, not to a thread.
_one_call = threading.RLock()


@functools.cache
def library() -> ctypes.CDLL:
    """The C++ part, built where needed and loaded; from then on torch's memory has guard zones.

    Raises:
        RuntimeError: the compiler failed.
    """
    from torch.utils import cpp_extension

    folders = cpp_extension.library_paths()
    path = native.compile_library(
        CACHE_DIR,
        "ptx_host",
        sorted((FOLDER / "host").glob("*.cpp")),
        headers=[FOLDER / "core" / "api.h", *(FOLDER.parent / "cuda_emulation").glob("*.h")],
        flags=["-O2", *(f"-isystem{include}" for include in cpp_extension.include_paths())],
        link_flags=[
            machine.library()._name,
            *(flag for folder in folders for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")),
            "-lc10",
        ],
    )
    loaded = ctypes.CDLL(str(path))
    loaded.ptx_launcher.restype = ctypes.c_void_p
    loaded.ptx_add_source.restype = ctypes.c_void_p
    loaded.ptx_add_source.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    loaded.ptx_bind.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    loaded.ptx_launches.restype = ctypes.c_uint64
    loaded.ptx_launches.argtypes = [ctypes.c_void_p]
    loaded.ptx_begin_call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    loaded.ptx_guard_memory()
    return loaded


@contextmanager
def lent(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Kernels may touch the storages of ``tensors``, and what torch allocates, until the context ends."""
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors) if s.nbytes()}
    pointers = (ctypes.c_uint64 * len(storages))(*storages.keys())
    sizes = (ctypes.c_uint64 * len(storages))(*storages.values())
    with _one_call:
        library().ptx_begin_call(pointers, sizes, len(storages))
        try:
            yield
        finally:
            library().ptx_end_call()
