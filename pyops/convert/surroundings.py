"""What a forward can see besides its input and its module: modes, types, global and random state.

fx does not see it; the tracer watches it with the help of this module.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from threading import get_ident
from types import ModuleType
from typing import Any

import torch
from torch.fx import Proxy

#: What forward has read: its owner (a module, a Python module, a class, an object), its name and value.
Read = tuple[Any, str, Any]


class Questions:
    """Context in which the questions of a forward that fx would answer wrongly are answered rightly.

    That is so in the modules whose global variables were given to :meth:`answer_in`, which are the model's
    own code: torch itself goes on asking, and may be imported meanwhile.
    """

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []
        self._scopes: set[int] = set()

    def __enter__(self) -> Questions:
        _tracing.add(get_ident())
        return self

    def __exit__(self, *_: Any) -> None:
        _tracing.discard(get_ident())
        for scope, name, value in reversed(self._before):
            if value is _MISSING:
                scope.pop(name, None)
            else:
                scope[name] = value

    def answer_in(self, scope: dict[str, Any]) -> None:
        if id(scope) in self._scopes:
            return
        self._scopes.add(id(scope))
        self._replace(scope, "isinstance", _isinstance)
        for name, value in list(scope.items()):
            if value is torch:
                self._replace(scope, name, _Torch("torch"))
            elif (answer := _answer(value)) is not None:
                self._replace(scope, name, answer)

    def _replace(self, scope: dict[str, Any], name: str, value: Any) -> None:
        self._before.append((scope, name, scope.get(name, _MISSING)))
        scope[name] = value


_MISSING = object()


#: The threads that trace a forward; others' questions get torch's answer.
_tracing: set[int] = set()


def _refuse(question: Callable[..., bool]) -> Callable[..., bool]:
    def answer(*args: Any) -> bool:
        if get_ident() not in _tracing:
            return question(*args)
        raise RuntimeError("forward asks for autograd's or autocast's mode")

    return answer


#: What a ``with`` around a call decides, and a graph does not see.
MODES: tuple[Any, ...] = (
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    torch.is_autocast_enabled,
)
_ANSWERS: dict[Any, Callable[..., bool]] = {
    **{question: _refuse(question) for question in MODES},
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
