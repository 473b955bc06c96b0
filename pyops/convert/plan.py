"""Forward with fused groups: a :class:`Plan`, and what runs it.

A plan is a graph of ``trace.py``, compiled to a Python function, in which a step replaces each group. It
belongs to the module whose forward calls all members of a group. The members stay where and what they are:
called by itself, sliced out of a Sequential or given a hook, each computes what it always did. A plan that no
longer describes its module is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import Module

from .chain import Chain, chains_in
from .guards import Guards
from .patterns import Group, Refusal, find_groups
from .steps import Step
from .surroundings import Read
from .swap import record
from .trace import Trace, Untraced, is_opaque, trace


class Plan:
    """A way to run ``forward`` of the module that it was made for, as long as it :meth:`holds`.

    ``groups`` says what is fused, in names. The modules that are called and the steps are attributes ``m0``,
    ``s0``, ...; ``function(plan, module, *inputs)`` finds them there.
    """

    def __init__(self, traced: Trace, groups: list[Group], own: list[Group], reads: list[Read]) -> None:
        owner = traced.module
        self.groups = [_names(group.nodes) for group in own]
        self._inputs = sum(node.op == "placeholder" for node in traced.graph.nodes)
        reads = [*traced.reads, *reads, *(read for group in groups for read in group.reads)]
        seen = dict.fromkeys(chain(traced.inlined[1:], *(group.called for group in groups)))
        self._guards = Guards(traced, reads, list(seen))
        steps = {self._insert(traced.graph, group) for group in groups}
        for row in _rows(traced.graph):
            calls = [
                self.__dict__[str(n.target)] if n in steps else owner.get_submodule(str(n.target))
                for n in row
            ]
            for begin, linked in chains_in(calls):
                steps.add(self._link(traced.graph, row[begin : begin + len(linked)], linked))
        self.function = self._compile(traced.graph, owner, steps)

    def holds(self, owner: Module, inputs: tuple[Any, ...]) -> bool:
        """Whether nothing has changed since the plan was made, and it was made for such a call."""
        return self.takes(inputs) and self._guards.hold(owner)

    def takes(self, inputs: tuple[Any, ...]) -> bool:
        """Whether it was made for such inputs."""
        return len(inputs) == self._inputs and all(isinstance(input, Tensor) for input in inputs)

    def obstacle(self, owner: Module) -> str | None:
        """What keeps the plan from being used, whatever the mode."""
        return self._guards.obstacle(owner)

    @property
    def replaced(self) -> set[Module]:
        """The modules besides the owner that are not called as such."""
        return set(self._guards.replaced)

    def calls(self) -> Iterator[tuple[str, Any]]:
        """The steps and chains, and the names of their attributes."""
        return ((name, call) for name, call in [*vars(self).items()] if isinstance(call, (Step, Chain)))

    def _add(self, prefix: str, value: Any) -> str:
        """The name of the attribute that holds ``value``."""
        for name, other in self.__dict__.items():
            if other is value:
                return name
        name = f"{prefix}{len(self.__dict__)}"
        self.__dict__[name] = value
        return name

    def _insert(self, graph: Graph, group: Group) -> Node:
        """Replace the group's nodes by one that calls its step, and return it."""
        nodes, step = group.nodes, group.pattern.step(*group.arguments)
        step.members = tuple(op.member for op in group.ops)
        with graph.inserting_before(group.place):
            call = graph.call_module(self._add("s", step), group.inputs)
        nodes[-1].replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)
        return call

    def _link(self, graph: Graph, nodes: list[Node], linked: Chain) -> Node:
        """Replace a row of calls by one of the chain, and return it."""
        with graph.inserting_before(nodes[0]):
            call = graph.call_module(self._add("c", linked), nodes[0].args)
        nodes[-1].replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)
        return call

    def _compile(self, graph: Graph, owner: Module, steps: set[Node]) -> Callable[..., Any]:
        """The graph as a function of the plan, the owner and the inputs."""
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            itself = graph.placeholder("owner")
        for node in list(graph.nodes):
            path, _, attribute = str(node.target).rpartition(".")
            if node.op == "call_module" and node not in steps:
                node.target = self._add("m", owner.get_submodule(node.target))
            elif node.op == "get_attr" and path:
                node.target = f"{self._add('m', owner.get_submodule(path))}.{attribute}"
            elif node.op == "get_attr":
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.call_function(getattr, (itself, attribute)))
                graph.erase_node(node)
        code = graph.python_code(root_module="self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<fused forward of {type(owner).__name__}>", "exec"), namespace)
        function: Callable[..., Any] = namespace["forward"]
        return function


