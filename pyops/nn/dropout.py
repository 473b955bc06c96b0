"""The dropout module: torch's class with this library's function."""

import torch.nn
from torch import Tensor

from .. import functional as F
from ..kinds import Activation

__all__ = ["Dropout"]


class Dropout(torch.nn.Dropout):
    """:class:`torch.nn.Dropout` through :func:`pyops.functional.dropout`; any shape, same shape out.

    ``activation`` is applied before dropping, in the same pass, in evaluation mode as well; ``bias`` and
    ``residual`` go to the call.
    """

    activation: str | Activation | None = None

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, activation: str | Activation | None = None
    ) -> None:
        super().__init__(p, inplace)
        self.activation = activation

    def forward(self, input: Tensor, *, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return F.dropout(
            input,
            self.p,
            self.training,
            self.inplace,
            bias=bias,
            activation=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + activation
