"""Modules by the names of :mod:`torch.nn`, with the same arguments and ``state_dict`` keys.

They are what the files of this folder name in ``__all__``; ``__init__.pyi`` says so to type checkers and
editors (``make stubs``). What has no kernel here is torch's own: ``pyops.nn.X`` is then ``torch.nn.X``, so
that a network can take its layer library as a parameter (``layers=pyops.nn`` or ``layers=torch.nn``).
"""

import re
import sys
from typing import Any

import torch.nn

from .. import functional
from .._modules import load as _load
from .._modules import names_of_both as _names_of_both
from .._modules import public_names as _public_names
from .._modules import torchs as _torchs

_classes = _public_names(_load(__name__))
globals().update(_classes)
__all__ = list(_classes)


# As torch.nn.functional, so that `import pyops.nn.functional as F` works.
sys.modules[f"{__name__}.functional"] = functional

# What holds no layers is torch's: `from pyops.nn.utils import clip_grad_norm_` works.
for _name, _module in list(sys.modules.items()):
    if re.match(r"torch\.nn\.(init|parallel|parameter|utils)(\.|$)", _name):
        sys.modules[_name.replace("torch.nn", __name__, 1)] = _module


def __getattr__(name: str) -> Any:
    return _torchs(torch.nn, __name__, name)


def __dir__() -> list[str]:
    return _names_of_both(torch.nn, globals())
