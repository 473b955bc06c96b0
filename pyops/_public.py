"""All that ``pyops`` makes public, with the kernels' libraries loaded."""

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

__all__ = [
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

_load_libraries()
_bind_loaded()
_from_environment()
_watch_flop_counter()
