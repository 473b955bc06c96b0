"""Modules by the names of :mod:`torch.nn`, with the same arguments and ``state_dict`` keys.

They are what the files of this folder name in ``__all__``; ``__init__.pyi`` says so to type checkers and
editors (``make stubs``). What has no kernel here is torch's own: ``pyops.nn.X`` is then ``torch.nn.X``, so
that a network can take its layer library as a parameter (``layers=pyops.nn`` or ``layers=torch.nn``).
"""

from typing import Any

import torch.nn

from .._modules import load as _load
from .._modules import public_names as _public_names

_classes = _public_names(_load(__name__))
globals().update(_classes)
__all__ = list(_classes)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torch.nn, name)
