"""Convolution modules: torch's classes with this library's functions and extras."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch.nn
from torch import Tensor

from .. import functional as F
from ..kinds import parse
from ..ops.tools.packed import forget

__all__ = ["Conv2d", "LazyConv2d"]

# What does not depend on the class: pyops.convert calls it on layers of torch's class, too.

Convolution: TypeAlias = torch.nn.Conv1d | torch.nn.Conv2d


def convolve(
    layer: Convolution,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The layer's convolution of ``input`` by this weight and bias, and what follows."""
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        input = torch.nn.functional.pad(
            input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode
        )
        padding = 0
    function: Any = F.conv1d if isinstance(layer, torch.nn.Conv1d) else F.conv2d
    output: Tensor = function(
        input,
        weight,
        bias,
        layer.stride,
        padding,
        layer.dilation,
        layer.groups,
        activation=activation,
        residual=residual,
    )
    return output


def train(layer: Convolution, mode: bool = True) -> torch.nn.Module:
    """``layer.train(mode)``; packed weights are for inference only."""
    if mode:
        forget(layer.weight)
    return torch.nn.Module.train(layer, mode)


def apply_to_tensors(layer: Convolution, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """``layer._apply(fn)``, which may move the weights to another device."""
    forget(layer.weight)
    return torch.nn.Module._apply(layer, fn, recurse)


class Conv2d(torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d` through :func:`pyops.functional.conv2d`.

    Extra argument: ``activation``, the name of the activation that follows; ``residual`` goes to the call.
    Shapes: input (N, C, H, W) or (C, H, W); output (N, K, OH, OW) or (K, OH, OW).
    """

    # Of the class, too: an instance that pyops.convert has made of torch's has no such attribute.
    activation: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
    ) -> None:
        parse("Conv2d", activation)
        layout = (stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, kernel_size, *layout, device, dtype)
        self.activation = activation

    def train(self, mode: bool = True) -> Any:
        return train(self, mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return apply_to_tensors(self, fn, recurse)

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        if self.activation is None and residual is None:  # as torch calls it, which others may override
            return self._conv_forward(input, self.weight, self.bias)
        return self._conv_forward(input, self.weight, self.bias, self.activation, residual)

    def _conv_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        return convolve(self, input, weight, bias, activation, residual)

    def extra_repr(self) -> str:
        return super().extra_repr() + activation_repr(self)


class LazyConv2d(torch.nn.LazyConv2d):
    """:class:`torch.nn.LazyConv2d`; it becomes a :class:`Conv2d` at the first call."""

    cls_to_become = Conv2d
    activation: str | None = None

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
    ) -> None:
        parse("LazyConv2d", activation)
        layout = (stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(out_channels, kernel_size, *layout, device, dtype)
        if activation is not None:
            self.activation = activation

    # The first call looks these up before the class changes.
    forward = Conv2d.forward
    _conv_forward = Conv2d._conv_forward

    def extra_repr(self) -> str:
        return super().extra_repr() + activation_repr(self)


def activation_repr(module: Any) -> str:
    """What a layer's ``repr`` says of its activation."""
    return "" if module.activation is None else f", activation={module.activation!r}"
