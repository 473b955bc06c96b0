"""The PTX machine from Python: modules of PTX text whose kernels run on the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.suite import native
from tests.suite.processes import one_at_a_time

MACHINE_DIR = Path(__file__).resolve().parent
CACHE_DIR = MACHINE_DIR.parents[1] / "build" / "ptx_machine"

#: What instructions are counted as, in the order of ``ptx::Class``.
CLASSES = (
    *("integer", "float32", "float64", "half", "convert", "special", "move", "control"),
    *("load_global", "store_global", "load_shared", "store_shared", "async_copy", "tensor"),
    *("warp", "barrier", "atomic", "fence"),
)


#: On which cooperating blocks have to fit unless told otherwise: as many as the emulator has, so that host
#: code chooses the same launches.
MULTIPROCESSORS = 16


class Fault(RuntimeError):
    """A kernel broke a rule of the hardware, or the machine does not know what its PTX says."""


@dataclass(frozen=True)
class Counters:
    """What a launch did: instructions by class, of warps and threads, and its memory traffic."""

    warps: dict[str, int]
    threads: dict[str, int]
    load_requests: int
    load_sectors: int
    load_bytes: int
    store_requests: int
    store_sectors: int
    store_bytes: int
    shared_requests: int
    shared_wavefronts: int
    divergent_branches: int
    branches: int
    barriers: int
    tensor_flops: int
    blocks: int
    shared_least_wavefronts: int
    touched_sectors: int
    common_sectors: int
    footprint: int


@dataclass(frozen=True)
class Launch:
    """A launch that has ended well, and what it did."""

    module: str
    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    static_shared: int
    dynamic_shared: int
    cooperative: bool
    counters: Counters


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("max_dynamic_shared", ctypes.c_uint32),
        ("cooperative", ctypes.c_uint32),
        ("registers", ctypes.c_uint32),
        ("arguments", ctypes.POINTER(ctypes.c_char_p)),
        ("argument_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("n_arguments", ctypes.c_uint32),
    )


_SINGLE = tuple(name for name in Counters.__annotations__ if name not in ("warps", "threads"))


class _Counters(ctypes.Structure):
    _fields_ = (
        ("warps", ctypes.c_uint64 * len(CLASSES)),
        ("threads", ctypes.c_uint64 * len(CLASSES)),
        *((name, ctypes.c_uint64) for name in _SINGLE),
    )


_Listener = ctypes.CFUNCTYPE(
    None,
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Launch), ctypes.c_uint64, ctypes.POINTER(_Counters)),
)

missing_reason = native.missing_reason


def flags() -> list[str]:
    """Flags for the compiler."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text().split("\n\n")[0] if facts.exists() else platform.processor()
    kind = [line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))]
    processor = hashlib.sha256("".join(kind).encode()).hexdigest()[:8]
    return [
        *("-std=c++20", "-O3", "-Wextra", f"-I{MACHINE_DIR}"),
        "-Wno-restrict",  # GCC 12 warns of its own std::string
        # Arithmetic as it is written. Loops over lanes may compute what they do not keep.
        *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
        # The name of the processor is there for the hash: what was made for one must not run on another.
        *("-march=native", f"-DPTX_BUILT_FOR=0x{processor}u"),
    ]


def build() -> Path:
    """Compile the machine, unless it is there.

    Raises:
        RuntimeError: no compiler, or it failed; the message is its output.
    """
    folders = [MACHINE_DIR / "core", MACHINE_DIR / "numbers"]
    with one_at_a_time(CACHE_DIR / "lock"):
        return native.compile_library(
            CACHE_DIR,
            "ptx_machine",
            [path for folder in folders for path in sorted(folder.glob("*.cpp"))],
            headers=[path for folder in folders for path in folder.glob("*.h")],
            flags=flags(),
        )


