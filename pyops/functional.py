"""The public functions: names, arguments and defaults as in :mod:`torch.nn.functional`.

They are what the modules of :mod:`pyops.ops` name in ``__all__``; ``functional.pyi`` says so to type checkers
and editors (``make stubs``).
"""

from torch.fx import wrap as _wrap

from . import ops as _ops
from ._modules import public_names as _public_names

_functions = _public_names(_ops.MODULES)
globals().update(_functions)
__all__ = list(_functions)

# torch.fx keeps them as nodes, also where modules of pyops.nn call them.
for _name in __all__:
    _wrap(_name)
