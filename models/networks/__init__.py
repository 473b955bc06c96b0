"""The networks, a file for each family. All files here are imported, so that each registers its networks."""

from pyops._modules import load as _load

_load(__name__)
