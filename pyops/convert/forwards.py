"""What a converted module calls in the place of its class's forward: an object in its own ``__dict__``.

So the class stays the one that others decide by: ``type(m) is nn.Linear`` of initialisers and quantisers,
``m.__module__`` of torch.fx. The object is copied, pickled and replicated as the module is.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from inspect import signature
from types import MethodType
from typing import Any
from weakref import ref

import torch.nn
from torch import Tensor
from torch.nn import Module

from .. import functional as F
from .. import nn
from ..nn.batch_norm import normalize
from ..nn.conv2d import apply_to_tensors, convolve, train
from ..nn.loss import cross_entropy, linear_cross_entropy

#: What pyops.convert may add to a module's ``__dict__``.
NAMES = frozenset(
    {"forward", "train", "_apply", "extra_repr", "__getstate__", "__setstate__"}
    | {"_replicate_for_data_parallel", "__prepare_scriptable__", "_slow_forward", "_pyops_conversion"}
)


class Method:
    """``function`` as a method of one module, for the module's ``__dict__``.

    It does not keep the module in memory: a cycle would, until garbage is collected.
    """

    def __init__(self, module: Module, function: Callable[..., Any]) -> None:
        self.of, self.function = ref(module), function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.of()
        return self.function(gone() if module is None else module, *args, **kwargs)

    def __reduce__(self) -> Any:
        return Method, (self.of(), self.function)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.of)

    @property
    def __wrapped__(self) -> Any:
        """For those who look at its signature or source: the method that the class has in its place."""
        module: Any = self.of()
        return MethodType(type(module).forward, module)

    def __getattr__(self, name: str) -> Any:
        """What else they look for: ``__code__``, ``__func__``, ``__name__``."""
        if name.startswith("__") and "of" in vars(self):
            return getattr(self.__wrapped__, name)
        raise AttributeError(name)


def gone() -> Any:
    raise ReferenceError("the module whose forward this is no longer exists: keep the module, and call it")


class Forward(Method):
    """The forward of pyops's class for ``kind``, one of torch.nn, on a module whose class stays torch's.

    When the module gets a class with another forward, or the class another forward, it runs that one.
    """

    def __init__(self, module: Module, kind: type[Module]) -> None:
        super().__init__(module, _function_of(kind))
        self.kind, self.instead_of = kind, kind.forward
        attach(module, _METHODS.get(kind, {}))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.of()
        function = type(module).forward if module is not None else gone()
        if function is self.instead_of:
            function = self.function
        return function(module, *args, **kwargs)

    def __reduce__(self) -> Any:
        return type(self), (self.of(), self.kind)


class UnaryForward(Forward):
    """The same of a forward that takes its input only, which makes the call a little shorter."""

    def __call__(self, input: Tensor) -> Any:
        module: Any = self.of()
        function = type(module).forward if module is not None else gone()
        if function is self.instead_of:
            function = self.function
        return function(module, input)


def forward_for(module: Module, kind: type[Module]) -> Forward:
    """The forward of a module to convert, of the class ``kind`` but for what others derived from it."""
    unary = len(signature(_function_of(kind)).parameters) == 2
    return (UnaryForward if unary else Forward)(module, kind)


def attach(module: Module, methods: dict[str, Callable[..., Any]]) -> None:
    """Put methods on a module, and those by which no copy of it gets another's methods."""
    for name, function in {**_COPYING, **methods}.items():
        module.__dict__[name] = Method(module, function)


def detach(module: Module) -> None:
    """The inverse, of what is still there: a forward of ours, and the other methods."""
    for name, value in list(vars(module).items()):
        if type(value) is Method or (name == "forward" and isinstance(value, Method)):
            del module.__dict__[name]


