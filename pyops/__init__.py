"""pyops: fused training kernels for PyTorch, in C++, CUDA C++ and Triton behind one contract."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parents[1]
if (_root / "csrc").is_dir() and (_root / "models").is_dir():
    # A source checkout: pyops.models, pyops.triton_kernels and pyops.benchmarks are its top-level folders.
    __path__.append(str(_root))

from . import functional, memory, nn, ops, optim, precision  # noqa: E402, F401
from ._flops import watch as _watch_flop_counter  # noqa: E402
from ._info import __version__, info  # noqa: E402
from ._library import load_libraries as _load_libraries  # noqa: E402
from .backends import (  # noqa: E402
    _bind_loaded,
    _from_environment,
    available_backends,
    get_backend,
    set_backend,
    use_backend,
)
from .convert import conversion_report, convert, revert  # noqa: E402
from .cuda_graph import graphed_step  # noqa: E402

_load_libraries()
_bind_loaded()
_from_environment()
_watch_flop_counter()

__all__ = [
    "__version__",
    "available_backends",
    "conversion_report",
    "convert",
    "functional",
    "get_backend",
    "graphed_step",
    "info",
    "memory",
    "nn",
    "ops",
    "revert",
    "set_backend",
    "use_backend",
]
