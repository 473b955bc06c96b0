"""Layers and fused steps as links of a chain (``chain.py``): the autograd function of each and its arguments.

A link runs what its layer's public function would run, without what that function checks anew at every call:
a chain takes inputs like those that passed the checks before.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import nn
from ..kinds import parse
from ..layouts import is_channels_last, lies_channels_last
from ..ops.avg_pool2d import AverageFunction
from ..ops.conv2d import Conv2dFunction
from ..ops.conv2d_max_pool2d import Conv2dMaxPool2dFunction, Pool, kernels_for
from ..ops.dropout import draw_seed
from ..ops.linear import LinearFunction
from ..ops.max_pool2d import MaxPool2dFunction, Windows
from ..ops.tools.convolution import Geometry
from ..ops.tools.windows import pair, stride_pair
from ..reference import conv2d as conv2d_formula
from ..reference import conv2d_max_pool2d as conv2d_max_pool2d_formula
from ..reference import linear as linear_formula
from ..reference import pooling as pooling_formula
from .steps import Conv2dMaxPool2dStep, Conv2dStep, LinearStep
from .swap import computing_type

#: What ``function.forward`` and ``formula`` get behind the input and the parameters.
Rest = tuple[Any, ...]
Call = Callable[[Tensor], Tensor]


class Link:
    """The base class. ``call`` is the layer or step that does the same by itself.

    ``reads`` names the attributes of each of ``modules`` that decide what the link does. They are looked at
    before every use; when one has changed, :meth:`prepare` makes of them :attr:`fixed`, or what :meth:`rest`
    needs.
    """

    function: Any
    #: The same as formulas of torch, of the same arguments.
    formula: Any
    #: Names of the parameters of the first module, in the order of the arguments.
    names: tuple[str, ...] = ()

    def __init__(self, call: Call, reads: dict[Module, tuple[str, ...]]) -> None:
        self.call, self.modules = call, list(reads)
        self.reads = [(module, attrgetter(*names)) for module, names in reads.items()]

    def state(self) -> list[Any]:
        """The attributes, as they are now."""
        return [read(module) for module, read in self.reads]

    #: The rest of the arguments where it is the same for all inputs.
    fixed: Rest | None = None

    def prepare(self, ops: SimpleNamespace | None) -> None:
        """Look at the attributes. ``ops`` are the kernels that the chain will run."""

    def rest(self, input: Tensor) -> Rest:
        """The rest of the arguments for this input."""
        raise NotImplementedError

    def suits(self, input: Tensor) -> bool:
        """Whether ``input`` lies as the function expects, and the attributes are such as it knows."""
        return input.dim() > 1 and input.is_contiguous()


class _Flatten(torch.autograd.Function):
    """Only for a chain, in which views have no gradient functions of their own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, *_: Any) -> Tensor:
        ctx.shape = input.shape
        return input.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        return (grad.reshape(ctx.shape),)


class FlattenLink(Link):
    """torch's Flatten of all but the batch."""

    function: Any = _Flatten
    formula: Any = staticmethod(lambda input: input.flatten(1))

    def __init__(self, call: Call, flatten: Any) -> None:
        super().__init__(call, {flatten: ("start_dim", "end_dim")})

    def suits(self, input: Tensor) -> bool:
        return self.state() == [(1, -1)] and super().suits(input)

    def rest(self, input: Tensor) -> Rest:
        return ()


class LinearLink(Link):
    """linear, activation, dropout."""

    function: Any = LinearFunction
    formula: Any = staticmethod(lambda *arguments: linear_formula.linear(*arguments[:-1]))
    names = ("weight", "bias")

    def __init__(self, call: Call, linear: Any, activation: str | None = None, dropout: Any = None) -> None:
        more = {} if dropout is None else {dropout: ("p", "training")}
        self._has_options = hasattr(type(linear), "activation")  # torch's class has not
        names = ("activation", "dropout_p", "training") if self._has_options else ("training",)
        super().__init__(call, {linear: names, **more})
        self._fused = activation

    def prepare(self, ops: SimpleNamespace | None) -> None:
        own, *dropout = self.state()
        activation, p, training = own if self._has_options else (None, 0.0, own)
        if dropout:
            ((p, training),) = dropout
        self._options = (p if training else 0.0, parse("linear", self._fused or activation), ops)
        self.fixed = None if self._options[0] > 0.0 else (None, *self._options)

    def rest(self, input: Tensor) -> Rest:
        return (draw_seed(input.device), *self._options)


