"""The embedding module: torch's class with this library's function."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["Embedding"]


class Embedding(torch.nn.Embedding):
    """:class:`torch.nn.Embedding` through :func:`pyops.functional.embedding`: (*) to (*, embedding_dim)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
