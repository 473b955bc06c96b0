"""The backend ``ptx``: the kernels as nvcc compiled them, run by the PTX machine on CPU tensors.

The host code is that of the emulated library (``tests/cuda_emulation``), which g++ compiled from the same
sources. It knows a kernel by its address; the library's symbol table says which kernel of which source that
is, and the PTX that nvcc put into the CUDA library has an entry of the same name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyops
from tests.cuda_emulation import build as emulation
from tests.suite import cuda_library, native

from . import elf, host

BACKEND = "ptx"
NAMESPACE = "pyops_ptx"

_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_ANONYMOUS = re.compile(r"(\d+)(?=_GLOBAL__N_|_INTERNAL_)")


def missing_reason() -> str | None:
    """Why the backend cannot run here; None when it can."""
    return native.missing_reason() or cuda_library.missing_reason()


# ------------------------------------------------------------------------------------------------- the PTX


@functools.cache
def ptx_files() -> dict[str, Path]:
    """By source the PTX that the CUDA library has of it, of the oldest architecture. Extracted once."""
    with cuda_library.LIBRARY.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = host.CACHE_DIR / f"nvcc_{digest}"
    if not folder.exists():
        work = host.CACHE_DIR / f"nvcc_{digest}.{os.getpid()}"
        work.mkdir(parents=True)
        cuda_library.cuobjdump("-xptx", "all", cuda_library.LIBRARY, directory=work)
        for old in host.CACHE_DIR.glob(f"nvcc_{'?' * 16}"):
            shutil.rmtree(old)
        with contextlib.suppress(OSError):  # another process was first
            work.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.ptx"), key=lambda p: _age(p.name)):
        files.setdefault(path.name.partition(".")[0], path)
    return files


def _age(name: str) -> int:
    """The number of the architecture that ``name`` tells of, such as sm_80 or softmax.sm_80.ptx."""
    found = re.search(r"sm_(\d+)", name)
    assert found, name
    return int(found[1])


def normalised(mangled: str) -> str:
    """``mangled`` with g++'s name of the anonymous namespace, where nvcc has one of its own per source."""
    while found := next((m for m in _ANONYMOUS.finditer(mangled) if m[0] != "12"), None):
        mangled = f"{mangled[: found.start()]}12_GLOBAL__N_1{mangled[found.end() + int(found[0]) :]}"
    return mangled


@functools.cache
def entries() -> dict[str, dict[str, str]]:
    """By source the entries of its PTX, by their normalised names."""
    return {
        source: {normalised(name): name for name in _ENTRY.findall(path.read_text())}
        for source, path in ptx_files().items()
    }


# --------------------------------------------------------------------------------------- addresses of kernels


@dataclass(frozen=True)
class Kernel:
    """``offset`` is its address in the emulated library, ``entry`` its name in the PTX of ``source``."""

    offset: int
    source: str
    entry: str
    registers: int


@functools.cache
def kernels() -> list[Kernel]:
    """Every kernel that both libraries have.

    A function of an anonymous namespace belongs to the source that the symbol table names. The others have
    names that are unique, and the same code in each source.
    """
    registers = _registers()
    found = []
    for function in elf.functions(emulation.build_ops()):
        local = "_GLOBAL__N_1" in function.name
        for source, names in entries().items():
            if function.name in names and (not local or function.source == f"{source}.cu"):
                key = (source, function.name)
                found.append(Kernel(function.offset, source, names[function.name], registers[key]))
                break
    return found


def _registers() -> dict[tuple[str, str], int]:
    """Registers of a thread by source and normalised name, on the oldest architecture."""
    usages = cuda_library.usages()
    oldest = min((u.architecture for u in usages), key=_age)
    return {(u.source, normalised(u.kernel)): u.registers for u in usages if u.architecture == oldest}


@functools.cache
def _emulated() -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulation.build_ops()))
    library.pyops_emulation_use.restype = ctypes.c_void_p
    library.pyops_emulation_use.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def _base() -> int:
    """Where the emulated library lies in memory."""
    known = "pyops_emulation_use"
    offset = next(f.offset for f in elf.functions(emulation.build_ops()) if f.name == known)
    return (ctypes.cast(_emulated()[known], ctypes.c_void_p).value or 0) - offset


def _bind(source: str, path: Path) -> None:
    """Let the launcher take the kernels of ``source`` from the PTX in ``path``."""
    launcher = host.library()
    module = launcher.ptx_add_source(source.encode(), str(path).encode())
    for kernel in kernels():
        if kernel.source == source:
            launcher.ptx_bind(_base() + kernel.offset, module, kernel.entry.encode(), kernel.registers)


def launches() -> dict[Kernel, int]:
    """How often each kernel has run in this process."""
    count = host.library().ptx_launches
    return {kernel: count(_base() + kernel.offset) for kernel in kernels()}


@contextlib.contextmanager
def replaced(source: str, edit: Callable[[str], str]) -> Iterator[None]:
    """Kernels of ``source`` run from the PTX that ``edit`` makes of nvcc's, until the context ends."""
    load()
    text = ptx_files()[source].read_text()
    edited = edit(text)
    assert edited != text, "the PTX has not what was to be edited"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(edited)
        file.flush()
        _bind(source, Path(file.name))
        try:
            yield
        finally:
            _bind(source, ptx_files()[source])


# --------------------------------------------------------------------------------------------- the backend


@functools.cache
def load() -> None:
    """Build what is not built, load it and register the backend ``ptx``. Later calls do nothing.

    Raises:
        RuntimeError: no compiler, no CUDA library, or no cuobjdump.
    """
    reason = missing_reason()
    if reason is not None:
        raise RuntimeError(f"nvcc's PTX cannot be run: {reason}")
    emulation.load()
    for source, path in ptx_files().items():
        _bind(source, path)
    pyops.backends.register_backend(BACKEND, NAMESPACE)
    for name in pyops._library.op_names(NAMESPACE):
        emulated = f"{emulation.NAMESPACE}::{name}"
        if torch._C._dispatch_has_kernel_for_dispatch_key(emulated, "CPU"):
            function = getattr(getattr(torch.ops, emulation.NAMESPACE), name).default
            torch.library.impl(f"{NAMESPACE}::{name}", "CPU")(_on_the_machine(function))


def _on_the_machine(function: Callable[..., Any]) -> Callable[..., Any]:
    """The emulated op ``function`` with its launches taken to the machine."""
    use, launcher = _emulated().pyops_emulation_use, host.library().ptx_launcher()

    def run(*args: Any, **kwargs: Any) -> Any:
        with host.lent(_tensors((*args, *kwargs.values()))):
            before = use(launcher)
            try:
                return function(*args, **kwargs)
            finally:
                use(before)

    return run


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)