_CONV = ("stride", "padding", "dilation", "groups", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def _pairs(*values: Any) -> list[Any]:
    return [pair("chain", "", value, 0) for value in values]


def _windows(state: Any) -> list[Any]:
    """Kernel, stride, padding, dilation and ceil mode of a pooling layer in this state."""
    kernel, stride, padding, dilation, ceil_mode, _ = state
    (kernel,) = _pairs(kernel)
    return [kernel, stride_pair("chain", stride, kernel), *_pairs(padding, dilation), ceil_mode]


def _is_image(input: Tensor) -> bool:
    """Whether ``input`` is a batch of images that no op takes for channels_last."""
    return (
        input.dim() == 4
        and input.is_contiguous()
        and not is_channels_last(input)
        and not lies_channels_last(input)
    )


class Conv2dLink(Link):
    """conv2d, activation."""

    function: Any = Conv2dFunction
    formula: Any = staticmethod(
        lambda input, weight, bias, residual, geometry, activation, ops: conv2d_formula.conv2d(
            *(input, weight, bias, residual, *geometry, activation)
        )
    )
    names = ("weight", "bias")

    def __init__(self, call: Call, conv: Any, activation: str | None = None, pool: Any = None) -> None:
        names = (*_CONV, "activation") if hasattr(type(conv), "activation") else _CONV
        super().__init__(call, {conv: names, **({} if pool is None else {pool: _POOL})})
        self._fused = activation

    def prepare(self, ops: SimpleNamespace | None) -> None:
        stride, padding, dilation, groups, _, *activation = self.state()[0]
        if not isinstance(padding, str):
            geometry = Geometry._make([*_pairs(stride, padding, dilation), groups])
            self.fixed = (None, geometry, parse("conv2d", self._fused or next(iter(activation), None)), ops)

    def suits(self, input: Tensor) -> bool:
        conv: Any = self.modules[0]
        return _is_image(input) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class Conv2dMaxPool2dLink(Conv2dLink):
    """conv2d, activation, max_pool2d."""

    function: Any = Conv2dMaxPool2dFunction
    formula: Any = staticmethod(
        lambda input, weight, bias, geometry, activation, pool, ops: (
            conv2d_max_pool2d_formula.conv2d_max_pool2d(input, weight, bias, (*geometry, activation), pool)
        )
    )

    def prepare(self, ops: SimpleNamespace | None) -> None:
        super().prepare(ops)
        self._pool = Pool._make(_windows(self.state()[1]))
        self.fixed = None if self.fixed is None else (*self.fixed[1:3], self._pool, ops)

    def suits(self, input: Tensor) -> bool:
        pool: Any = self.modules[1]
        return super().suits(input) and kernels_for(input, self._pool) is not None and not pool.return_indices


class MaxPool2dLink(Link):
    """max_pool2d."""

    function: Any = MaxPool2dFunction
    formula: Any = staticmethod(
        lambda input, windows, *others: pooling_formula.max_pool2d(*(input, *windows[:5], False))
    )

    def __init__(self, call: Call, pool: Any) -> None:
        super().__init__(call, {pool: _POOL})

    def prepare(self, ops: SimpleNamespace | None) -> None:
        self.fixed = (Windows._make([*_windows(self.state()[0]), False]), False, ops)

    def suits(self, input: Tensor) -> bool:
        pool: Any = self.modules[0]
        return _is_image(input) and not pool.return_indices


class AvgPool2dLink(Link):
    """avg_pool2d."""

    function: Any = AverageFunction
    formula: Any = staticmethod(
        lambda input, forward, options, *others: pooling_formula.avg_pool2d(input, *options[:-1])
    )

    def __init__(self, call: Call, pool: Any) -> None:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        super().__init__(call, {pool: names})

    def prepare(self, ops: SimpleNamespace | None) -> None:
        kernel, stride, padding, *options = self.state()[0]
        (kernel,) = _pairs(kernel)
        self._options = (kernel, stride_pair("chain", stride, kernel), *_pairs(padding), *options, False)
        self._ops = ops

    def suits(self, input: Tensor) -> bool:
        return _is_image(input)

    def rest(self, input: Tensor) -> Rest:
        ops: Any = self._ops
        options = self._options
        backward = (list(input.shape[2:]), *options)
        return (ops.avg_pool2d_forward, options, ops.avg_pool2d_backward, backward)


_MODULES: dict[type, Callable[[Call, Any], Link]] = {
    torch.nn.Flatten: FlattenLink,
    nn.Linear: LinearLink,
    nn.Conv2d: Conv2dLink,
    nn.MaxPool2d: MaxPool2dLink,
    nn.AvgPool2d: AvgPool2dLink,
}


def link_of(call: Any) -> Link | None:
    """``call``, a module or a fused step, as a link; None if there is none for it."""
    make = _MODULES.get(computing_type(call) if isinstance(call, Module) else type(call))
    if make is not None:
        return make(call, call)
    if type(call) is LinearStep:
        return LinearLink(call, call.linear, call.activation, call.dropout)
    if type(call) is Conv2dStep:
        return Conv2dLink(call, call.conv, call.activation)
    if type(call) is Conv2dMaxPool2dStep:
        return Conv2dMaxPool2dLink(call, call.conv, call.activation, call.pool)
    return None