@functools.cache
def library() -> ctypes.CDLL:
    """The machine's C interface (``core/api.h``)."""
    c = ctypes.CDLL(str(build()))
    pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
    signatures = {
        "ptx_error": (text, ()),
        "ptx_load": (pointer, (text, text)),
        "ptx_unload": (None, (pointer,)),
        "ptx_entries": (text, (pointer,)),
        "ptx_decode": (ctypes.c_int, (pointer, text)),
        "ptx_run": (ctypes.c_int, (pointer, text, ctypes.POINTER(_Launch))),
        "ptx_resident_blocks": (ctypes.c_int64, (pointer, text, integer, integer, integer)),
        "ptx_static_shared": (ctypes.c_uint64, (pointer, text)),
        "ptx_allocated": (None, (pointer, ctypes.c_uint64)),
        "ptx_freed": (None, (pointer,)),
        "ptx_set_seed": (None, (ctypes.c_uint64,)),
        "ptx_count": (None, (ctypes.c_int,)),
        "ptx_counters": (ctypes.POINTER(_Counters), ()),
        "ptx_sample": (None, (ctypes.c_uint64,)),
        "ptx_set_multiprocessors": (None, (integer,)),
        "ptx_listen": (None, (_Listener,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(c, name)
        function.restype, function.argtypes = result, list(arguments)
    return c


def fault() -> Fault:
    """What the last failed call of this thread said."""
    return Fault(library().ptx_error().decode())


class Module:
    """The kernels of one PTX text.

    Args:
        ptx: the text, as a compiler made it.
        name: what faults call it.

    Raises:
        Fault: the text is no PTX, or PTX that the machine does not know.
    """

    def __init__(self, ptx: str, name: str = "ptx") -> None:
        self.ptx = ptx
        self.handle = library().ptx_load(ptx.encode(), name.encode())
        if not self.handle:
            raise fault()
        self.entries = tuple(library().ptx_entries(self.handle).decode().split())

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            library().ptx_unload(self.handle)

    def decode(self, entry: str) -> None:
        """Find out whether the machine knows every instruction of ``entry``.

        Raises:
            Fault: it does not.
        """
        if library().ptx_decode(self.handle, entry.encode()):
            raise fault()

    def run(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        *,
        shared: int = 0,
        max_shared: int = 48 << 10,
        cooperative: bool = False,
        registers: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Args:
            entry: one of :attr:`entries`.
            grid: blocks in x, y, z; what is left out is 1.
            block: threads of a block in x, y, z.
            arguments: the bytes of each parameter.
            shared: bytes of dynamic shared memory.
            max_shared: what the kernel may take of it.
            cooperative: whether all blocks have to be resident at once.
            registers: of a thread, for how many blocks are resident; 0 when unknown.

        Raises:
            Fault: what the kernel did wrong, and where.
        """
        launch = _Launch()
        launch.grid[:] = [*grid, 1, 1][:3]
        launch.block[:] = [*block, 1, 1][:3]
        launch.dynamic_shared, launch.max_dynamic_shared = shared, max_shared
        launch.cooperative, launch.registers = cooperative, registers
        launch.arguments = (ctypes.c_char_p * len(arguments))(*arguments)
        launch.argument_bytes = (ctypes.c_uint32 * len(arguments))(*map(len, arguments))
        launch.n_arguments = len(arguments)
        if library().ptx_run(self.handle, entry.encode(), ctypes.byref(launch)):
            raise fault()


def allocated(address: int, nbytes: int) -> None:
    """Let kernels touch ``nbytes`` at ``address`` until :func:`freed` has been called as often."""
    library().ptx_allocated(address, nbytes)


def freed(address: int) -> None:
    library().ptx_freed(address)


def set_seed(seed: int) -> None:
    """Shuffle the order of warps, blocks and diverged lanes; 0: in order, one block at a time."""
    library().ptx_set_seed(seed)


def count(on: bool) -> None:
    """Count sectors and bank conflicts in later launches, which then take longer."""
    library().ptx_count(on)


def counters() -> Counters:
    """Of this thread's last launch."""
    return _read(library().ptx_counters().contents)


def _read(c: _Counters) -> Counters:
    by_class = (dict(zip(CLASSES, part, strict=True)) for part in (c.warps, c.threads))
    return Counters(*by_class, *(getattr(c, name) for name in _SINGLE))


@contextmanager
def record_launches(*, sample: int = 0, multiprocessors: int = MULTIPROCESSORS) -> Iterator[list[Launch]]:
    """Count all that is launched in the context, from wherever; it comes in a list, in order.

    Args:
        sample: of a larger grid only so many blocks run, spread over it, unless blocks wait for each other;
            0: all. What such launches leave in memory is not their result.
        multiprocessors: of the GPU on which cooperating blocks have to fit.
    """
    launches: list[Launch] = []

    def listener(module: bytes, entry: bytes, launch: Any, static_shared: int, done: Any) -> None:
        of = launch.contents
        launches.append(
            Launch(
                module.decode(),
                entry.decode(),
                (*of.grid,),
                (*of.block,),
                of.registers,
                static_shared,
                of.dynamic_shared,
                bool(of.cooperative),
                _read(done.contents),
            )
        )

    kept = _Listener(listener)
    count(True)
    library().ptx_sample(sample)
    library().ptx_set_multiprocessors(multiprocessors)
    library().ptx_listen(kept)
    try:
        yield launches
    finally:
        library().ptx_listen(_Listener())
        library().ptx_set_multiprocessors(MULTIPROCESSORS)
        library().ptx_sample(0)
        count(False)
