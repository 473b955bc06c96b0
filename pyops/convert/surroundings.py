"""What a forward can see besides its input and its module: modes, types, global and random state.

fx does not see it; the tracer watches it with the help of this module.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.fx import Proxy
from torch.nn import Module

#: What forward has read: its owner (a module, or the Python module of a global variable), name and value.
Read = tuple[Module | ModuleType, str, Any]


@contextmanager
def replaced(replacements: list[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Context in which each namespace has the given value under the given name."""
    missing = object()
    before = [(namespace, name, namespace.get(name, missing)) for namespace, name, _ in replacements]
    try:
        for namespace, name, value in replacements:
            namespace[name] = value
        yield
    finally:
        for namespace, name, value in before:
            if value is missing:
                namespace.pop(name, None)
            else:
                namespace[name] = value


def questions(modules: list[Module]) -> list[tuple[dict[str, Any], str, Any]]:
    """Replacements (see :func:`replaced`) for the questions of a forward that fx would answer wrongly.

    They are for the modules' own code only: torch itself goes on asking, and may be imported meanwhile.
    """
    forwards = [inspect.unwrap(type(module).forward) for module in modules]
    scopes = {id(f.__globals__): f.__globals__ for f in forwards if isinstance(f, FunctionType)}
    replacements: list[tuple[dict[str, Any], str, Any]] = []
    for scope in scopes.values():
        if scope.get("__name__", "").split(".")[0] == "torch":
            continue
        replacements.append((scope, "isinstance", _isinstance))
        for name, value in scope.items():
            if value is torch:
                replacements.append((scope, name, _Torch("torch")))
            elif (answer := _answer(value)) is not None:
                replacements.append((scope, name, answer))
    return replacements


def _refuse_mode(*_: Any) -> bool:
    raise RuntimeError("forward asks for autograd's or autocast's mode")


_ANSWERS: dict[Any, Callable[..., bool]] = {
    torch.is_grad_enabled: _refuse_mode,
    torch.is_inference_mode_enabled: _refuse_mode,
    torch.is_autocast_enabled: _refuse_mode,
    torch.is_tensor: lambda value: _isinstance(value, torch.Tensor),
}


def _answer(value: Any) -> Callable[..., bool] | None:
    """The replacement of ``value`` if it is one of the questions."""
    return next((answer for question, answer in _ANSWERS.items() if value is question), None)


class _Torch(ModuleType):
    """``torch`` with :data:`_ANSWERS`."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        return _answer(value) or value


def _isinstance(value: Any, kinds: Any) -> bool:
    """``isinstance`` for which the stand-in of an input is a tensor."""
    if not isinstance(value, Proxy):
        return isinstance(value, kinds)
    if value.node.op != "placeholder":
        raise RuntimeError("forward asks for the type of an intermediate result")
    return issubclass(torch.Tensor, kinds)


def context() -> tuple[Any, ...]:
    """The modes that a ``with`` in a forward changes and fx does not see."""
    return (
        torch._C.is_grad_enabled(),
        torch._C.is_inference_mode_enabled(),
        torch._C.is_autocast_enabled("cpu"),
        torch._C.is_autocast_enabled("cuda"),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        torch._C._len_torch_function_stack(),
    )


def random_state() -> Any:
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    return random.getstate(), None if state is None else (state[1].tobytes(), *state[2:])


def globals_read(modules: Iterable[Module]) -> list[Read]:
    """The global variables that the modules' forwards name and whose value may decide something."""
    reads: dict[tuple[str, str], Read] = {}
    for module in modules:
        forward = inspect.unwrap(type(module).forward)
        home = sys.modules.get(forward.__module__)
        if home is None:
            continue
        for name in forward.__code__.co_names:
            value = vars(home).get(name)
            if isinstance(value, (bool, int, float, str)) and forward.__globals__ is vars(home):
                reads[forward.__module__, name] = (home, name, value)
    return list(reads.values())
