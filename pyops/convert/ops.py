"""What the nodes of a traced graph compute, in the terms of the fusion patterns.

``self.relu(x)``, ``F.relu(x)``, ``torch.relu_(x)`` and ``x.relu()`` are one op of the kind ``"activation"``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import Node
from torch.nn import Module

from .. import functional, nn
from .surroundings import Read
from .swap import TO_TORCH, computing_type, of_a_library

#: By the kernels' name of an activation: its module, and the attributes that must have these values for
#: kernels to compute it.
_ACTIVATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "relu": (nn.ReLU, {}),
    "leaky_relu": (nn.LeakyReLU, {"negative_slope": 0.01}),
    "sigmoid": (nn.Sigmoid, {}),
    "tanh": (nn.Tanh, {}),
    "selu": (nn.SELU, {}),
    "softplus": (nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
    "elu": (nn.ELU, {"alpha": 1.0}),
    "gelu": (nn.GELU, {"approximate": "none"}),
    "silu": (nn.SiLU, {}),
    "hardswish": (nn.Hardswish, {}),
    "relu6": (nn.ReLU6, {"min_val": 0.0, "max_val": 6.0}),
    "hardtanh": (nn.Hardtanh, {"min_val": -1.0, "max_val": 1.0}),
    "hardsigmoid": (nn.Hardsigmoid, {}),
}
#: Other values of these attributes that kernels know by a name of their own.
_VARIANTS = {("gelu", ("tanh",)): "gelu_tanh", ("hardtanh", (0.0, 6.0)): "relu6"}
_ACTIVATION_OF = {kind: name for name, (kind, _) in _ACTIVATIONS.items()}

_MODULES: dict[type[Module], str] = {
    nn.Conv1d: "conv1d",
    nn.LazyConv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.LazyConv2d: "conv2d",
    nn.Linear: "linear",
    nn.LazyLinear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.LazyBatchNorm1d: "batch_norm",
    nn.LazyBatchNorm2d: "batch_norm",
    nn.LayerNorm: "row_norm",
    nn.GroupNorm: "row_norm",
    nn.MaxPool2d: "max_pool2d",
    nn.Dropout: "dropout",
}

#: What pyops.nn's modules may do behind what torch's do.
_EXTRAS = ("activation", "dropout_p")

_NAMESPACES = (torch.nn.functional, torch, functional, torch.Tensor)


def _named(*names: str) -> dict[Any, str]:
    """The functions and methods of these names, also with the underscore of in-place ones."""
    found: dict[Any, str] = {}
    for name in names:
        for variant in (name, f"{name}_"):
            found[variant] = name
            found |= {getattr(space, variant): name for space in _NAMESPACES if hasattr(space, variant)}
    return found


_ACTIVATION_CALLS = _named(*_ACTIVATIONS)
_POOL_CALLS = {torch.max_pool2d, torch.nn.functional.max_pool2d, functional.max_pool2d}
_DROPOUT_CALLS = {torch.nn.functional.dropout, torch.dropout, functional.dropout}
_ADD_CALLS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True)
class Op:
    """A node as an op on ``input``; ``module`` is what it calls, or does what the called function does."""

    kind: str
    node: Node
    input: Node
    module: Module | None = None
    #: The other operand of an addition.
    other: Node | None = None
    #: Attributes of ``module`` that decided what it is.
    decisive: tuple[str, ...] = ()
    #: Why it cannot be fused although its kind can.
    problem: str | None = None

    @property
    def member(self) -> Member:
        return Member(self.kind, self.module, self.node.op == "call_module")


@dataclass(frozen=True)
class Member:
    """What a step keeps of an op, without its graph."""

    kind: str
    module: Module | None
    #: Whether the module is one of the model, and not made for a function.
    called: bool

    @property
    def as_written(self) -> Callable[..., Any]:
        """The op without pyops: torch's forward of the module."""
        if self.module is None:
            return operator.add
        kind = type(self.module)
        forward = kind.forward if self.called else TO_TORCH.get(kind, kind).forward
        return partial(forward, self.module)

    @property
    def as_converted(self) -> Callable[..., Any]:
        """The op by itself in a converted model: functions are torch's there."""
        called: Any = self.module
        return called.forward if self.called else self.as_written


def kind_of(module: Module) -> str | None:
    """The kind of op that a call of ``module`` is."""
    kind = computing_type(module)
    return "activation" if kind in _ACTIVATION_OF else _MODULES.get(kind)


