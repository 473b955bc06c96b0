"""Softmax modules: torch's classes with this library's functions."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["LogSoftmax", "Softmax"]


class Softmax(torch.nn.Softmax):
    """:class:`torch.nn.Softmax` through :func:`pyops.functional.softmax`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """:class:`torch.nn.LogSoftmax` through :func:`pyops.functional.log_softmax`; same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)
