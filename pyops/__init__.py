"""pyops: fused training kernels for PyTorch, in C++, CUDA C++ and Triton behind one contract."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import _command
from ._version import __version__

_root = _Path(__file__).resolve().parents[1]
if (_root / "csrc").is_dir() and (_root / "models").is_dir():
    # A source checkout: pyops.models, pyops.triton_kernels and pyops.benchmarks are its top-level folders.
    __path__.append(str(_root))

if _TYPE_CHECKING or not _command.waits:
    from . import functional, memory, nn, ops, optim, precision
    from ._flops import watch as _watch_flop_counter
    from ._info import info
    from ._library import load_libraries as _load_libraries
    from .backends import (
        _bind_loaded,
        _from_environment,
        available_backends,
        get_backend,
        set_backend,
        use_backend,
    )
    from .convert import conversion_report, convert, revert
    from .cuda_graph import graphed_step

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
    "optim",
    "precision",
    "revert",
    "set_backend",
    "use_backend",
]
