"""A tensor times a number, as a module."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["ToyScale"]


class ToyScale(torch.nn.Module):
    """:func:`pyops.functional.toy_scale`; any shape, same shape out."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input: Tensor) -> Tensor:
        return F.toy_scale(input, self.factor)
