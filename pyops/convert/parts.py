"""What of a converted model is measured one by one: layers and fused steps, each with what else could run.

A part can run in several ways: as converted, as written (by torch), and a step with its first op by one and
the rest by the other. A way names the modules that stay torch's in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .chain import Chain
from .ops import Member, kind_of
from .patterns import step_of
from .plan import Plan
from .steps import Step
from .swap import conversion_of, is_converted

Inputs = tuple[Tensor, ...]
Runs = Callable[..., Any]


@dataclass
class Part:
    """A layer, step or chain and others like it that got such inputs. ``calls``: of each, how often."""

    call: Any
    inputs: Inputs
    calls: dict[Any, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """``run`` computes a part; ``kept`` are the places of its members that stay torch's."""

    run: Runs
    kept: tuple[int, ...]


def members_of(call: Any) -> list[Member]:
    """The ops that a layer, a step or a chain computes."""
    if isinstance(call, Chain):
        return [member for link in call.calls for member in members_of(link)]
    if isinstance(call, Step):
        return list(call.members)
    return [Member(kind_of(call) or "", call, True)]


class _Recorder:
    """In the place of ``run``, by which a plan or a module calls ``call``: it notes inputs."""

    def __init__(self, call: Any, run: Runs, parts: dict[Any, Part]) -> None:
        self.call, self.run, self._parts = call, run, parts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and all(type(t) in (Tensor, torch.nn.Parameter) for t in args):
            note(self._parts, self.call, args)
        return self.run(*args, **kwargs)


def note(parts: dict[Any, Part], call: Any, inputs: Inputs) -> None:
    """Add a call to its part; the inputs of the first one are kept."""
    of_inputs = [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in inputs]
    key = (type(call), *map(_described, members_of(call)), *of_inputs)
    part = parts.get(key)
    if part is None:
        kept = tuple(t.detach().requires_grad_(t.requires_grad) for t in inputs)
        part = parts[key] = Part(call, kept)
    part.calls[call] = part.calls.get(call, 0) + 1


def _described(member: Member) -> Any:
    module = member.module
    if module is None:
        return member.kind
    tensors = [(name, p.shape, p.requires_grad) for name, p in module.named_parameters()]
    return type(module), type(module).extra_repr(module), module.training, member.called, *tensors


@contextmanager
def recording(model: Module) -> Iterator[dict[Any, Part]]:
    """Context in which a run of the converted ``model`` fills the parts that it consists of."""
    parts: dict[Any, Part] = {}
    before: list[tuple[dict[str, Any], str, Any]] = []
    inside: set[Module] = set()

    def listen(scope: dict[str, Any], name: str, call: Any) -> None:
        before.append((scope, name, scope[name]))
        scope[name] = _Recorder(call, scope[name], parts)

    try:
        for plan in _usable_plans(model):
            inside |= plan.replaced
            for name, call in plan.calls():
                listen(vars(plan), name, call)
                if isinstance(call, Chain):
                    inside |= call.layers
        for module in model.modules():
            if is_converted(module) and module not in inside:
                listen(vars(module), "forward", module)
        yield parts
    finally:
        for scope, name, value in before:
            scope[name] = value


def _usable_plans(model: Module) -> Iterator[Plan]:
    for module in model.modules():
        conversion = conversion_of(module)
        for plan in conversion.plans if conversion is not None else ():
            if plan.obstacle(module) is None:
                yield plan


def ways_of(call: Any) -> list[Way]:
    """How a layer, step or chain can run: first as it does, last with all that can be torch's so."""
    members = members_of(call)
    convertible = [i for i, m in enumerate(members) if _is_kept_by_choice(m)]
    ways = [Way(call.forward if isinstance(call, Module) else call, ())]
    if len(members) > 1 and not isinstance(call, Chain):
        head, rest = members[:1], members[1:]
        if 0 in convertible and len(convertible) > 1:
            ways.append(Way(_row(head, True, rest, False), (0,)))
        if 0 in convertible and 1 in convertible:
            ways.append(Way(_row(head, False, rest, True), tuple(i for i in convertible if i)))
    if convertible:
        ways.append(Way(_row(members, True, (), True), tuple(convertible)))
    return ways


def _is_kept_by_choice(member: Member) -> bool:
    return member.called and member.module is not None and is_converted(member.module)


def _row(head: Sequence[Member], head_kept: bool, rest: Sequence[Member], rest_kept: bool) -> Runs:
    """The ops one after the other, some as written; an addition gets the part's second input."""
    row = [*_runs(head, head_kept), *_runs(rest, rest_kept)]

    def run(input: Tensor, *residual: Tensor) -> Any:
        for adds, function in row:
            input = function(input, *residual) if adds else function(input)
        return input

    return run


def _runs(members: Sequence[Member], kept: bool) -> Iterator[tuple[bool, Runs]]:
    at = 0
    while at < len(members):
        step, end = None, at + 1
        if not kept:
            ends = range(len(members), at + 1, -1)
            step, end = next(((s, e) for e in ends if (s := step_of(members[at:e]))), (None, end))
        adds = any(member.kind == "add" for member in members[at:end])
        single: Runs = members[at].as_written if kept else members[at].as_converted
        fused: Any = step
        yield adds, single if fused is None else fused
        at = end