def _state(module: Module) -> Any:
    """What a copy of the module, or a file, gets: it makes methods of its own with its forward.

    ``copy.copy`` copies no values, so that its copy runs the forward of the class.
    """
    state: Any = type(module).__getstate__(module)
    if not isinstance(state, dict):
        return state
    shallow = sys._getframe(2).f_code is copy.copy.__code__
    if shallow:
        return {k: v for k, v in state.items() if not isinstance(v, Method) and k != "_pyops_conversion"}
    return {k: v for k, v in state.items() if type(v) is not Method}


def _replica(module: Module) -> Module:
    """The replica for another device, whose ``__dict__`` is a copy of the module's."""
    replica: Module = type(module)._replicate_for_data_parallel(module)
    detach(replica)
    forward = module.__dict__.get("forward")
    if isinstance(forward, Forward):
        replica.__dict__["forward"] = type(forward)(replica, forward.kind)
    return replica


def _slow_forward(module: Module, *args: Any, **kwargs: Any) -> Any:
    """What a module calls while torch.jit.trace runs it: the forward of its class, so that files of the trace
    need no pyops.
    """
    put = module.__dict__["forward"]
    if not isinstance(put, Method):  # around ours
        return type(module)._slow_forward(module, *args, **kwargs)
    del module.__dict__["forward"]
    try:
        return type(module)._slow_forward(module, *args, **kwargs)
    finally:
        module.__dict__["forward"] = put


def _refuse_to_script(module: Module) -> Any:
    """What torch.jit.script calls before it compiles a module."""
    raise TypeError(
        "torch.jit.script cannot compile what pyops.convert has put in a model: "
        "call pyops.revert(model) first, or use torch.jit.trace"
    )


_COPYING: dict[str, Callable[..., Any]] = {
    "__getstate__": _state,
    "_replicate_for_data_parallel": _replica,
    "__prepare_scriptable__": _refuse_to_script,
    "_slow_forward": _slow_forward,
}


# Forwards without what pyops.nn's modules may do besides: modules of torch's classes have no options for it.


def _linear(layer: Any, input: Tensor) -> Tensor:
    return F.linear(input, layer.weight, layer.bias)


def _convolution(layer: Any, input: Tensor) -> Tensor:
    if "_conv_forward" in layer.__dict__:  # put there since
        output: Tensor = layer._conv_forward(input, layer.weight, layer.bias)
        return output
    return convolve(layer, input, layer.weight, layer.bias)


def _batch_norm(layer: Any, input: Tensor) -> Tensor:
    return normalize(layer, input)


def _dropout(layer: Any, input: Tensor) -> Tensor:
    return F.dropout(input, layer.p, layer.training, layer.inplace)


def _cross_entropy(loss: Any, input: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(loss, input, target)


def _linear_cross_entropy(loss: Any, input: Tensor, target: Tensor) -> Tensor:
    return linear_cross_entropy(loss, input, target)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Linear": _linear,
    "LazyLinear": _linear,
    "Conv1d": _convolution,
    "LazyConv1d": _convolution,
    "Conv2d": _convolution,
    "LazyConv2d": _convolution,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "LazyBatchNorm1d": _batch_norm,
    "LazyBatchNorm2d": _batch_norm,
    "Dropout": _dropout,
    "CrossEntropyLoss": _cross_entropy,
    "LinearCrossEntropyLoss": _linear_cross_entropy,
}
_KEPT_WEIGHTS: dict[str, Callable[..., Any]] = {"train": train, "_apply": apply_to_tensors}
#: What else pyops's class does otherwise than torch's.
_METHODS: dict[type[Module], dict[str, Callable[..., Any]]] = {
    torch.nn.Conv1d: _KEPT_WEIGHTS,
    torch.nn.LazyConv1d: _KEPT_WEIGHTS,
    torch.nn.Conv2d: _KEPT_WEIGHTS,
    torch.nn.LazyConv2d: _KEPT_WEIGHTS,
}


def _function_of(kind: type[Module]) -> Callable[..., Any]:
    own: Callable[..., Any] = getattr(nn, kind.__name__).forward
    return _FUNCTIONS.get(kind.__name__, own)
