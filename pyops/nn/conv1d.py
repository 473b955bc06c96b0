"""One-dimensional convolution modules: torch's classes with this library's functions and extras."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn

from ..kinds import parse
from .conv2d import Conv2d, activation_repr

__all__ = ["Conv1d", "LazyConv1d"]


class Conv1d(torch.nn.Conv1d):
    """:class:`torch.nn.Conv1d` through :func:`pyops.functional.conv1d`.

    Extra argument: ``activation``, the name of the activation that follows; ``residual`` goes to the call.
    Shapes: input (N, C, L) or (C, L); output (N, K, OL) or (K, OL).
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
        parse("Conv1d", activation)
        layout = (stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, kernel_size, *layout, device, dtype)
        self.activation = activation

    # A layer's dimensions are those of its arguments.
    train = Conv2d.train
    _apply = Conv2d._apply
    forward = Conv2d.forward
    _conv_forward = Conv2d._conv_forward

    def extra_repr(self) -> str:
        return super().extra_repr() + activation_repr(self)


class LazyConv1d(torch.nn.LazyConv1d):
    """:class:`torch.nn.LazyConv1d`; it becomes a :class:`Conv1d` at the first call."""

    cls_to_become = Conv1d
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
        parse("LazyConv1d", activation)
        layout = (stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(out_channels, kernel_size, *layout, device, dtype)
        if activation is not None:
            self.activation = activation

    # The first call looks these up before the class changes.
    forward = Conv1d.forward
    _conv_forward = Conv1d._conv_forward

    def extra_repr(self) -> str:
        return super().extra_repr() + activation_repr(self)
