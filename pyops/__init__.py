"""pyops: fused training kernels for PyTorch, in C++, CUDA C++ and Triton behind one contract."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._command import is_command as _is_command
from ._version import __version__

_root = _Path(__file__).resolve().parents[1]
if (_root / "csrc").is_dir() and (_root / "models").is_dir():
    # A source checkout: pyops.models, pyops.triton_kernels and pyops.benchmarks are its top-level folders.
    __path__.append(str(_root))

if _TYPE_CHECKING:
    from ._public import (
        available_backends,
        conversion_report,
        convert,
        functional,
        get_backend,
        graphed_step,
        info,
        memory,
        nn,
        ops,
        optim,
        precision,
        revert,
        set_backend,
        use_backend,
    )

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


def _make_public() -> None:
    """Import what is public: torch and the kernels, which take a second."""
    from . import _public

    # Set here, since `convert` is a module, too, which takes the place of the function where it is imported.
    globals().update({name: getattr(_public, name) for name in _public.__all__})


if not _TYPE_CHECKING:  # checkers would take every name for one that there is

    def __getattr__(name: str) -> _Any:
        """What is public, in the ``pyops`` command, which begins without it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _make_public()
        return globals()[name]


if not _is_command():
    _make_public()