def _rows(graph: Graph) -> list[list[Node]]:
    """The calls of modules and steps, each in a row with the one whose result it alone gets."""
    rows: list[list[Node]] = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.all_input_nodes) != len(node.args) or node.kwargs:
            continue
        last = rows[-1][-1] if rows else None
        # Next to each other in the graph, too: what is between may draw random numbers.
        if last is not None and node.prev is last and node.args == (last,) and len(last.users) == 1:
            rows[-1].append(node)
        elif len(node.args) == 1:
            rows.append([node])
    return rows


def _names(nodes: Sequence[Node]) -> str:
    """The nodes of a group as a user knows them: names of modules, and of functions."""
    return " + ".join(getattr(node.target, "__name__", str(node.target)) for node in nodes)


def _shared(callers: list[tuple[Module, ...]]) -> int:
    """How many callers, counted from the outermost, all rows have in common."""
    return sum(all(c is row[0] for c in row) for row in zip(*callers, strict=False))


def make_plan(module: Module, untraced: Untraced) -> tuple[Trace, Plan | None, list[str]]:
    """The trace of ``module``'s forward, its plan if there is one, and what is not fused and why.

    A group whose ops are all in the forward of one submodule is left to the plan of that submodule. A
    submodule is traced only where a group needs it: for its ops, or to see that nothing changes in place.

    Raises:
        Untraceable: the forward of ``module`` cannot be traced.
    """
    traced = trace(module, untraced=untraced)
    groups, refusals = _own(traced)
    if groups:
        callers = chain.from_iterable(node.meta["callers"] for group in groups for node in group.nodes)
        spare = set(traced.inlined).difference(callers)
        if spare:
            less = trace(module, lambda m: m in spare or is_opaque(m), untraced)
            if sum(len(g.nodes) for g in _own(less)[0]) == sum(len(g.nodes) for g in groups):
                traced = less
                groups, refusals = _own(traced)
    every = find_groups(traced)
    reasons = [f"{_names(refusal.nodes)}: {refusal.reason}" for refusal in refusals]
    return traced, Plan(traced, every.groups, groups, every.reads) if groups else None, reasons


def _own(traced: Trace) -> tuple[list[Group], list[Refusal]]:
    """The groups, and the refused ones, that no submodule's forward holds as a whole."""

    def is_own(nodes: Any) -> bool:
        return _shared([node.meta["callers"] for node in nodes]) == 1

    found = find_groups(traced)
    return [g for g in found.groups if is_own(g.nodes)], [r for r in found.refusals if is_own(r.nodes)]


def make_plans(module: Module, untraced: Untraced | None = None) -> None:
    """Record the plans of ``module``, one per mode that its forward reads, and what was not fused.

    Raises:
        Untraceable: the forward of ``module`` cannot be traced.
    """
    untraced = set() if untraced is None else untraced
    traced, plan, reasons = make_plan(module, untraced)
    plans = [plan]
    read = {value for _, name, value in traced.reads if name == "training"}
    for mode in (True, False) if read else ():
        if read != {mode}:
            with _training(traced.visible, mode):
                plans.append(make_plan(module, untraced)[1])
    conversion = record(module)
    conversion.not_fused = reasons
    conversion.plans = tuple(p for p in plans if p is not None)


@contextmanager
def _training(modules: list[Module], mode: bool) -> Iterator[None]:
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = mode
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.training = was
