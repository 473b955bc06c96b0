"""Linear layers: torch's classes with this library's function and what may follow it."""

from __future__ import annotations

import torch.nn
from torch import Tensor

from .. import functional as F
from ..kinds import parse

__all__ = ["LazyLinear", "Linear"]


class Linear(torch.nn.Linear):
    """:class:`torch.nn.Linear` through :func:`pyops.functional.linear`; (*, in) to (*, out).

    Extra arguments: ``activation`` (a name) and ``dropout_p``, explained there. They are not parameters of
    the ``state_dict``.
    """

    activation: str | None = None
    dropout_p: float = 0.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        _set_options(self, activation, dropout_p)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            # As torch's, it does not look at its mode unless there is something to drop.
            dropout_p=self.dropout_p if self.dropout_p and self.training else 0.0,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _options_repr(self)


class LazyLinear(torch.nn.LazyLinear):
    """:class:`torch.nn.LazyLinear`; it becomes a :class:`Linear` at the first call."""

    cls_to_become = Linear
    activation: str | None = None
    dropout_p: float = 0.0

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__(out_features, bias, device, dtype)
        _set_options(self, activation, dropout_p)

    # The first call looks this up before the class changes.
    forward = Linear.forward

    def extra_repr(self) -> str:
        return super().extra_repr() + _options_repr(self)


def _set_options(module: Linear | LazyLinear, activation: str | None, dropout_p: float) -> None:
    name = type(module).__name__
    parse(name, activation)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{name}: dropout_p must be between 0 and 1, got {dropout_p}")
    # Without what follows, the module stays as torch's, its __dict__ and repr included.
    if activation is not None:
        module.activation = activation
    if dropout_p != 0.0:
        module.dropout_p = dropout_p


def _options_repr(module: Linear | LazyLinear) -> str:
    text = "" if module.activation is None else f", activation={module.activation!r}"
    return text if module.dropout_p == 0.0 else f"{text}, dropout_p={module.dropout_p}"
