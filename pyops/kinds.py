"""The numbers by which the raw ops know activations, elementwise losses, recurrent cells and reductions.

This is where they are numbered. The enums of C++ (``csrc/math/activation.h``, ``loss.h``, ``recurrent.h`` and
``csrc/binding/tensor.h``) and the constants of Triton repeat the numbers, and a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

IDENTITY, RELU, LEAKY_RELU, SIGMOID, TANH, SELU, SOFTPLUS = range(7)
ELU, GELU, GELU_TANH, SILU, HARDSWISH, HARDTANH, HARDSIGMOID = range(7, 14)
ACTIVATIONS = range(14)

MSE, L1, HUBER, SMOOTH_L1, BCE_WITH_LOGITS = LOSSES = range(5)

RNN_TANH, RNN_RELU, LSTM, GRU = CELLS = range(4)

NONE, MEAN, SUM = REDUCTIONS = range(3)

_FROM_OUTPUT = frozenset({IDENTITY, RELU, LEAKY_RELU, SIGMOID, TANH, SELU, ELU, HARDTANH})


#: An activation in the schema of a raw op, in the order of :class:`Activation`.
ACTIVATION_SCHEMA = "int kind, float alpha, float beta"


class Activation(NamedTuple):
    """An activation as the raw ops take it: its number and its parameters.

    ``alpha`` is the slope of leaky_relu, alpha of elu, beta of softplus and hardtanh's least value; ``beta``
    is softplus's threshold and hardtanh's greatest value.
    """

    kind: int
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def from_output(self) -> bool:
        """Whether the derivative is a formula of the output: no other tensor has to be kept.

        Not softplus: at its threshold, input and output leave the smooth part at different values. Not
        leaky_relu and elu with a negative parameter, whose output does not tell the input's sign.
        """
        return self.kind in _FROM_OUTPUT and (self.alpha >= 0 or self.kind not in (LEAKY_RELU, ELU))

    @property
    def survives_scaling(self) -> bool:
        """Whether an output that dropout has scaled still tells the derivative.

        hardtanh's does not: scaled and scaled back, its ends are no longer met exactly.
        """
        return self.kind != HARDTANH

    def keeps_output(self, dtype: torch.dtype) -> bool:
        """Whether backward should get the output of this dtype, and not the input, as its saved tensor.

        16 bits of elu's and selu's output near saturation do not hold the slope, which is the distance from
        it; as in torch, the input is kept then.
        """
        return self.from_output and (self.kind not in (SELU, ELU) or dtype.itemsize > 2)


_BY_NAME = {
    "relu": Activation(RELU),
    "leaky_relu": Activation(LEAKY_RELU, 0.01),
    "sigmoid": Activation(SIGMOID),
    "tanh": Activation(TANH),
    "selu": Activation(SELU),
    "softplus": Activation(SOFTPLUS, 1.0, 20.0),
    "elu": Activation(ELU, 1.0),
    "gelu": Activation(GELU),
    "gelu_tanh": Activation(GELU_TANH),
    "silu": Activation(SILU),
    "hardswish": Activation(HARDSWISH),
    "relu6": Activation(HARDTANH, 0.0, 6.0),
    "hardtanh": Activation(HARDTANH, -1.0, 1.0),
    "hardsigmoid": Activation(HARDSIGMOID),
}
_IDENTITY = Activation(IDENTITY)


def parse(function: str, activation: str | None) -> Activation:
    """The activation of that name with torch's default parameters; None is the identity.

    Raises:
        ValueError: there is no such activation; the message, in the name of ``function``, lists them.
    """
    if activation is None:
        return _IDENTITY
    found = _BY_NAME.get(activation) if isinstance(activation, str) else None
    if found is None:
        names = ", ".join(map(repr, _BY_NAME))
        raise ValueError(f"{function}: activation must be None or one of {names}, got {activation!r}")
    return found
