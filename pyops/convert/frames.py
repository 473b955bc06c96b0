"""What the code that a forward runs reads besides its input and its module's own attributes.

While a forward is traced, the functions that it enters are noted, helpers and methods of other objects
included; those of torch, pyops and Python itself are not looked at. What their code names is what may decide
what the forward does: global variables and constants, functions, attributes of classes and of objects.
"""

from __future__ import annotations

import dis
import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import Module

from .surroundings import MODES, Read

_MISSING = object()
_LIBRARIES = frozenset({"torch", "functorch", "numpy"}) | sys.stdlib_module_names
_MOST_ELEMENTS = 256


@cache
def is_own(module_name: str | None) -> bool:
    """Whether the code of a Python module is a model's own, and no library's that models stand on."""
    package, _, rest = (module_name or "").partition(".")
    if package == "pyops":
        return rest.split(".")[0] == "models"
    # Functions that Python makes for a namedtuple are in a module of their own.
    return package == "__main__" or (package not in _LIBRARIES and not package.startswith("namedtuple_"))


def _is_own_scope(scope: dict[str, Any]) -> bool:
    return is_own(scope.get("__name__"))


#: What a graph would do once, when it is made, by the module of the built-in function.
_EFFECTS = {"builtins": {"print", "input", "open"}, "time": None, "_warnings": {"warn"}, "posix": None}


class Frames:
    """Context in which the functions that forward enters are noted.

    ``enter`` is called with the global variables of each function's module, the first time, before any of its
    code runs.
    """

    def __init__(self, enter: Callable[[dict[str, Any]], None]) -> None:
        self._enter = enter
        #: By code and receiver: the code, its global variables, the receiver, its attributes at that time.
        self._entered: dict[tuple[CodeType, int], tuple[CodeType, dict[str, Any], Any, Any]] = {}
        self._scopes: set[int] = set()
        self._asks_distributed = False
        #: What a graph cannot do in forward's place, if anything.
        self.problem: str | None = None

    def __enter__(self) -> Frames:
        self._collects = gc.isenabled()
        gc.disable()  # what a collection calls would pass for a part of forward
        self._before = sys.getprofile()
        if self._before is None or callable(self._before):  # cProfile's is not, and cannot be set again
            sys.setprofile(self._event)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is None or callable(self._before):
            sys.setprofile(self._before)
        if self._collects:
            gc.enable()

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and _is_own_scope(frame.f_globals):
            self._note_builtin(argument)
        elif event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # of a function
            if _is_own_scope(frame.f_globals):
                code = frame.f_code
                receiver = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                self.note(code, frame.f_globals, receiver)
            else:
                self._note_library(frame)

    def note(self, code: CodeType, scope: dict[str, Any], receiver: Any) -> None:
        """Note a function that forward enters; ``receiver`` is its first argument."""
        if id(scope) not in self._scopes:
            self._scopes.add(id(scope))
            self._enter(scope)
        watched = not isinstance(receiver, Module) and _is_own_object(receiver)
        state = dict(vars(receiver)) if watched else None
        self._entered.setdefault((code, id(receiver)), (code, scope, receiver, state))

    def _note_builtin(self, function: Any) -> None:
        module, name = getattr(function, "__module__", None), getattr(function, "__name__", "")
        if function in MODES:
            self.problem = "forward asks for autograd's or autocast's mode"
        elif module in _EFFECTS and ((names := _EFFECTS[module]) is None or name in names):
            self.problem = f"forward calls {name}, which a graph would do once"

    def _note_library(self, frame: FrameType) -> None:
        name = frame.f_globals.get("__name__") or ""
        asks = name.startswith("torch.distributed")
        if not (asks or name == "logging" or (name == "os" and "_Environ" in frame.f_code.co_qualname)):
            return
        caller = frame.f_back
        while caller is not None and _of_python(caller.f_globals.get("__name__")):
            caller = caller.f_back
        if caller is None or not _is_own_scope(caller.f_globals):
            return
        self._asks_distributed |= asks
        if not asks:
            self.problem = f"forward uses Python's {name}, which a graph would do once"

    def reads(self) -> tuple[list[Read], dict[Module, set[str]]]:
        """What was read; and attributes of classes that an instance must not hide, by the instance."""
        found: dict[tuple[int, str], Read] = {}
        hidden: dict[Module, set[str]] = {}
        if self._asks_distributed:
            found[id(DISTRIBUTED), "state"] = (DISTRIBUTED, "state", DISTRIBUTED.state)
        for code, scope, receiver, state in self._entered.values():
            if state is not None and state != vars(receiver):
                self.problem = f"forward changes a {type(receiver).__name__}"
            if _writes_globals(code):
                self.problem = "forward changes a global variable"
            reads = [*_named(code, scope), *_received(code, receiver)]
            if isinstance(receiver, Module):
                names = {name for owner, name, _ in reads if owner is type(receiver)}
                hidden.setdefault(receiver, set()).update(names)
            found.update({(id(owner), name): (owner, name, value) for owner, name, value in reads})
        return list(found.values()), hidden


class _Distributed:
    """The state of torch.distributed as an attribute."""

    @property
    def state(self) -> tuple[int, int] | None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        return distributed.get_rank(), distributed.get_world_size()


DISTRIBUTED = _Distributed()


