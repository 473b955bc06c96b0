"""Modules by the names of :mod:`torch.nn`, with the same arguments and ``state_dict`` keys.

What has no kernel here is torch's own: ``pyops.nn.X`` is then ``torch.nn.X``, so that a network can take
its layer library as a parameter (``layers=pyops.nn`` or ``layers=torch.nn``).
"""

from typing import Any

import torch.nn

from .activation import LogSoftmax, Softmax
from .conv import Conv2d
from .loss import CrossEntropyLoss, LinearCrossEntropyLoss, NLLLoss

__all__ = ["Conv2d", "CrossEntropyLoss", "LinearCrossEntropyLoss", "LogSoftmax", "NLLLoss", "Softmax"]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torch.nn, name)
