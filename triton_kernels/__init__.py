"""Triton backend: every op of pyops as Triton kernels, registered as ``pyops_triton::<op>``.

Importing this package registers the ops. :mod:`pyops.backends` does so the first time Triton is asked
for, so that ``import pyops`` needs no Triton. With ``TRITON_INTERPRET=1`` in the environment the same
kernels run in Triton's interpreter, on CPU tensors.

An op is a file, or a family of ops a folder. ``tools`` is what they share: it registers nothing.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    if not _module.name.startswith(f"{__name__}.tools"):
        importlib.import_module(_module.name)
