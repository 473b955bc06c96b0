"""Calls with spoiled arguments: each must run or raise an error that says what is wrong.

``python -m tests.hostile BACKEND CALLS`` (see ``__main__.py``) makes them in a process of its own. Call
number ``i`` of a seed is the same whatever was called before it. Each takes a good call and replaces one to
three of its arguments, or lets two of them be the same tensor. What must not happen: a signal, a loop
without end, an error of another type than a caller expects, one of a public function that does not say which
function and which argument it is about, and a changed argument.
"""

from __future__ import annotations

import random
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyops
from pyops import functional as F
from tests.suite.backends import Backend, activate
from tests.suite.processes import ROOT

from .calls import MAKERS, Call, tensors
from .memory import Snapshot, guarded, has_memory, tensors_in
from .values import spoiled

ALLOWED = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
_OURS = str(ROOT / "pyops")


def describe(value: Any) -> str:
    """``value`` in one line."""
    if isinstance(value, Tensor):
        if torch.nn.parameter.is_lazy(value):
            return "<uninitialised parameter>"
        kind = f"{tuple(value.shape) if not value.is_nested else 'nested'} {value.dtype}"
        strides = f" strides {value.stride()}" if has_memory(value) and not value.is_contiguous() else ""
        grad = ", requires grad" if value.requires_grad else ""
        other = f" {value.layout} on {value.device}" if not has_memory(value) else ""
        return f"<{kind.removeprefix('torch.')}{strides}{other}{grad}>"
    if isinstance(value, torch.nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(describe, value))})"
    return repr(value)[:80]


def describe_call(call: Call) -> str:
    words = [*map(describe, call.arguments), *(f"{k}={describe(v)}" for k, v in call.options.items())]
    return f"{call.name}({', '.join(words)})"


def make_call(backend: Backend, seed: int, index: int, *, guards: bool) -> Call:
    """Call ``index`` of ``seed``, the same every time."""
    rng = random.Random(f"{seed}/{index}")
    torch.manual_seed(index)
    kind = rng.choices(list(MAKERS), [share for _, share in MAKERS.values()])[0]
    call = MAKERS[kind][0](backend, rng)
    places: list[int | str] = [*range(len(call.arguments)), *call.options]
    for place in rng.sample(places, min(len(places), rng.randint(1, 3))):
        put(call, place, spoiled(rng, get(call, place)))
    given = [p for p in places if has_memory(get(call, p))]
    if len(given) > 1 and rng.random() < 0.05:
        one, other = rng.sample(given, 2)
        put(call, one, get(call, other))
    at_end = rng.random() < 0.7
    for place in given:
        value = get(call, place)
        if type(value) is Tensor and not (value.requires_grad and value.grad_fn is not None):
            value = guarded(value, at_end=at_end) if guards else value
            wants = value.is_floating_point() and not value.is_inference() and rng.random() < 0.3
            put(call, place, value.requires_grad_() if wants and value.is_leaf else value)
    move(call, places, backend.device)
    return call


def move(call: Call, places: list[int | str], device: str) -> None:
    for place in places:
        value = get(call, place)
        if isinstance(value, Tensor) and device != "cpu" and not value.is_meta:
            put(call, place, value.to(device))


def get(call: Call, place: int | str) -> Any:
    return call.arguments[place] if isinstance(place, int) else call.options[place]


def put(call: Call, place: int | str, value: Any) -> None:
    if isinstance(place, int):
        call.arguments[place] = value
    else:
        call.options[place] = value


# ------------------------------------------------------------------------------------------------- judging


def run(call: Call) -> None:
    """Call it, and backward where the result wants it."""
    result = call.function(*call.arguments, **call.options)
    wanted = [t for t in tensors(result) if t.requires_grad and t.is_floating_point()]
    leaves = [t for t in tensors([call.arguments, call.options]) if t.requires_grad and t.is_leaf]
    if wanted and leaves:
        torch.autograd.grad([t.sum() for t in wanted], leaves, allow_unused=True)


#: What Python says of its own where nobody looked at an argument first.
_BY_PYTHON = "not supported between|unsupported operand|object is not|no attribute|argument must be|convert s"
_NAMES = re.compile("|".join([*F.__all__, *pyops.nn.__all__, "convert", "revert", *pyops.optim.__all__]))


def unnamed(call: Call, error: Exception) -> str | None:
    """What an error of a public function lacks that was raised in pyops' own code, if anything.

    That the backend asked for cannot run on a tensor is no argument's fault.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not frame.filename.startswith(_OURS) or isinstance(error, pyops.backends.BackendError):
        return None
    raised = (frame.line or "").startswith("raise ")
    by_python = re.search(_BY_PYTHON, str(error))
    if (
        raised and not (_NAMES.search(str(error)) or call.name.rpartition(".")[2] in str(error))
    ) or by_python:
        where = f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
        return f"{type(error).__name__} names no function: {str(error)!r} ({where})"
    return None


def judge(call: Call, backend: Backend | None) -> tuple[bool, str | None]:
    """Whether the call was accepted, and what was wrong, with the kernels of ``backend`` asked for by name.

    Where it is None small tensors are torch's own.
    """
    before = Snapshot(list(tensors_in([call.arguments, call.options])))
    allowed = [get(call, p) for p in call.changes if isinstance(p, int) or p in call.options]
    problem, accepted = None, False
    try:
        with pyops.use_backend(backend and backend.name):
            run(call)
        accepted = True
    except ALLOWED as error:
        problem = unnamed(call, error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if frame.filename.startswith(_OURS) or "torch.ops" in call.name:  # else it is torch's own
            problem = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    if problem is None and before.changed(list(tensors_in(allowed))):
        problem = "an argument was changed"
    return accepted, problem


def prepare(backend: Backend) -> None:
    activate(backend)
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)


def finish(backend: Backend) -> None:
    """Wait for what was launched."""
    if backend.device == "cuda":
        torch.cuda.synchronize()