def op_of(node: Node, module: Module | None) -> Op | None:
    """``node`` as an op; None if it is of no kind that is fused. ``module`` is what it calls, if any."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    if module is not None:
        return _module_op(node, module)
    if node.op not in ("call_function", "call_method"):
        return None
    try:
        return _function_op(node)
    except (TypeError, ValueError, AssertionError):  # the function or the module refuses the arguments
        return None


def _module_op(node: Node, module: Module) -> Op | None:
    if len(node.args) != 1 or node.kwargs:
        return None
    kind, input = computing_type(module), node.args[0]
    assert isinstance(input, Node)
    if kind in _ACTIVATION_OF:
        return _activation(node, input, _ACTIVATION_OF[kind], module)
    name = _MODULES.get(kind)
    if name is None or (name == "max_pool2d" and module.return_indices):
        return None
    problem, extras = None, tuple(key for key in _EXTRAS if hasattr(type(module), key))
    if any(getattr(module, key) for key in extras):
        problem = "it has an activation or dropout of its own"
    decisive = ("return_indices",) if name == "max_pool2d" else extras
    return Op(name, node, input, module, decisive=decisive, problem=problem)


def _activation(node: Node, input: Node, name: str, module: Module) -> Op:
    options = _ACTIVATIONS[name][1]
    given = {key: getattr(module, key) for key in options}
    different = [f"{key}={value}" for key, value in given.items() if value != options[key]]
    if (name, tuple(given.values())) in _VARIANTS:
        different = []
    problem = f"kernels know {name} only with its default {', '.join(options)}, not {', '.join(different)}"
    return Op("activation", node, input, module, None, tuple(options), problem if different else None)


def activation_name(module: Module) -> str:
    """The name by which kernels know what an activation module computes."""
    name = _ACTIVATION_OF[computing_type(module)]
    given = tuple(getattr(module, key) for key in _ACTIVATIONS[name][1])
    return _VARIANTS.get((name, given), name)


def _function_op(node: Node) -> Op | None:
    target, input = node.target, node.args[0]
    assert isinstance(input, Node)
    if target in _ADD_CALLS:
        return _addition(node)
    if target in _ACTIVATION_CALLS:
        name = _ACTIVATION_CALLS[target]
        kind, options = _ACTIVATIONS[name]
        # ReLU6 has attributes that neither its function nor its constructor takes.
        given = _arguments(node, *(options if name != "relu6" else ()))
        return None if given is None else _activation(node, input, name, kind(**given))
    if target in _POOL_CALLS:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = _arguments(node, *names)
        if given is None or given.get("return_indices"):
            return None
        return Op("max_pool2d", node, input, nn.MaxPool2d(**given))
    if target in _DROPOUT_CALLS:
        given = _arguments(node, "p", "training")
        if given is None:
            return None
        return Op("dropout", node, input, nn.Dropout(given.get("p", 0.5)).train(given.get("training", True)))
    return None


def _arguments(node: Node, *names: str) -> dict[str, Any] | None:
    """The constants that ``node`` passes for ``names``, behind the first argument; None if it has others."""
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    inplace = given.pop("inplace", False) or (len(node.args) == len(names) + 2 and node.args[-1])
    extra = len(node.args) > len(names) + 2 or not given.keys() <= set(names) or isinstance(inplace, Node)
    return None if extra or len(node.all_input_nodes) != 1 else given


def _addition(node: Node) -> Op | None:
    """``a + b`` of two tensors. Either may be the op's input; in place, only the first."""
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1 or not node.kwargs.keys() <= {"alpha"}:
        return None
    first, second = node.args
    if not isinstance(first, Node) or not isinstance(second, Node) or first is second:
        return None
    return Op("add", node, first, other=second)


def added_to(op: Op, chain: Node) -> Op | None:
    """The addition ``op`` as one to ``chain``."""
    if op.input is chain:
        return op
    if op.node.target in (operator.iadd, "add_"):
        return None
    return Op("add", op.node, chain, other=op.input)


def changes_in_place(node: Node, module: Module | None) -> bool:
    """Whether ``node`` may change a tensor that it is given; true unless it is known not to."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        return module is None or any(map(_may_change, module.modules()))
    if node.kwargs.get("inplace") or "out" in node.kwargs or _inplace_by_position(node):
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") or str(node.target).startswith("__set")
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    name, owner = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or "torch"
    if owner in ("_operator", "operator"):
        return name in ("setitem", "delitem") or (name.startswith("i") and hasattr(operator, f"__{name}__"))
    return owner.split(".")[0] not in ("torch", "pyops", "math", "builtins") or name.endswith("_")


def inplace_reads(module: Module) -> list[Read]:
    """The attributes by which :func:`changes_in_place` finds whether a call of ``module`` does."""
    return [(m, "inplace", m.inplace) for m in module.modules() if hasattr(m, "inplace")]


def _may_change(module: Module) -> bool:
    return not of_a_library(type(module)) or bool(getattr(module, "inplace", False))


def _inplace_by_position(node: Node) -> bool:
    function = node.target
    if node.op != "call_function" or not callable(function) or len(node.args) < 2:
        return False
    try:
        names = list(inspect.signature(inspect.unwrap(function)).parameters)
    except (TypeError, ValueError):  # built-in functions, whose in-place forms have their own names
        return False
    return "inplace" in names[: len(node.args)] and node.args[names.index("inplace")] is not False
