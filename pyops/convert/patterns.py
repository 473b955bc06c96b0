"""The table of what is fused, and the search for it in a graph.

A pattern is a row of kinds of ops (``ops.py``), each the only user of the one before; kinds with a question
mark may be missing. What it becomes is a step (``steps.py``). A new fusion is a line of :data:`PATTERNS` and
its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch.fx import Node
from torch.nn import Module

from .ops import Member, Op, added_to, changes_in_place, inplace_reads, kind_of, op_of
from .steps import (
    BatchNormStep,
    Conv1dBatchNormStep,
    Conv1dStep,
    Conv2dBatchNormMaxPool2dStep,
    Conv2dBatchNormStep,
    Conv2dMaxPool2dStep,
    Conv2dStep,
    LinearStep,
    RowNormStep,
    Step,
)
from .surroundings import Read
from .swap import has_own_forward
from .trace import Trace, hooks_of


@dataclass(frozen=True)
class Pattern:
    kinds: tuple[str, ...]
    #: Which of the step's arguments each kind is.
    places: tuple[int, ...]
    arguments: int
    step: type[Step]


def _patterns(text: str, step: type[Step]) -> Iterator[Pattern]:
    """All rows that ``text`` stands for."""
    words = text.split()
    for present in product((True, False), repeat=len(words)):
        chosen = [(i, word.rstrip("?")) for i, word in enumerate(words) if present[i]]
        if len(chosen) > 1 and all(p or word.endswith("?") for p, word in zip(present, words, strict=True)):
            places, kinds = zip(*chosen, strict=True)
            yield Pattern(kinds, places, len(words), step)


PATTERNS = sorted(
    (
        *_patterns("conv2d batch_norm add? activation?", Conv2dBatchNormStep),
        *_patterns("conv2d batch_norm activation? max_pool2d", Conv2dBatchNormMaxPool2dStep),
        *_patterns("conv2d activation? max_pool2d", Conv2dMaxPool2dStep),
        *_patterns("conv2d add? activation?", Conv2dStep),
        *_patterns("conv1d batch_norm add? activation?", Conv1dBatchNormStep),
        *_patterns("conv1d add? activation?", Conv1dStep),
        *_patterns("linear activation? dropout?", LinearStep),
        *_patterns("batch_norm add? activation?", BatchNormStep),
        Pattern(("row_norm", "activation"), (0, 1), 2, RowNormStep),
    ),
    key=lambda pattern: -len(pattern.kinds),
)
_HEADS = {pattern.kinds[0] for pattern in PATTERNS}


def has_heads(module: Module) -> bool:
    """Whether a pattern begins with one of the modules in ``module``."""
    return any(kind_of(m) in _HEADS for m in module.modules())


def step_of(ops: Sequence[Member]) -> Step | None:
    """The step of a row of ops, if a pattern is that long."""
    kinds = tuple(op.kind for op in ops)
    pattern = next((pattern for pattern in PATTERNS if pattern.kinds == kinds), None)
    if pattern is None:
        return None
    present: dict[int, Any] = dict(zip(pattern.places, ops, strict=True))
    return pattern.step(*(present.get(place) for place in range(pattern.arguments)))


@dataclass
class Group:
    """Ops that one step computes."""

    pattern: Pattern
    ops: list[Op]

    @property
    def nodes(self) -> list[Node]:
        return [op.node for op in self.ops]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """What the step is called with, in the present graph: other groups may be steps already."""
        nodes = self.nodes
        others = [i for node in nodes[1:] for i in node.all_input_nodes if i not in nodes]
        return (nodes[0].all_input_nodes[0], *others)

    @property
    def called(self) -> list[Module]:
        """The modules of the model that compute the ops by themselves; functions have none there."""
        return [op.module for op in self.ops if op.module is not None and op.node.op == "call_module"]

    @property
    def reads(self) -> list[Read]:
        """Attributes that decided what the ops are."""
        calls = [op for op in self.ops if op.node.op == "call_module"]
        classes = {type(module) for module in self.called}
        return [
            *((op.module, name, getattr(op.module, name)) for op in calls for name in op.decisive),
            *((kind, "forward", kind.forward) for kind in classes),
        ]

    @property
    def place(self) -> Node:
        """The node whose place the step takes: the addition, which needs the residual, or the first op."""
        return next((op.node for op in self.ops if op.kind == "add"), self.ops[0].node)

    @property
    def arguments(self) -> list[Op | None]:
        """The ops, as the step takes them."""
        present = dict(zip(self.pattern.places, self.ops, strict=True))
        return [present.get(place) for place in range(self.pattern.arguments)]


@dataclass(frozen=True)
class Refusal:
    """Ops that match a pattern and are not fused."""

    nodes: tuple[Node, ...]
    reason: str


@dataclass(frozen=True)
class Found:
    """The groups of a graph, the longer ones that were refused, and attributes that this relies on."""

    groups: list[Group]
    refusals: list[Refusal]
    reads: list[Read]


def find_groups(traced: Trace) -> Found:
    """The longest groups that do not overlap, in the graph's order, and why longer ones were refused."""
    search = _Search(traced)
    groups: list[Group] = []
    refusals: list[Refusal] = []
    taken: set[Node] = set()
    for node in traced.graph.nodes:
        if node in taken:
            continue
        group, refusal = search.longest(node, taken)
        if group is not None:
            groups.append(group)
            taken.update(group.nodes)
        if refusal is not None:
            refusals.append(refusal)
    return Found(groups, refusals, search.reads)