class Namespace:
    """The global variables of code that is of no imported module, as attributes."""

    def __init__(self, scope: dict[str, Any]) -> None:
        object.__setattr__(self, "_scope", scope)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._scope[name]
        except KeyError:
            raise AttributeError(name) from None


def variables_of(owner: Any) -> dict[str, Any]:
    """The dict behind the attributes of a module, a Python module or a :class:`Namespace`."""
    scope: dict[str, Any] = owner._scope if isinstance(owner, Namespace) else vars(owner)
    return scope


def _of_python(name: str | None) -> bool:
    return (name or "").partition(".")[0] in sys.stdlib_module_names and name != "__main__"


def _is_own_object(value: Any) -> bool:
    """Whether ``value`` is an object of a class of the model's own, whose attributes may decide something."""
    kind = type(value)
    return (
        is_own(kind.__module__)
        and not isinstance(value, (Proxy, Tensor, Enum, type))
        and isinstance(getattr(value, "__dict__", None), dict)
    )


@cache
def _chains(code: CodeType) -> list[list[str]]:
    """Global variables that ``code`` names, and the attributes that it reads of them: ["a", "b"] for a.b."""
    chains: list[list[str]] = []
    open_chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            open_chain = [instruction.argval]
            chains.append(open_chain)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and open_chain is not None:
            open_chain.append(instruction.argval)
        elif instruction.opname not in ("CACHE", "PRECALL"):
            open_chain = None
    return chains


@cache
def _writes_globals(code: CodeType) -> bool:
    return any(i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for i in dis.get_instructions(code))


def _named(code: CodeType, scope: dict[str, Any]) -> Iterator[Read]:
    """What ``code`` names and may change: global variables, and attributes of what is in them."""
    home = sys.modules.get(scope.get("__name__") or "")
    owner: Any = home if home is not None and vars(home) is scope else Namespace(scope)
    for first, *attributes in _chains(code):
        if first not in scope:  # a built-in
            continue
        value = scope[first]
        yield from _guarded(owner, first, value)
        for attribute in attributes:
            if not isinstance(value, (ModuleType, type)) and not _is_own_object(value):
                break
            holder, value = value, inspect.getattr_static(value, attribute, _MISSING)
            if value is _MISSING or isinstance(value, property):
                break
            if isinstance(value, (staticmethod, classmethod)):
                value = getattr(holder, attribute)
            inherited = not isinstance(holder, (ModuleType, type)) and attribute not in vars(holder)
            yield from _guarded(type(holder) if inherited else holder, attribute, value)


def _closure(function: FunctionType) -> Iterator[Read]:
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # still empty
            continue
        if not isinstance(value, FunctionType):  # they have variables of their own, maybe each other
            yield from _guarded(cell, "cell_contents", value)
        else:
            yield cell, "cell_contents", value


def forward_of(module: Module) -> Iterator[FunctionType]:
    """The function that is a module's forward, and what it wraps."""
    forward: Any = type(module).forward
    while isinstance(forward, FunctionType):
        yield forward
        forward = getattr(forward, "__wrapped__", None)


def closures(functions: Iterable[Any]) -> list[Read]:
    """The variables of enclosing functions that the model's own functions among these see."""
    own = [f for f in functions if isinstance(f, FunctionType) and _is_own_scope(f.__globals__)]
    return [read for function in own for read in _closure(function)]


def _received(code: CodeType, receiver: Any) -> Iterator[Read]:
    """What ``code`` may read of its first argument: attributes of its class, and an object's own."""
    if isinstance(receiver, Module):
        yield from _of_class(code, type(receiver), vars(receiver))
    elif isinstance(receiver, type) and is_own(receiver.__module__):
        yield from _of_class(code, receiver, {})
    elif _is_own_object(receiver):
        own = vars(receiver)
        for name in code.co_names:
            if name in own:
                yield from _guarded(receiver, name, own[name])
        yield from _of_class(code, type(receiver), own)


def _of_class(code: CodeType, kind: type, own: dict[str, Any]) -> Iterator[Read]:
    for name in code.co_names:
        holder = None if name in own else next((base for base in kind.__mro__ if name in vars(base)), None)
        if holder is not None and is_own(holder.__module__):
            static = vars(holder)[name]
            value = getattr(kind, name) if isinstance(static, (staticmethod, classmethod)) else static
            yield from _guarded(kind, name, value)


_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.memory_format,
    FunctionType, BuiltinFunctionType, MethodType, type, property, partial,
)  # fmt: skip


def is_atom(value: Any) -> bool:
    """Whether ``value`` cannot change in itself."""
    return all(map(is_atom, value)) if isinstance(value, tuple) else isinstance(value, _ATOMS)


def _guarded(owner: Any, name: str, value: Any) -> Iterator[Read]:
    """The read, if a change of it can be seen by comparing: of values, of short containers, of objects."""
    if is_atom(value):
        yield owner, name, value
        if isinstance(value, FunctionType) and _is_own_scope(value.__globals__):
            yield from _closure(value)
    elif type(value) in (list, set, dict):
        elements = [*value, *value.values()] if isinstance(value, dict) else value
        if len(elements) <= _MOST_ELEMENTS and all(map(is_atom, elements)):
            yield owner, name, value.copy()
    elif _is_own_object(value) and not isinstance(value, Module):
        yield owner, name, value
