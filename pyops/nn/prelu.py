"""PReLU as a module: torch's class with this library's function."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["PReLU"]


class PReLU(torch.nn.PReLU):
    """:class:`torch.nn.PReLU` through :func:`pyops.functional.prelu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)