class _Search:
    def __init__(self, traced: Trace) -> None:
        self._called = traced.called
        self._nodes = list(traced.graph.nodes)
        self._order = {node: i for i, node in enumerate(self._nodes)}
        self._ops = {node: op_of(node, self._called(node)) for node in self._nodes}
        self.reads: list[Read] = []

    def longest(self, head: Node, taken: set[Node]) -> tuple[Group | None, Refusal | None]:
        """The longest group that begins with ``head``, and the first one that was refused."""
        refusal = None
        for pattern in PATTERNS:
            ops = self._match(head, pattern.kinds)
            if ops is None or any(op.node in taken for op in ops):
                continue
            group = Group(pattern, ops)
            reason = self._problem(group)
            if reason is None:
                return group, refusal
            refusal = refusal or Refusal(tuple(group.nodes), reason)
        return None, refusal

    def _match(self, head: Node, kinds: tuple[str, ...]) -> list[Op] | None:
        op = self._ops[head]
        if op is None or op.kind != kinds[0]:
            return None
        ops = [op]
        for kind in kinds[1:]:
            last = ops[-1].node
            users = list(last.users)
            following = self._ops[users[0]] if len(users) == 1 else None
            if following is not None and following.kind == "add":
                following = added_to(following, last)
            if following is None or following.kind != kind or following.input is not last:
                return None
            ops.append(following)
        return ops

    def _problem(self, group: Group) -> str | None:
        """Why a group that matches is not fused."""
        for op in group.ops:
            if op.problem is not None:
                return op.problem
            if op.module is not None and any(map(_wants_to_see, hooks_of(op.module))):
                return f"a hook wants to see {op.node.name} by itself"
            if op.module is not None and has_own_forward(op.module):
                return f"{op.node.name} has a forward of its own"
        for user in group.nodes[-1].users:
            if user.args and user.args[0] is group.nodes[-1] and self._changes(user):
                return f"{user.name} changes its result in place"
        return self._residual_problem(group) or group.pattern.step.problem(*group.arguments)

    def _changes(self, node: Node) -> bool:
        module = self._called(node)
        if module is not None:
            self.reads += inplace_reads(module)
        return changes_in_place(node, module)

    def _residual_problem(self, group: Group) -> str | None:
        """The step runs once the residual is computed; until then nothing may change its input."""
        first, last = self._order[group.nodes[0]], self._order[group.place]
        for node in self._nodes[first + 1 : last]:
            if node not in group.nodes and self._changes(node):
                return f"{node.name}, which comes before the addition, may change something in place"
        return None


def _wants_to_see(hooks: dict[int, object]) -> bool:
    """Whether there are hooks besides the one that initialises a lazy module at its first call."""
    return any(getattr(hook, "__name__", "") != "_infer_parameters" for hook in hooks.values())
