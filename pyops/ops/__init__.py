"""The ops: one module each, with schema, fake kernel, autograd and public functions.

Importing this package imports them all. A module's ``__all__`` names the functions that
:mod:`pyops.functional` has of it.
"""

from .._modules import load as _load

#: The modules, in alphabetical order.
MODULES = _load(__name__)
