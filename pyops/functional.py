"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`.

They are what the modules of :mod:`pyops.ops` name in ``__all__``; ``functional.pyi`` says so to type checkers
and editors (``make stubs``). What has no kernel here is torch's own.
"""

from typing import Any

import torch.nn.functional
from torch.fx import wrap as _wrap

from . import ops as _ops
from ._modules import names_of_both as _names_of_both
from ._modules import public_names as _public_names
from ._modules import torchs as _torchs

_functions = _public_names(_ops.MODULES)
globals().update(_functions)
__all__ = list(_functions)

# torch.fx keeps them as nodes, also where modules of pyops.nn call them.
for _name in __all__:
    _wrap(_name)


def __getattr__(name: str) -> Any:
    return _torchs(torch.nn.functional, __name__, name)


def __dir__() -> list[str]:
    return _names_of_both(torch.nn.functional, globals())
