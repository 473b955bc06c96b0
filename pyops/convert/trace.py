"""What a module's forward does, as a graph: :mod:`torch.fx`, made strict.

fx runs a module's forward once, on stand-ins for its inputs, and records what happens to them. Anything else
that forward reads or does is lost, or frozen as it was at that moment. Here such a forward is refused
(:class:`Untraceable`), or what it read is recorded (:attr:`Trace.reads`), so that the graph is used only
while it is still right.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from threading import get_ident
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
import torch.fx
from torch.fx import Graph, Node, Proxy
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

from .. import functional
from .forwards import NAMES
from .frames import Frames, closures, forward_of, is_own
from .surroundings import Questions, Read, context, random_state
from .swap import conversion_of, has_own_forward, is_leaf, subclass


class Untraceable(Exception):
    """The forward of ``module`` cannot be written down as a graph; the message says why."""

    def __init__(self, module: Module, reason: str) -> None:
        super().__init__(reason)
        self.module = module


@dataclass
class Trace:
    """The graph of ``module``'s forward. ``inlined``: the modules whose forward is part of it, itself first;
    ``visible``: these and containers, whose children forward may have gone through. ``hidden``: names of
    attributes of an inlined module's class that forward read, which the module itself must not have.

    The ``meta`` of each node has under ``"callers"`` the inlined modules in whose forward it is, outermost
    first.
    """

    module: Module
    graph: Graph
    inlined: list[Module]
    visible: list[Module]
    reads: list[Read]
    hidden: dict[Module, set[str]]

    def called(self, node: Node) -> Module | None:
        """The module that ``node`` calls, if it calls one."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


def hooks_of(module: Module) -> list[dict[int, Any]]:
    """The dicts of hooks that a call of ``module`` runs, empty or not."""
    return [
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    ]


def is_opaque(module: Module) -> bool:
    """Whether ``module`` stays a call in the graph, and its forward is not traced."""
    conversion = conversion_of(module)
    return (
        is_leaf(module)
        or has_own_forward(module)
        or any(hooks_of(module))
        or (conversion is not None and conversion.not_traced is not None)
    )


def visible(module: Module, opaque: Callable[[Module], bool]) -> Iterator[Module]:
    """``module`` and the modules in it, each once, without opaque ones and what is in these."""
    seen, stack = {module}, [module]
    while stack:
        current = stack.pop()
        yield current
        for child in current._modules.values():
            if child is not None and child not in seen and not opaque(child):
                seen.add(child)
                stack.append(child)


#: Modules that cannot be traced in this mode: each costs a trace to find.
Untraced = set[tuple[Module, bool]]


def trace(
    module: Module, opaque: Callable[[Module], bool] = is_opaque, untraced: Untraced | None = None
) -> Trace:
    """The graph of ``module``'s forward and of the forwards that it calls, except for opaque modules.

    A submodule that cannot be traced is left as a call, and added to ``untraced``.

    Raises:
        Untraceable: ``module``'s own forward cannot be traced.
    """
    untraced = set() if untraced is None else untraced
    while True:
        try:
            return _Tracer(lambda m: (m, m.training) in untraced or opaque(m)).run(module)
        except Untraceable as error:
            found = (error.module, error.module.training)
            if error.module is module or found in untraced:
                raise Untraceable(module, str(error)) from error
            untraced.add(found)


class _Proxy(Proxy):
    """A stand-in that tells ``+=`` from ``+``; to fx they are the same."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    setattr(_Proxy, f"__i{_name}__", _augmented(getattr(operator, f"i{_name}")))


class _RefuseOps(TorchDispatchMode):
    """Refuses to compute outside of the graph, because that would happen only once."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"forward computes {function} from something else than its input")


# What every module has belongs to torch.nn, except for its mode.
_INTERNAL = frozenset(vars(Module())) - {"training"} | NAMES | {"__dict__", "__class__"}

_CONSTANTS = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size,
    torch.memory_format, FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, Module,
)  # fmt: skip


