"""Activation modules: torch's classes with this library's functions."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class ReLU(torch.nn.ReLU):
    """:class:`torch.nn.ReLU` through :func:`pyops.functional.relu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU` through :func:`pyops.functional.leaky_relu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """:class:`torch.nn.Sigmoid` through :func:`pyops.functional.sigmoid`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """:class:`torch.nn.Tanh` through :func:`pyops.functional.tanh`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class SELU(torch.nn.SELU):
    """:class:`torch.nn.SELU` through :func:`pyops.functional.selu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.selu(input, self.inplace)


class ELU(torch.nn.ELU):
    """:class:`torch.nn.ELU` through :func:`pyops.functional.elu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace)


class Softplus(torch.nn.Softplus):
    """:class:`torch.nn.Softplus` through :func:`pyops.functional.softplus`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class GELU(torch.nn.GELU):
    """:class:`torch.nn.GELU` through :func:`pyops.functional.gelu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate)


class SiLU(torch.nn.SiLU):
    """:class:`torch.nn.SiLU` through :func:`pyops.functional.silu`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, self.inplace)


class Hardswish(torch.nn.Hardswish):
    """:class:`torch.nn.Hardswish` through :func:`pyops.functional.hardswish`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input, self.inplace)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """:class:`torch.nn.Hardsigmoid` through :func:`pyops.functional.hardsigmoid`; any shape."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    """:class:`torch.nn.Hardtanh` through :func:`pyops.functional.hardtanh`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)


class ReLU6(torch.nn.ReLU6):
    """:class:`torch.nn.ReLU6` through :func:`pyops.functional.hardtanh`; any shape, same shape out."""

    def forward(self, input: Tensor) -> Tensor:
        # As torch's: of attributes, which may be changed.
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)