def _is_constant(value: Any) -> bool:
    """Whether ``value`` cannot change, so that it is enough to see later that it is still there."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANTS)


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opaque: Callable[[Module], bool]) -> None:
        modules: Any = (math, functional)  # its stub declares a tuple of one
        super().__init__(autowrap_modules=modules)
        self._opaque = opaque
        self._watched: dict[Module, None] = {}
        self._callers: list[Module] = []
        self._reads: dict[tuple[int, str], Read] = {}
        self._inlined: dict[Module, None] = {}
        self._context: Any = None
        self._thread = get_ident()

    def run(self, module: Module) -> Trace:
        self._callers = [module]
        self._inlined[module] = None
        self._watched = dict.fromkeys(visible(module, self._opaque))
        before = random_state()
        try:
            self._context = context()
            with Questions() as questions, self._watch(), _RefuseOps():
                for scope in self._scopes():
                    questions.answer_in(scope)
                with Frames(questions.answer_in) as frames:
                    graph = self.trace(module)
        except Untraceable:
            raise
        except Exception as error:  # a forward may raise anything when it runs on stand-ins
            raise Untraceable(self._callers[-1], _first_line(error)) from error
        if random_state() != before:
            raise Untraceable(module, "forward draws random numbers in Python")
        for inlined in self._inlined:  # of which no profiler told, if there is another one
            for forward in forward_of(inlined):
                if is_own(forward.__module__):
                    frames.note(forward.__code__, forward.__globals__, inlined)
        named, hidden = frames.reads()
        if frames.problem is not None:
            raise Untraceable(module, frames.problem)
        for inlined in self._inlined:
            hidden.setdefault(inlined, set()).add("forward")
        forwards = [(type(m), "forward", type(m).forward) for m in self._inlined]
        attributes = [value for _, _, value in self._reads.values()]
        functions = chain(attributes, *map(forward_of, self._inlined))
        reads = [*self._reads.values(), *forwards, *named, *closures(functions)]
        return Trace(module, graph, list(self._inlined), list(self._watched), reads, hidden)

    def _scopes(self) -> Iterator[dict[str, Any]]:
        """The global variables that the forwards of the visible modules may use."""
        for module in self._watched:
            for forward in forward_of(module):
                if is_own(forward.__module__):
                    yield forward.__globals__

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Context in which every visible module reports what is read from it and written to it."""
        classes: dict[Module, Any] = {module: type(module) for module in self._watched}
        try:
            for module, kind in classes.items():
                object.__setattr__(module, "__class__", _watched(kind))
                module.__dict__["_pyops_tracer"] = self
            yield
        finally:
            for module, kind in classes.items():
                module.__dict__.pop("_pyops_tracer", None)
                object.__setattr__(module, "__class__", kind)

    def is_of_another_thread(self) -> bool:
        """Whether who calls is no forward that is traced: fx puts its wrappers in every thread's way."""
        return get_ident() != self._thread

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.is_of_another_thread():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def note_read(self, module: Module, name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) or self.is_of_another_thread():
            return  # the graph looks tensors up itself
        if not _is_constant(value):
            kind = type(value).__name__
            raise Untraceable(self._callers[-1], f"forward reads self.{name}, a {kind}, which may change")
        self._reads[id(module), name] = (module, name, value)

    def note_write(self, name: str) -> None:
        if not self.is_of_another_thread():
            raise Untraceable(self._callers[-1], f"forward changes self.{name}")

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # Stand-ins for the required arguments. A call that gives others does not use the graph.
        return root_fn, [
            self.root,
            *(self.create_proxy("placeholder", n, (), {}) for n in inputs_of(root_fn)),
        ]

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return m not in self._watched

    def call_module(
        self, m: Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_of_another_thread():
            return forward(*args, **kwargs)
        if m not in self._watched:
            return super().call_module(m, forward, args, kwargs)
        self._callers.append(m)
        self._inlined[m] = None
        # If this raises, m stays last: the error names it.
        result = super().call_module(m, forward, args, kwargs)
        self._callers.pop()
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if context() != self._context:
            raise Untraceable(self._callers[-1], "forward changes autograd's or autocast's mode")
        node = super().create_node(*args, **kwargs)
        node.meta["callers"] = tuple(self._callers)
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not self._is_attribute(a):
            raise Untraceable(self._callers[-1], "forward uses a tensor that is no attribute of the module")
        return super().create_arg(a)

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def _is_attribute(self, tensor: torch.Tensor) -> bool:
        known = (*self.root.parameters(), *self.root.buffers(), *self.tensor_attrs)
        return any(tensor is other for other in known)


def _tracer_of(module: Module) -> Any:
    return object.__getattribute__(module, "__dict__")["_pyops_tracer"]


@cache
def _watched(kind: Any) -> type[Module]:
    """``kind`` whose instances tell their tracer what is read from and written to them."""

    def __getattribute__(self: Module, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if name not in _INTERNAL:
            attributes = object.__getattribute__(self, "__dict__")
            if name in attributes and "_pyops_tracer" in attributes and name != "_pyops_tracer":
                attributes["_pyops_tracer"].note_read(self, name, value)
        return value

    def __setattr__(self: Module, name: str, value: Any) -> None:
        _tracer_of(self).note_write(name)
        kind.__setattr__(self, name, value)

    def __delattr__(self: Module, name: str) -> None:
        _tracer_of(self).note_write(name)
        kind.__delattr__(self, name)

    members = {
        "__getattribute__": __getattribute__,
        "__setattr__": __setattr__,
        "__delattr__": __delattr__,
    }
    return subclass(kind, members)


def inputs_of(forward: Callable[..., Any]) -> list[str]:
    """Names of the arguments that every call of a forward has to give, without ``self``.

    Raises:
        TypeError: some can be given only by name, or are not named.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"forward takes *{parameter.name}")
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise TypeError(f"forward takes {parameter.name} by name only")
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
